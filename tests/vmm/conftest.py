"""The guests, made once, and QEMU to run them in."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.cuse.vm.initramfs import Modules
from tests.support import paths
from tests.support.cpio import Archive
from tests.vmm.qemu import Qemu

PROGRAMS = Path(__file__).with_name("programs")
VIRTIO = ("virtio_pci", "virtio_blk", "virtio_net")


def compile_program(folder: Path, *sources: str, options: tuple[str, ...] = ()) -> Path:
    """The program that is named as its first source."""
    if not shutil.which("gcc"):
        paths.missing("no gcc to compile programs with")
    program = folder / Path(sources[0]).name
    files = [PROGRAMS / f"{source}.c" for source in sources]
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *options]
    subprocess.run(["gcc", *flags, "-o", program, *files, "-lm"], check=True)
    return program


def with_init(init: bytes, modules: dict[str, bytes], busybox: bytes | None = None) -> bytes:
    """An initramfs."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "bin", "modules"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", init, 0o755)
    if busybox:
        archive.file("bin/busybox", busybox, 0o755)
    for name, body in modules.items():
        archive.file(f"modules/{name}.ko", body)
    archive.file("modules/order", "".join(f"{name}\n" for name in modules).encode())
    return archive.finish()


@dataclass(frozen=True)
class Linux:
    """A kernel of Debian's, and an initramfs for it."""

    kernel: Path
    initramfs: Path

    def arguments(self, command_line: str, **checks: str | int) -> tuple[str | Path, ...]:
        """For QEMU: to boot it, and have it make checks of programs/check.c."""
        listed = ",".join(f"{name}:{value}" if value != "" else name for name, value in checks.items())
        line = f"console=ttyS0 quiet panic=-1 mitigations=off 8250.nr_uarts=1 {command_line} check={listed}"
        return ("-kernel", self.kernel, "-initrd", self.initramfs, "-append", line)


@pytest.fixture(scope="session")
def check(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """programs/check.c: an init that checks the machine."""
    folder = tmp_path_factory.mktemp("check")
    return compile_program(folder, "check", "check_devices", "check_serial", options=("-static",)).read_bytes()


@pytest.fixture(scope="session")
def kernel() -> Path:
    """Debian's 6.12 kernel, uncompressed."""
    return paths.vm_kernel() / "vmlinux"


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory, check: bytes) -> Path:
    """An archive with programs/check.c as init, and drivers for Debian's 6.12 kernel."""
    path = tmp_path_factory.mktemp("initramfs") / "initramfs.cpio"
    path.write_bytes(with_init(check, Modules(paths.vm_kernel() / "modules").load_order(VIRTIO)))
    return path


@pytest.fixture(scope="session")
def linux(kernel: Path, initramfs: Path) -> Linux:
    """Debian's 6.12 kernel and programs/check.c."""
    return Linux(kernel, initramfs)


@dataclass(frozen=True)
class Disk:
    path: Path
    checksum: str  # Adler-32, in hexadecimal

    @property
    def arguments(self) -> tuple[str, ...]:
        """For QEMU: the image as the drive `disk`, not attached to anything yet."""
        return ("-drive", f"file={self.path},format=raw,if=none,id=disk,readonly=on")


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A megabyte of noise."""
    path, data = tmp_path_factory.mktemp("disk") / "disk", Random(1).randbytes(1 << 20)
    path.write_bytes(data)
    return Disk(path, f"{zlib.adler32(data):08x}")


@pytest.fixture
def huge_pages() -> Iterator[None]:
    """64 MiB of free memory in pages of 2 MiB, reserved while the test lasts if it is not there already."""
    pool, wanted = Path("/sys/kernel/mm/hugepages/hugepages-2048kB"), 32
    if not pool.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    count = pool / "nr_hugepages"
    before = count.read_text()
    missing = wanted - int((pool / "free_hugepages").read_text())
    try:
        if missing > 0:
            if not os.access(count, os.W_OK):
                pytest.skip("no free huge pages, and only root may reserve some")
            count.write_text(str(int(before) + missing))
            if int((pool / "free_hugepages").read_text()) < wanted:
                pytest.skip("no memory for huge pages")
        yield
    finally:
        if missing > 0 and os.access(count, os.W_OK):
            count.write_text(before)


@pytest.fixture
def start_qemu(no_leaks: None, tmp_path: Path) -> Iterator[Callable[..., Qemu]]:
    """`start_qemu(irqchip, *arguments, **options)`: a Qemu (its options), with a folder of its own."""
    with ExitStack() as running:
        count = 0

        def start(irqchip: str, *arguments: str | Path, **options: Any) -> Qemu:
            nonlocal count
            count += 1
            return running.enter_context(Qemu(tmp_path / f"qemu{count}", irqchip, arguments, **options))

        yield start


@pytest.fixture(scope="session")
def monitor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """programs/monitor: makes the calls of other monitors, and boots Linux as they do."""
    sources = ("main", "memory", "entry", "devices")
    return compile_program(tmp_path_factory.mktemp("monitor"), *(f"monitor/{source}" for source in sources))
