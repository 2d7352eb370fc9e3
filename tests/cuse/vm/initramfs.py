"""An initramfs: busybox, kernel modules in the order of their dependencies, and an init.

The format is the kernel's "newc" cpio (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import lzma
import re
import stat
from collections.abc import Iterable
from pathlib import Path

_APPLETS = ["sh", "mount", "mkdir", "cp", "cat", "echo", "ln", "insmod", "switch_root", "dd", "printf", "poweroff"]
_DIRECTORIES = ["bin", "dev", "mnt", "mnt/host", "mnt/overlay", "mnt/root", "modules", "proc", "sys"]


class Archive:
    """A cpio archive being written."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def _entry(self, name: str, mode: int, body: bytes = b"", rdev: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._inode, mode, 0, 0, 1, 0, len(body), 0, 0, *rdev, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._pad()
        self._data += body
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, body: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, body)

    def symlink(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, rdev=(major, minor))

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return bytes(self._data)


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
