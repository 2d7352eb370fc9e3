"""Fixtures: the device, and client programs compiled on the spot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.device import PROGRAMS, Device

VARIANTS = {"pie": ["-fPIE", "-pie"], "static": ["-static", "-no-pie"]}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`compiled(name, variant)` is the program of programs/NAME.c, made once."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc to compile client programs with")
    folder = tmp_path_factory.mktemp("programs")

    def compile_program(name: str, variant: str = "pie") -> Path:
        program = folder / f"{name}-{variant}"
        if not program.exists():
            words = ["gcc", "-O2", "-Wall", "-Werror", "-pthread", *VARIANTS[variant]]
            subprocess.run([*words, "-o", program, PROGRAMS / f"{name}.c"], check=True)
        return program

    return compile_program


@pytest.fixture
def device(no_leaks: None) -> Iterator[Device]:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/fuse: mounts FUSE and traces processes")
    device = Device()
    yield device
    device.close()
