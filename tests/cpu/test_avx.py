"""AVX, AVX2, FMA and F16C: every form that iced-x86 knows, whole instructions next to the host's."""

from __future__ import annotations

import functools
import zlib

import numpy as np
import pytest

from .compare import interesting
from .forms import Opcode, opcodes, variants
from .native import HAS_AVX
from .test_float import numbers, states
from .whole import Processor, both, contexts, differences

pytestmark = pytest.mark.skipif(not HAS_AVX, reason="the host has no AVX")

OVERFLOW, UNDERFLOW, PRECISION = 8, 16, 32
FLOATING = ("ADD", "SUB", "MUL", "DIV", "SQRT", "MIN", "MAX", "RCP", "RSQRT", "CMP", "ROUND", "DPP", "COMIS", "CVT")
ALL = [opcode for opcode in opcodes("AVX", "AVX2", "FMA", "F16C", vex=True) if not opcode.has("VSIB", "SEG_RDI")]


def is_floating(opcode: Opcode) -> bool:
    """Whether MXCSR has a say."""
    name = opcode.name.split("_")[1]
    if name.startswith("VP") or name == "VMPSADBW":
        return False
    return any(part in name for part in FLOATING) or name.startswith(("VFM", "VFNM"))


FLOATS = [opcode for opcode in ALL if is_floating(opcode)]
MOVES = [opcode for opcode in ALL if not is_floating(opcode) and "MXCSR" not in opcode.name]  # those: test_vex.py


@functools.cache
def processor() -> Processor:
    return Processor()


@pytest.mark.parametrize("opcode", MOVES, ids=lambda opcode: opcode.name)
def test_as_the_host(opcode: Opcode) -> None:
    start = contexts(opcode.name, 24)
    if "PS" in opcode.name and opcode.name.startswith(("VEX_VPSLL", "VEX_VPSRL", "VEX_VPSRA")):
        counts = np.random.default_rng(0).integers(0, 70, (12, 16), np.uint64)
        start["vector"][:12, :, 0], start["memory"][:12] = counts, counts
    for code in variants(opcode):
        expected, found = both(processor(), code, start)
        assert differences(expected, found) == [], code.hex()


def float_contexts(opcode: Opcode, count: int) -> np.ndarray:
    """Numbers of the format that the instruction reads, and any MXCSR."""
    name = opcode.name.split("_")[1]
    rng = np.random.default_rng(zlib.crc32(opcode.name.encode()))
    if name == "VCVTPH2PS":
        pool = rng.integers(0, 1 << 64, 1 << 12, np.uint64)  # of all halves, one in 32 is denormal or 0, as many NaN
    elif name.startswith(("VCVTDQ", "VCVTSI")):
        pool = interesting(rng, 1 << 12)
    elif "PD2" in name or "SD2" in name or (name.endswith(("PD", "SD")) and not name.startswith("VCVT")):
        pool = numbers(rng, 1 << 12, 11, 52)
    else:
        pairs = numbers(rng, 2 << 12, 8, 23).reshape(-1, 2)
        pool = pairs[:, 0] | pairs[:, 1] << np.uint64(32)
    made = contexts(opcode.name, count, pool)
    made["mxcsr"][:, 0] = states(rng, count)
    return made


def even_precision(expected: np.ndarray, found: np.ndarray) -> None:
    """PE beside an unmasked overflow or underflow tells of a result with a wider exponent: not modelled here."""
    words = expected["mxcsr"][:, 0]
    raised = words & ~(words >> 7) & (OVERFLOW | UNDERFLOW)
    for side in (expected, found):
        side["mxcsr"][(raised != 0) & (expected["signal"] != 0), 0] |= PRECISION


@pytest.mark.parametrize("opcode", FLOATS, ids=lambda opcode: opcode.name)
def test_floats_as_the_host(opcode: Opcode) -> None:
    start = float_contexts(opcode, 50 if opcode.has_immediate else 150)
    for code in variants(opcode):
        expected, found = both(processor(), code, start)
        even_precision(expected, found)
        assert differences(expected, found) == [], code.hex()


def test_forms_are_all_there() -> None:
    """The list that the tests run over is that of the manual: a change in it shows."""
    assert (len(MOVES), len(FLOATS)) == (455, 211)
