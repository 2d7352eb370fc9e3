"""AES, PCLMULQDQ, SHA, GFNI and the SSE4.2 string comparisons: whole instructions next to the host's."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import pytest

from .forms import FREE, RBX, Opcode, encode, opcodes, variants
from .whole import Processor, both, contexts, differences

HOST = set(next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split())
NAMES = {"SHA": "sha_ni"}
SETS = opcodes("AES", "PCLMULQDQ", "SHA", "GFNI", "VAES", "VPCLMULQDQ")
STRINGS = [opcode for opcode in opcodes("SSE4_2", "AVX") if "PCMPEST" in opcode.name or "PCMPIST" in opcode.name]


@functools.cache
def processor() -> Processor:
    return Processor()


def skip_unless_host_has(opcode: Opcode) -> None:
    if not {NAMES.get(name, name.lower()) for name in opcode.features} <= HOST:
        pytest.skip(f"the host lacks {sorted(opcode.features)}")


@pytest.mark.parametrize("opcode", SETS, ids=lambda opcode: opcode.name)
def test_as_the_host(opcode: Opcode) -> None:
    skip_unless_host_has(opcode)
    for seed in range(4 if opcode.has_immediate else 1):
        for code in variants(opcode, seed):
            expected, found = both(processor(), code, contexts(opcode.name, 40))
            assert differences(expected, found) == [], code.hex()


@pytest.mark.parametrize("opcode", STRINGS, ids=lambda opcode: opcode.name)
def test_strings_as_the_host(opcode: Opcode) -> None:
    """All controls, on strings of few letters with zeros among them, and any lengths."""
    skip_unless_host_has(opcode)
    rng, registers = np.random.default_rng(7), random.Random(7)
    start = contexts(opcode.name, 24)
    for part in ("vector", "memory"):
        letters = rng.choice(
            np.array([0, 1, 2, 3, 0x80, 0xFF], np.uint8), (*start[part].shape, 8), p=[0.05, *[0.19] * 5]
        )
        start[part] = letters.view(np.uint64)[..., 0]
    lengths = rng.integers(-20, 20, (len(start), 2))
    start["gpr"][:16, (0, 2)] = lengths[:16].astype(np.uint64)
    for control in range(256):
        rm = bytes([RBX]) if registers.random() < 0.5 else registers.choice(FREE)
        code = encode(opcode, reg=registers.choice(FREE), rm=rm, imm=control)
        expected, found = both(processor(), code, start)
        assert differences(expected, found) == [], code.hex()
