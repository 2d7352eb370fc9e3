"""An initramfs: busybox, kernel modules in the order of their dependencies, and an init."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path

from tests.support.cpio import Archive

_APPLETS = ["sh", "mount", "mkdir", "cp", "cat", "echo", "ln", "insmod", "switch_root", "dd", "printf", "poweroff"]
_DIRECTORIES = ["bin", "dev", "mnt", "mnt/host", "mnt/overlay", "mnt/root", "modules", "proc", "sys"]


class Modules:
    """The modules of one kernel, a lib/modules/VERSION tree."""

    def __init__(self, tree: Path) -> None:
        self._paths: dict[str, Path] = {}
        for path in tree.rglob("*.ko*"):
            if match := re.fullmatch(r"(.+)\.ko(\.xz)?", path.name):
                self._paths[match[1].replace("-", "_")] = path

    def load_order(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """Names and contents of the wanted modules and of all that they depend on, dependencies first.

        What the kernel was built with is no module, so an unknown name is left out.
        """
        ordered: dict[str, bytes] = {}

        def add(name: str) -> None:
            name = name.replace("-", "_")
            if name in ordered or name not in self._paths:
                return
            path = self._paths[name]
            body = path.read_bytes()
            if path.suffix == ".xz":
                body = lzma.decompress(body)
            # .modinfo holds NUL-terminated key=value strings
            depends = re.search(rb"\0depends=([^\0]*)\0", body)
            for dependency in depends[1].decode().split(",") if depends else ():
                add(dependency)
            ordered[name] = body

        for name in wanted:
            add(name)
        return ordered


def build(modules: dict[str, bytes], busybox: Path, init: bytes, job: bytes, *, systemd: bool = False) -> bytes:
    """The archive; `job` is a shell script that `init` runs once the root file system stands; or systemd does, as a
    service."""
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    for name, body in modules.items():
        archive.file(f"modules/{name}.ko", body)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    archive.file("job", job)
    archive.file("init", init, 0o755)
    if systemd:
        archive.file("systemd", b"")
    return archive.finish()
