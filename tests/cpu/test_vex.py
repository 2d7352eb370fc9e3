"""VEX decoding: which encodings are valid and how long, what modes allow them, memory operands that fault."""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit import state as S

from . import native
from .forms import FREE, RBX, encode, iced, opcodes
from .guest import RAM
from .native import HAS_AVX
from .test_system import CODE, STACK
from .whole import DATA, Processor, both, contexts, differences

pytestmark = pytest.mark.skipif(not HAS_AVX, reason="the host has no AVX")

ABSENT = (
    "AVX512",
    "AVX_VNNI",
    "AVX_IFMA",
    "AVX_NE",
    "AMX",
    "CMPCCXADD",
    "MSR_IMM",
    "SM3",
    "SM4",
    "KNC",
    "APX",
    "USER_MSR",
)
"""VEX-encoded sets that we do not have whatever the host has: opmasks, and what came after AVX2."""
SIGILL = 4
WILD = {(1, 0xF7)}  # VMASKMOVDQU stores at RDI


@functools.cache
def processor() -> Processor:
    return Processor()


def later(code: bytes) -> bool:
    """Whether the encoding is an instruction of a set that guests never see here."""
    features = next(iter(iced.Decoder(64, code))).cpuid_features()
    names = [name for name, value in vars(iced.CpuidFeature).items() if value in features]
    return any(name.startswith(ABSENT) for name in names)


def everything(escape: int, memory: bool) -> Iterator[bytes]:
    """All that is valid of opcode, prefix, W and L, and a tenth of the rest; vvvv is 1111b in half of them."""
    rng = random.Random(f"{escape} {memory}")
    for opcode in range(256):
        if (escape, opcode) in WILD:
            continue
        for third in range(32):
            vvvv = rng.choice((0, rng.choice(FREE)))
            reg, rm = (rng.choice(FREE), RBX if memory else rng.choice(FREE))
            inverted = 0xE0 & ~((0x80 if reg > 7 else 0) | (0x20 if rm > 7 else 0))
            modrm = (0 if memory else 0xC0) | (reg & 7) << 3 | rm & 7
            bits = (third >> 3 & 1) << 7 | (vvvv ^ 15) << 3 | third & 7
            code = bytes([0xC4, inverted | escape, bits, opcode, modrm, rng.randrange(256)])
            if rng.random() < 0.1 or not next(iter(iced.Decoder(64, code))).is_invalid:
                yield code


@pytest.mark.parametrize("memory", [False, True], ids=["register", "memory"])
@pytest.mark.parametrize("escape", [1, 2, 3])
def test_each_encoding_is_valid_or_not_as_on_the_host(escape: int, memory: bool) -> None:
    """#UD where iced-x86 sees no instruction, else the length that it sees and the results of the host."""
    wrong = []
    for code in everything(escape, memory):
        decoded = next(iter(iced.Decoder(64, code)))
        start = contexts("encodings", 1)
        start["memory"][0, 0] &= np.uint64(0xFFC0)  # for VLDMXCSR
        if decoded.is_invalid:  # some hosts are laxer about W and about registers that are not there
            processor().execute_all(code, start)
            if start["signal"][0] != SIGILL:
                wrong.append(f"{code.hex()} is no instruction")
        elif not later(code):
            expected, found = both(processor(), code[: decoded.len], start)
            if lines := differences(expected, found):
                wrong.append(f"{code.hex()} {decoded}: " + " ".join(lines))
    assert not wrong, "\n".join(wrong[:30]) + f"\n{len(wrong)} in all"


@pytest.mark.parametrize("prefix", ["66", "f2", "f3", "f0", "48", "40"])
def test_no_prefix_before_vex(prefix: str) -> None:
    """LOCK, REX and the mandatory prefixes are #UD; a segment or an address size is not."""
    for code in ("c5f1fcc2", "c4e270f2c2"):
        expected, found = both(processor(), bytes.fromhex(prefix + code), contexts("prefix", 2))
        assert list(found["signal"]) == list(expected["signal"]) == [SIGILL, SIGILL]


@pytest.mark.parametrize("prefix", ["67", "3e", "2e"])
def test_prefixes_without_effect(prefix: str) -> None:
    expected, found = both(processor(), bytes.fromhex(prefix + "c5f1fcc2"), contexts("prefix", 4))
    assert differences(expected, found) == []


PADDB, ANDN = "c5f1fcc2", "c4e270f2c2"  # vpaddb xmm0, xmm1, xmm2; andn eax, ecx, edx


@pytest.mark.parametrize(
    ("field", "value", "vector"),
    [
        (S.CR0, S.CR0_TS, S.NM),
        (S.CR4, S.CR4_OSXSAVE, S.UD),
        (S.XCR0, 4, S.UD),
        (S.XCR0, 2, S.UD),
        (S.CR0, S.CR0_EM, None),
    ],
    ids=["TS", "OSXSAVE", "XCR0.AVX", "XCR0.SSE", "EM"],
)
def test_vector_state_must_be_on(field: int, value: int, vector: int | None) -> None:
    """The bits turned over; general registers need none of it."""
    guest = Processor()
    guest[field] ^= value
    for code, expected in ((PADDB, vector), (ANDN, None)):
        guest.write(CODE, bytes.fromhex(code) + b"\xf4")
        guest[S.RIP], guest[S.RSP] = CODE, STACK
        guest.derive()
        assert guest.run() == S.EXIT_HLT
        if expected is None:
            assert guest[S.RIP] == CODE + len(code) // 2 + 1
        else:
            assert guest.frame()["vector"] == expected


# Memory


def run(guest: Processor, code: str | bytes) -> None:
    guest.write(CODE, (bytes.fromhex(code) if isinstance(code, str) else code) + b"\xf4")
    guest[S.RIP], guest[S.RSP] = CODE, STACK
    assert guest.run() == S.EXIT_HLT


def test_page_crossing() -> None:
    """32 bytes over the end of a page, twice: by the slow path and when both pages are known."""
    guest = Processor()
    data = bytes(range(32))
    for _ in range(2):
        guest.write(DATA + 4096 - 12, data)
        guest[S.RBX], guest[S.RCX] = DATA + 4096 - 12, DATA + 8192 - 20
        run(guest, "c5fe6f0bc5fe7f09")  # vmovdqu ymm1, [rbx]; vmovdqu [rcx], ymm1
        assert guest.read_cpu(S.VEC + 64, 32) == data
        assert guest.read(DATA + 8192 - 20, 32) == data
        guest.write(DATA + 8192 - 20, bytes(32))


@pytest.mark.parametrize(
    ("code", "size"), [("c5fc280b", 32), ("c5f8280b", 16), ("c5fd7f0b", 32), ("c5f9e70b", 16), ("c4e27d2a0b", 32)]
)
def test_aligned_moves(code: str, size: int) -> None:
    """VMOVAPS, VMOVDQA, VMOVNTDQ, VMOVNTDQA: #GP off the operand's size."""
    guest = Processor()
    guest[S.RBX] = DATA + size
    run(guest, code)
    assert guest[S.RIP] == CODE + len(code) // 2 + 1
    guest[S.RBX] = DATA + size // 2
    run(guest, code)
    assert guest.frame(error=True)["vector"] == S.GP


def test_masked_moves_touch_only_their_elements() -> None:
    """At the end of RAM: what the mask leaves out cannot fault, and a store that faults stores nothing."""
    guest = Processor()
    guest[S.RBX] = RAM - 16
    guest.write(RAM - 16, struct.pack("<4I", 1, 2, 3, 4))
    guest.write_cpu(S.VEC + 64, struct.pack("<8I", 1 << 31, 0, 1 << 31, 1 << 31, 0, 0, 0x7FFFFFFF, 0))
    run(guest, "c4e2758c13")  # vpmaskmovd ymm2, ymm1, [rbx]
    assert guest.read_cpu(S.VEC + 128, 32) == struct.pack("<8I", 1, 0, 3, 4, 0, 0, 0, 0)
    guest.write_cpu(S.VEC + 128, struct.pack("<8I", *range(11, 19)))
    run(guest, "c4e2758e13")  # vpmaskmovd [rbx], ymm1, ymm2
    assert guest.read(RAM - 16, 16) == struct.pack("<4I", 11, 2, 13, 14)
    guest.write_cpu(S.VEC + 64, struct.pack("<8i", *[-1] * 8))
    guest.write_cpu(S.VEC + 128, struct.pack("<8I", *range(21, 29)))
    run(guest, "c4e2758e13")
    assert (guest.frame(error=True)["vector"], guest[S.CR2]) == (S.PF_FAULT, RAM)
    assert guest.read(RAM - 16, 16) == struct.pack("<4I", 11, 2, 13, 14)


GATHERS = [opcode for opcode in opcodes("AVX2", vex=True) if opcode.has("VSIB")]


@pytest.mark.parametrize("opcode", GATHERS, ids=lambda opcode: opcode.name)
def test_gathers_as_the_host(opcode) -> None:
    rng, numbers = np.random.default_rng(5), random.Random(opcode.name)
    start = contexts(opcode.name, 40)
    for scale in range(4):
        reg, index, mask = numbers.sample(range(16), 3)
        room = 128 - 8 - 16
        size = 8 if opcode.has("VSIB64") else 4
        kind = np.int64 if size == 8 else np.int32
        words = rng.integers(0, (room >> scale) + 1, (40, 32 // size)).astype(kind).view(np.uint64).reshape(40, 2, 2)
        start["vector"][:, index], start["upper"][:, index] = words[:, 0], words[:, 1]
        code = gather(opcode, reg, index, mask, scale, 16)
        expected, found = both(processor(), code, start)
        assert differences(expected, found) == [], code.hex()
        assert not expected["signal"].any()


def gather(opcode, reg: int, index: int, mask: int, scale: int, displacement: int) -> bytes:
    """Machine code with memory at [rbx + index << scale + displacement]."""
    code = bytearray(
        encode(opcode, reg=reg, rm=bytes([0x44, scale << 6 | (index & 7) << 3 | RBX, displacement]), vvvv=mask)
    )
    if index > 7:
        code[1] &= ~0x40
    return bytes(code)


@pytest.mark.parametrize("same", [(1, 1, 2), (1, 2, 1), (1, 2, 2)], ids=["index", "mask", "both"])
def test_gather_wants_three_registers(same: tuple[int, int, int]) -> None:
    """Destination, index and mask must differ."""
    expected, found = both(processor(), gather(GATHERS[0], *same, 0, 0), contexts("same", 2))
    assert list(expected["signal"]) == list(found["signal"]) == [SIGILL, SIGILL]


def test_gather_that_faults_keeps_what_it_has() -> None:
    """The third element is beyond RAM: two have arrived, their masks are clear; afterwards it goes on from there."""
    guest = Processor()
    guest[S.RBX] = 0
    places = [DATA, DATA + 8, RAM + 64, DATA + 16]
    guest.write(DATA, struct.pack("<4Q", 101, 0, 103, 0)[:8] + struct.pack("<2Q", 102, 104))
    guest.write_cpu(S.VEC + 64, struct.pack("<4Q", *places))
    guest.write_cpu(S.VEC + 128, struct.pack("<4q", -1, -1, -1, -(1 << 63)))
    guest.write_cpu(S.VEC, struct.pack("<4Q", 1, 2, 3, 4))
    code = "c4e2ed91040b"  # vpgatherqq ymm0, [rbx + ymm1], ymm2
    run(guest, code)
    assert (guest.frame(error=True)["vector"], guest[S.CR2]) == (S.PF_FAULT, RAM + 64)
    assert guest.read_cpu(S.VEC, 32) == struct.pack("<4Q", 101, 102, 3, 4)
    assert guest.read_cpu(S.VEC + 128, 32) == struct.pack("<4q", 0, 0, -1, -1)
    guest.write_cpu(S.VEC + 64 + 16, struct.pack("<Q", DATA + 8))
    guest.write_cpu(S.VEC + 64, struct.pack("<2Q", RAM + 64, RAM + 64))
    run(guest, code)
    assert guest.read_cpu(S.VEC, 32) == struct.pack("<4Q", 101, 102, 102, 104)
    assert guest.read_cpu(S.VEC + 128, 32) == bytes(32)


def test_compatibility_mode() -> None:
    """C5 with what would be a register form of LDS is VEX there; registers above 7 are not there, W does not matter."""
    guest = Processor()
    guest.segment(S.CS, 0x08, 0xC09B)
    guest.derive()
    guest.write_cpu(S.VEC + 64, bytes([1] * 16))
    guest.write_cpu(S.VEC + 128, bytes([2] * 16))
    guest[S.RCX], guest[S.RDX] = 0xF0, 0xFFFFFFFFF
    run(guest, PADDB)
    assert guest.read_cpu(S.VEC, 32) == bytes([3] * 16 + [0] * 16)
    run(guest, "c4e2f0f2c2")  # andn with W
    assert guest[S.RAX] == 0xFFFFFF0F
    run(guest, "c4e131fcc2")  # vvvv's high bit is ignored: xmm1
    assert guest.read_cpu(S.VEC, 16) == bytes([3] * 16)


def test_zeroing() -> None:
    """VZEROUPPER keeps the low halves, VZEROALL nothing."""
    for code, kept in (("c5f877", 16), ("c5fc77", 0)):
        start = contexts(code, 1)
        expected, found = both(processor(), bytes.fromhex(code), start)
        assert differences(expected, found) == []
        assert not found["upper"].any()
        assert bool(found["vector"].any()) == bool(kept)


def test_native_contexts_hold_ymm() -> None:
    """The reference itself: an instruction on 256 bits moves both halves."""
    start = native.blank(1)
    start["vector"][0, 2], start["upper"][0, 2] = (1, 2), (3, 4)
    native.execute(bytes.fromhex("c5fd6fca"), start)  # vmovdqa ymm1, ymm2
    assert (start["vector"][0, 1].tolist(), start["upper"][0, 1].tolist()) == ([1, 2], [3, 4])
