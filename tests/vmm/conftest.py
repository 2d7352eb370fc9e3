"""The guests, made once: a kernel and an initramfs whose init checks the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import paths
from tests.support.cpio import Archive

PROGRAMS = Path(__file__).with_name("programs")


def compile_program(name: str, folder: Path, *options: str) -> Path:
    if not shutil.which("gcc"):
        paths.missing("no gcc to compile programs with")
    program = folder / name
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run(["gcc", *flags, *options, "-o", program, PROGRAMS / f"{name}.c", "-lm"], check=True)
    return program


@pytest.fixture(scope="session")
def kernel() -> Path:
    """Debian's 6.12 kernel, uncompressed."""
    return paths.vm_kernel() / "vmlinux"


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with programs/check.c as init."""
    folder = tmp_path_factory.mktemp("initramfs")
    archive = Archive()
    for name in ("dev", "proc"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("init", compile_program("check", folder, "-static").read_bytes(), 0o755)
    path = folder / "initramfs.cpio"
    path.write_bytes(archive.finish())
    return path


@pytest.fixture(scope="session")
def boot64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """programs/boot64.c: a monitor that boots a vmlinux by its 64-bit entry point."""
    return compile_program("boot64", tmp_path_factory.mktemp("boot64"))
