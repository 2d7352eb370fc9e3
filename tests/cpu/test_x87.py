"""x87 instructions against the host CPU: every opcode, all classes of operands, masked and unmasked exceptions."""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu.x87 import REGISTER_FORMS
from kvmfs.jit.raw import PLAIN

from . import native
from .test_float import numbers
from .test_modes_decode import CODE as REAL_CODE
from .test_modes_decode import Machine
from .test_system import CODE, STACK, System

pytestmark = pytest.mark.skipif(PLAIN, reason="a whole processor is slow in plain Python")

DATA = 0x150000
CONTROL = {0xD9: (4, 5, 6, 7), 0xDD: (4, 6, 7)}  # memory forms that are not arithmetic, by the reg field
COUNT = 60
RBX, RSP, RDI = 3, 4, 7
FCW, FSW, FTW, ST = 0, 2, 4, 32
MEMORY = native.X87_CONTEXT.fields["memory"][1]  # type: ignore[index]
ARITHMETIC = np.uint64(S.ARITHMETIC)


def extended(rng: np.random.Generator, count: int) -> np.ndarray:
    """80-bit numbers as rows of 10 bytes: every class, those that no instruction makes (unnormals, pseudo-NaNs) too."""
    fractions = [
        0, 1, 1 << 63, (1 << 63) - 1, 1 << 62, 3 << 62, (1 << 64) - 1, (1 << 63) + 1, 0xC000_0000_0000_0005,
        0x8000_0000_0000_0400, 0xFFFF_FFFF_FFFF_F800, 0xFFFF_FF00_0000_0000, 0x8000_0080_0000_0000,
    ]  # fmt: skip
    powers = (63, 31, 15, 127, -126, 1023, -1022, -1060, -1, 0, 1)
    exponents = [0, 1, 0x7FFE, 0x7FFF, *(0x3FFF + power for power in powers)]
    fraction = rng.choice(np.array(fractions, np.uint64), count)
    exponent = rng.choice(np.array(exponents, np.uint16), count)
    usual = rng.integers(0, 2, count) == 0
    fraction[usual] = rng.integers(0, 1 << 63, usual.sum(), np.uint64) | np.uint64(1 << 63)
    exponent[usual] = rng.integers(0x3FFF - 40, 0x3FFF + 40, usual.sum(), np.uint16)
    rows = np.zeros((count, 10), np.uint8)
    rows[:, :8] = fraction.view(np.uint8).reshape(count, 8)
    rows[:, 8:] = (exponent | rng.integers(0, 2, count, np.uint16) << np.uint16(15)).view(np.uint8).reshape(count, 2)
    return rows


def operands(rng: np.random.Generator, count: int) -> np.ndarray:
    """What memory holds: integers, singles, doubles, 80-bit numbers, packed decimals."""
    rows = rng.integers(0, 256, (count, 128)).astype(np.uint8)
    kinds = [numbers(rng, count, 8, 23), numbers(rng, count, 11, 52), rng.integers(-9, 9, count).view(np.uint64)]
    for index, words in enumerate(kinds):
        rows[index::5, :8] = words[index::5].copy().view(np.uint8).reshape(-1, 8)
    rows[3::5, :10] = extended(rng, count)[3::5]
    digits = rng.integers(0, 10, (count, 9, 2)).astype(np.uint8)
    rows[4::5, :9] = (digits[..., 0] | digits[..., 1] << 4)[4::5]
    rows[4::5, 9] &= 0x80
    return rows


def contexts(seed: str, count: int = COUNT) -> np.ndarray:
    """Units in any state: stack position, empty registers, control words; exceptions pending in a few."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    made = np.zeros(count, native.X87_CONTEXT)
    fx = made["fx"]
    control = rng.integers(0, 1 << 13, count, np.uint16) & np.uint16(0x1F3F) | np.uint16(0x40)
    control = np.where(rng.integers(0, 2, count) == 0, control | np.uint16(0x3F), control)
    control = np.where(rng.integers(0, 3, count) == 0, control | np.uint16(0x300), control)
    status = rng.integers(0, 1 << 15, count, np.uint16) & np.uint16(0x7F7F)
    pending = rng.integers(0, 12, count) == 0
    status = np.where(pending, status, status & (control | np.uint16(0x7F40)))
    tags = np.where(rng.integers(0, 4, count) == 0, rng.integers(0, 256, count), 0xFF).astype(np.uint8)
    fx[:, FCW : FCW + 2], fx[:, FSW : FSW + 2] = (w.view(np.uint8).reshape(count, 2) for w in (control, status))
    fx[:, FTW] = tags
    for index in range(8):
        fx[:, ST + 16 * index : ST + 16 * index + 10] = extended(rng, count)
    fx[:, 24:28] = np.frombuffer(struct.pack("<I", 0x1F80), np.uint8)
    made["mxcsr"][:, 0] = 0x1F80
    made["gpr"] = rng.integers(0, 1 << 63, (count, 16))
    made["flags"] = rng.integers(0, 1 << 12, count, np.uint64) & ARITHMETIC | np.uint64(2)
    made["memory"] = operands(rng, count)
    return made


@functools.cache
def _guest() -> System:
    return System()


class Unit:
    """A guest that executes one instruction on a context."""

    def __init__(self, code: bytes) -> None:
        self.guest, self.code = _guest(), code
        self.guest.write(CODE, code + b"\xf4")

    def execute(self, context: np.void) -> int:
        """In place; the vector of a fault, or 0."""
        guest = self.guest
        guest.write_cpu(S.GPR, context["gpr"].tobytes())
        guest[S.RBX], guest[S.RSP], guest[S.RIP], guest.rflags = DATA, STACK, CODE, int(context["flags"])
        for n in range(16):
            guest.write_cpu(S.VEC + 64 * n, context["vector"][n].tobytes())
        guest[S.MXCSR] = int(context["mxcsr"][0])
        guest[S.RDI] = DATA
        guest.write_cpu(S.FX, context["fx"][:5].tobytes())
        guest.write_cpu(S.ST, context["fx"][ST : ST + 128].tobytes())
        guest.write(DATA, context["memory"].tobytes())
        guest.segment(S.CS, 8, 0xA09B)
        build_reload(guest)
        guest.derive()
        assert guest.run() == S.EXIT_HLT
        faulted = guest[S.RIP] != CODE + len(self.code) + 1
        context["gpr"] = np.frombuffer(guest.read_cpu(S.GPR, 128), np.uint64)
        for n in range(16):
            context["vector"][n] = np.frombuffer(guest.read_cpu(S.VEC + 64 * n, 16), np.uint64)
        context["mxcsr"][0] = guest[S.MXCSR]
        context["flags"] = guest.rflags & ~(S.RF | S.IF)
        context["fx"][:5] = np.frombuffer(guest.read_cpu(S.FX, 5), np.uint8)
        context["fx"][ST : ST + 128] = np.frombuffer(guest.read_cpu(S.ST, 128), np.uint8)
        context["memory"] = np.frombuffer(guest.read(DATA, 128), np.uint8)
        return guest.words(guest[S.RSP], 1)[0] if faulted else 0


def build_reload(guest: System) -> None:
    """ES follows from the rest of the state, as after FXRSTOR."""
    fcw, fsw = struct.unpack("<HH", guest.read_cpu(S.FX, 4))
    guest.write_cpu(S.FX + 2, struct.pack("<H", fsw | 0x8080 if fsw & ~fcw & 0x3F else fsw & 0x7F7F))


def forms() -> Iterator[list[bytes]]:
    """Encodings, by opcode and reg field."""
    for low in range(8):
        for reg in range(8):
            yield [bytes([0xD8 | low, 0xC0 | reg << 3 | rm]) for rm in range(8)]
            if reg not in CONTROL.get(0xD8 | low, ()):
                yield [bytes([0xD8 | low, reg << 3 | RBX])]


def compare(code: bytes, start: np.ndarray, hide: slice = slice(0)) -> None:
    """Host and guest agree on registers, flags, fault, and memory but for `hide`."""
    expected, found = start.copy(), start.copy()
    memory = expected.ctypes.data + MEMORY + expected.itemsize * np.arange(len(start))
    expected["gpr"][:, RBX] = expected["gpr"][:, RDI] = memory
    native.execute(code, expected)
    unit = Unit(code)
    vectors = np.array([unit.execute(context) for context in found])
    signals = {0: 0, S.MF: 8, S.XM: 8, S.UD: 4}
    found["signal"] = [signals[vector] for vector in vectors.tolist()]
    for side in (expected, found):
        side["gpr"][:, (RBX, RSP, RDI)], side["mxcsr"][:, 1] = 0, 0
        side["flags"] &= ARITHMETIC
        side["flags"][side["signal"] != 0] = 0
        side["fx"][:, 5:ST], side["fx"][:, ST + 128 :] = 0, 0
        side["memory"][:, hide] = 0
    for index in np.flatnonzero(expected != found)[:1]:
        lines = [f"{code.hex(' ')}, case {index}, vector {vectors[index]}"]
        for name in ("gpr", "flags", "signal", "vector", "mxcsr", "fx", "memory"):
            before, want, have = (
                side[name][index].tobytes().rstrip(b"\0").hex(" ") for side in (start, expected, found)
            )
            if want != have:
                lines += [name, f"  was  {before}", f"  host {want}", f"  here {have}"]
        raise AssertionError("\n".join(lines))


@pytest.mark.parametrize("codes", list(forms()), ids=lambda codes: codes[0].hex())
def test_as_the_host(codes: list[bytes]) -> None:
    for code in codes:
        compare(code, contexts(code.hex()))


def test_register_forms_are_those_of_the_host() -> None:
    start = np.repeat(contexts("forms", 1), 1)
    start["fx"][:, :4] = np.frombuffer(b"\x7f\x03\0\0", np.uint8)
    for low in range(8):
        for rm in range(64):
            context = start.copy()
            native.execute(bytes([0xD8 | low, 0xC0 | rm]), context)
            separate = (low, rm) == (7, 0x20) or (low == 3 and 0x20 <= rm < 0x25)
            assert (context["signal"][0] == 0) == bool(REGISTER_FORMS[low] >> rm & 1 or separate), f"{low} {rm}"


CONTROL_FORMS = {
    "fldenv": ("d9 23", 0, 0), "fldcw": ("d9 2b", 0, 0), "fnstenv": ("d9 33", 12, 28), "fnstcw": ("d9 3b", 0, 0),
    "frstor": ("dd 23", 0, 0), "fnsave": ("dd 33", 12, 28), "fnstsw": ("dd 3b", 0, 0), "fnstsw ax": ("df e0", 0, 0),
    "fneni": ("db e0", 0, 0), "fndisi": ("db e1", 0, 0), "fnclex": ("db e2", 0, 0), "fninit": ("db e3", 0, 0),
    "fnsetpm": ("db e4", 0, 0), "fwait": ("9b", 0, 0), "fldenv16": ("66 d9 23", 0, 0),
    "fnstenv16": ("66 d9 33", 6, 14), "frstor16": ("66 dd 23", 0, 0), "fnsave16": ("66 dd 33", 6, 14),
}  # fmt: skip
"""Name -> encoding, and where the pointers are that differ, as addresses do."""


@pytest.mark.parametrize("name", CONTROL_FORMS)
def test_control(name: str) -> None:
    code, start, end = CONTROL_FORMS[name]
    compare(bytes.fromhex(code), contexts(name, 200), slice(start, end))


# What is not the unit's: pointers, exceptions of the system


@pytest.fixture
def guest() -> System:
    guest = System()
    guest[S.MXCSR] = 0x1F80
    return guest


def test_pointers(guest: System) -> None:
    """FNSTENV tells of the last instruction that was not a control instruction."""
    guest[S.DS + S.SEL] = 0x18
    text = f"fninit; mov ebx, {DATA}; fld1; nop; fadd dword ptr [rbx + 8]; fnstcw [rbx + 4]; fnstenv [rbx + 32]; hlt"
    assert guest.execute(text) == S.EXIT_HLT
    fip, opcode, fdp, selector = struct.unpack("<4I", guest.read(DATA + 44, 16))
    assert (fip, opcode) == (CODE + 10, 0x08 | (0x043 << 16))  # D8 43 08
    assert (fdp, selector) == (DATA + 8, 0xFFFF0018)
    assert guest.execute("fninit; fnstenv [rbx + 32]; hlt") == S.EXIT_HLT
    assert struct.unpack("<4I", guest.read(DATA + 44, 16)) == (0, 0, 0, 0xFFFF0000)


def test_store_that_faults_changes_nothing(guest: System) -> None:
    """FSTP does not pop when its operand cannot be written."""
    assert guest.execute(f"fninit; fld1; mov rbx, {1 << 30}; fstp qword ptr [rbx]; hlt") == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.PF_FAULT
    assert struct.unpack("<HHB", guest.read_cpu(S.FX, 5)) == (0x37F, 7 << 11, 0x80)


def test_unmasked_exception_waits(guest: System) -> None:
    """The instruction that made it completes; the next one that waits is where #MF is reported."""
    text = f"""fninit; mov ebx, {DATA}; mov word ptr [rbx], 0x37b; fldcw [rbx]; fld1; fldz; fdivp st(1), st
        fnstsw ax; nop; fld1; hlt"""
    assert guest.execute(text) == S.EXIT_HLT
    frame = guest.frame()
    assert frame["vector"] == S.MF
    assert guest.read(frame["rip"], 2) == b"\xd9\xe8"
    assert guest[S.RAX] & 0xFFFF == 0x8084 | 6 << 11  # B, ES, ZE; nothing was popped
    assert guest.execute("fnclex; fwait; fldcw [rbx]; hlt") == S.EXIT_HLT
    assert guest[S.RIP] == CODE + 6


@pytest.mark.parametrize(
    ("bits", "text", "vector"),
    [
        (S.CR0_TS, "fld1", S.NM), (S.CR0_EM, "fld1", S.NM), (S.CR0_TS, "fnstsw ax", S.NM), (S.CR0_EM, "fwait", 0),
        (S.CR0_TS | S.CR0_MP, "fwait", S.NM), (S.CR0_TS, "fwait", 0), (S.CR0_TS, "addps xmm0, xmm1", S.NM),
        (S.CR0_EM, "addps xmm0, xmm1", S.UD), (S.CR0_TS, "fxsave [rsp - 1024]", S.NM),
    ],
)  # fmt: skip
def test_not_available(guest: System, bits: int, text: str, vector: int) -> None:
    guest[S.CR0] = guest[S.CR0] & ~(S.CR0_MP | S.CR0_EM | S.CR0_TS) | bits
    assert guest.execute(f"{text}; hlt") == S.EXIT_HLT
    if vector:
        assert guest.frame()["vector"] == vector
    else:
        assert guest[S.RSP] == STACK


REAL_DATA = 0x20000  # DS is 0x2000


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("", struct.pack("<7H", 0x37F, 0x3800, 0x3FFF, 0x104, 0x1006, 0x1234, 0x2000)),
        (
            "66",
            struct.pack("<7I", *(0xFFFF0000 | n for n in (0x37F, 0x3800, 0x3FFF, 0x104)), 0x1006, 0xFFFF1234, 0x2000),
        ),
    ],
    ids=["16", "32"],
)
def test_environment_of_real_mode(prefix: str, words: bytes) -> None:
    """Linear addresses, of which the high part stands beside the opcode; they come back as they were."""
    machine = Machine(16)
    text = f"dbe3 d9e8 d8063412 {prefix} d9360020 dbe3 {prefix} d9260020 {prefix} d9360030 f4"
    machine.write(REAL_CODE, bytes.fromhex(text))
    machine.prepare([0] * 8, 2)
    assert machine.run() == S.EXIT_HLT
    assert machine.read(REAL_DATA + 0x2000, len(words)) == words
    assert machine.read(REAL_DATA + 0x3000, len(words)) == words


def test_sixteen_bit_addresses() -> None:
    """Operands by BX + SI and a segment, in real mode."""
    machine = Machine(16)
    machine.write(REAL_CODE, bytes.fromhex("dbe3 dd00 d8c0 dd5808 f4"))
    machine.prepare([0, 0, 0, 0x100, 0, 0, 0x20, 0x40], 2)
    machine.write(REAL_DATA + 0x120, struct.pack("<d", 1.25))
    assert machine.run() == S.EXIT_HLT
    assert machine.read(REAL_DATA + 0x128, 8) == struct.pack("<d", 2.5)
