"""SSE floating-point handlers against the host CPU: values, NaN payloads, flags, rounding, masked and unmasked."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import sse_convert, sse_float
from kvmfs.jit.raw import PLAIN

from .compare import MXCSR_INIT, Form, check, contexts
from .encode import encode
from .test_system import CODE, System

DST, SRC, GENERAL = 1, 2, 3  # xmm1, xmm2, rbx
PRECISION = 32
PREFIX = {"ps": "", "pd": "66 ", "ss": "F3 ", "sd": "F2 "}

TYPED = {
    "sqrt": "51", "rsqrt": "52", "rcp": "53", "add": "58", "mul": "59", "sub": "5C", "min": "5D", "div": "5E",
    "max": "5F",
}  # fmt: skip
TWO_BYTE = """
66 7C haddpd F2 7C haddps 66 7D hsubpd F2 7D hsubps 66 D0 addsubpd F2 D0 addsubps NP 2E ucomiss 66 2E ucomisd
NP 2F comiss 66 2F comisd NP 5A cvtps2pd 66 5A cvtpd2ps F3 5A cvtss2sd F2 5A cvtsd2ss NP 5B cvtdq2ps 66 5B cvtps2dq
F3 5B cvttps2dq F3 E6 cvtdq2pd F2 E6 cvtpd2dq 66 E6 cvttpd2dq
"""
ROUND = {"roundps": "08", "roundpd": "09", "roundss": "0A", "roundsd": "0B"}
DOT = {"dpps": "40", "dppd": "41"}
FROM_GENERAL = {"cvtsi2ss": "F3 0F 2A", "cvtsi2sd": "F2 0F 2A"}
TO_GENERAL = {"cvttss2si": "F3 0F 2C", "cvttsd2si": "F2 0F 2C", "cvtss2si": "F3 0F 2D", "cvtsd2si": "F2 0F 2D"}


def _two(name: str, notation: str, imm: int = 0) -> Form:
    return Form(name, encode(notation, 0, reg=DST, rm=SRC, imm=imm), "xmm1", "xmm2", imm=imm)


def forms() -> Iterator[Form]:
    for stem, opcode in TYPED.items():
        for suffix, prefix in PREFIX.items():
            if f"{stem}{suffix}" in sse_float.group.members:
                yield _two(f"{stem}{suffix}", f"{prefix}0F {opcode} /r")
    words = TWO_BYTE.split()
    for prefix, opcode, name in zip(words[::3], words[1::3], words[2::3], strict=True):
        yield _two(name, f"{prefix} 0F {opcode} /r".removeprefix("NP "))
    for suffix, prefix in PREFIX.items():
        for predicate in (*range(8), 0x1F, 0xF8):
            yield _two(f"cmp{suffix}", f"{prefix}0F C2 /r ib", predicate)
    for name, opcode in ROUND.items():
        for mode in (*range(16), 0xF0):
            yield _two(name, f"66 0F 3A {opcode} /r ib", mode)
    for name, opcode in DOT.items():
        for mask in (0x00, 0xFF, 0x31, 0x7F, 0xF5, 0x8A, 0x53, 0xC6):
            yield _two(name, f"66 0F 3A {opcode} /r ib", mask)
    for width, size in ((0, "d"), (64, "q")):
        for name, notation in FROM_GENERAL.items():
            yield Form(f"{name}{size}", encode(f"{notation} /r", width, reg=DST, rm=GENERAL), "xmm1", "rbx")
        for name, notation in TO_GENERAL.items():
            yield Form(f"{name}{size}", encode(f"{notation} /r", width, reg=GENERAL, rm=SRC), "rbx", "xmm2")


def numbers(rng: np.random.Generator, count: int, exponent: int, fraction: int) -> np.ndarray:
    """Words with floating-point numbers of this format: the ends of every class, halfway cases, NaNs with payload."""
    bias, top = (1 << exponent - 1) - 1, (1 << exponent) - 1
    one = 1 << fraction
    quiet = one >> 1
    corners = [
        0, 1, 2, quiet, one - 1, one, one + 1, (top - 1) * one, top * one - 1, top * one, top * one + 1, top * one + 5,
        top * one + quiet - 1, top * one + quiet, top * one + quiet + 7, (top + 1) * one - 1,
    ]  # fmt: skip
    corners += [(bias + power) * one + part for power in (-2, -1, 0, 1, 2, 23, 31, 52, 62, 63) for part in (0, 1, quiet)
                if power < bias]  # fmt: skip
    corners += [(bias + 1) * one - 1, (bias + fraction) * one + 1, bias // 2 * one, (bias + bias // 2) * one + 3]
    pool = np.array(corners, np.uint64)
    picked = rng.choice(pool, count) | rng.integers(0, 2, count, np.uint64) << np.uint64(exponent + fraction)
    near = rng.integers(bias - 30, bias + 30, count, np.uint64) * np.uint64(one)
    near |= rng.integers(0, one, count, np.uint64)
    return np.where(rng.integers(0, 3, count) == 0, near, picked)


def states(rng: np.random.Generator, count: int) -> np.ndarray:
    """MXCSR values: all rounding modes, DAZ, FTZ, flags that are set already; half with some exceptions unmasked."""
    words = rng.integers(0, 1 << 16, count, np.uint32)
    masked = rng.integers(0, 2, count) == 0
    one = np.uint32(1) << rng.integers(7, 13, count, np.uint32)
    words = np.where(rng.integers(0, 2, count) == 0, words | np.uint32(0x1F80) ^ one, words)
    words = np.where(masked, words | np.uint32(0x1F80), words)
    words[: count // 16] = MXCSR_INIT
    return words


def fill(form: Form, count: int | None = None) -> np.ndarray:
    """Contexts whose vectors hold singles or doubles, as the instruction reads them."""
    rng = np.random.default_rng(zlib.crc32(f"{form}".encode()))
    start = contexts(f"{form}") if count is None else contexts(f"{form}", count)
    total = len(start)
    single = numbers(rng, total * 64, 8, 23)
    pairs = (single[::2] | single[1::2] << np.uint64(32)).reshape(total, 16, 2)
    double = numbers(rng, total * 32, 11, 52).reshape(total, 16, 2)
    integer = form.handler.startswith(("cvtdq", "cvtsi"))
    if not integer:
        wide = form.handler.endswith(("pd", "sd", "sdq")) or "pd2" in form.handler or "sd2" in form.handler
        start["vector"] = double if wide and not form.handler.startswith(("cvtps2", "cvtss2")) else pairs
    start["mxcsr"][:, 0] = states(rng, total)
    same = rng.integers(0, 4, total) == 0
    start["vector"][same, SRC] = start["vector"][same, DST]
    return start


@pytest.mark.parametrize("form", list(forms()), ids=lambda form: f"{form}")
def test_as_the_host(form: Form) -> None:
    check(form, fill(form))


def test_each_handler_is_compared() -> None:
    assert {form.handler for form in forms()} >= set(sse_float.group.members) | set(sse_convert.group.members)


# Decoded and run, with operands in memory

DATA = 0x150000
whole = pytest.mark.skipif(PLAIN, reason="a whole processor is slow in plain Python")


@pytest.fixture
def guest() -> System:
    guest = System()
    guest[S.MXCSR] = MXCSR_INIT
    return guest


@whole
def test_memory_operands(guest: System) -> None:
    guest.write(DATA, struct.pack("<4f2dq", 1.5, -2.0, 3.0, 0.5, 10.0, -0.25, -7))
    text = f"""mov ebx, {DATA}; movups xmm0, [rbx]; addps xmm0, [rbx]; mulss xmm0, dword ptr [rbx + 4]
        movups xmm1, [rbx + 16]; divsd xmm1, qword ptr [rbx + 24]; cvtsi2sd xmm2, qword ptr [rbx + 32]
        cvttss2si eax, dword ptr [rbx + 4]; cvtps2pd xmm3, qword ptr [rbx]; roundsd xmm4, qword ptr [rbx + 24], 1
        dpps xmm5, [rbx], 0xff; comisd xmm1, qword ptr [rbx + 16]; setb dl; cmpltps xmm0, [rbx]; hlt"""
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.read_cpu(S.VEC, 16) == struct.pack("<4i", -1, -1, 0, 0)
    assert guest.read_cpu(S.VEC + 64, 16) == struct.pack("<2d", -40.0, -0.25)
    assert guest.read_cpu(S.VEC + 128, 8) == struct.pack("<d", -7)
    assert guest.read_cpu(S.VEC + 192, 16) == struct.pack("<2d", 1.5, -2.0)
    assert guest.read_cpu(S.VEC + 256, 8) == struct.pack("<d", -1.0)
    assert (guest[S.RAX], guest[S.RDX] & 0xFF) == (0xFFFFFFFE, 1)
    assert guest[S.MXCSR] == MXCSR_INIT | PRECISION


@whole
def test_packed_memory_must_be_aligned(guest: System) -> None:
    assert guest.execute(f"mov ebx, {DATA + 4}; addss xmm0, dword ptr [rbx]; addps xmm0, [rbx]; hlt") == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.GP


@whole
@pytest.mark.parametrize(("allowed", "vector"), [(True, S.XM), (False, S.UD)])
def test_unmasked_exception(guest: System, allowed: bool, vector: int) -> None:
    """The flag is set, the destination is not, RIP is the instruction's."""
    if not allowed:
        guest[S.CR4] &= ~S.CR4_OSXMMEXCPT
    guest[S.MXCSR] = MXCSR_INIT & ~0x200
    guest.write_cpu(S.VEC, struct.pack("<d", 1.0) * 2)
    assert guest.execute("nop; pxor xmm1, xmm1; divsd xmm0, xmm1; hlt") == S.EXIT_HLT
    frame = guest.frame()
    assert (frame["vector"], frame["rip"]) == (vector, CODE + 5)
    assert guest[S.MXCSR] == MXCSR_INIT & ~0x200 | 4
    assert guest.read_cpu(S.VEC, 16) == struct.pack("<d", 1.0) * 2
