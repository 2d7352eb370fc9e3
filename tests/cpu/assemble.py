"""Guest code from assembly text, by binutils (which the suite has with gcc)."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


@functools.cache
def assemble(text: str, origin: int, bits: int = 64) -> bytes:
    """Machine code of Intel-syntax `text` for a mode of `bits`, linked at `origin`."""
    if shutil.which("as") is None or shutil.which("ld") is None:
        pytest.skip("no binutils: apt-get install binutils")
    with tempfile.TemporaryDirectory() as folder:
        source, unit, image = (Path(folder) / name for name in ("a.s", "a.o", "a.bin"))
        source.write_text(f".intel_syntax noprefix\n.code{bits}\n.text\n.globl _start\n_start:\n{text}\n")
        subprocess.run(["as", "-o", unit, source], check=True)
        subprocess.run(["ld", f"-Ttext={origin:#x}", "--oformat=binary", "-o", image, unit], check=True)
        return image.read_bytes()
