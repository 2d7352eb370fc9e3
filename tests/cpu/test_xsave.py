"""FXSAVE and the XSAVE family: which bytes are written, what is restored, what is refused."""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features
from kvmfs.jit.raw import PLAIN

from .test_modes_decode import CODE as CODE32
from .test_modes_decode import Machine
from .test_system import System

pytestmark = pytest.mark.skipif(PLAIN, reason="a whole processor is slow in plain Python")

AREA = 0x150000
HEADER, YMM, PKRU = 512, 576, 2432
COMPACTED = 1 << 63
X87, SSE, AVX, KEYS = 1, 2, 4, 1 << 9
ALL = X87 | SSE | AVX | KEYS
FILL = 0xA5


@pytest.fixture
def guest() -> System:
    """With all components enabled, and an area full of other bytes but for its header."""
    guest = System()
    guest[S.CR4] |= S.CR4_OSXSAVE
    guest[S.XCR0], guest[S.MXCSR], guest[S.RBX] = ALL, 0x1F80, AREA
    for name in ("XSAVEC", "XGETBV1"):
        guest[S.FEATURES + features.word(name)] |= features.mask(name)
    guest.write(AREA, bytes([FILL]) * 4096)
    guest.write(AREA + HEADER, bytes(64))
    guest.execute("fninit; hlt")
    return guest


def set_all(guest: System) -> None:
    guest.execute("fninit; fld1; fldpi; hlt")
    for n in range(16):
        guest.write_cpu(S.VEC + 64 * n, bytes([n + 1]) * 32)
    guest[S.PKRU] = 0x55555540


def clear_all(guest: System) -> None:
    guest.execute("fninit; hlt")
    for n in range(16):
        guest.write_cpu(S.VEC + 64 * n, bytes(32))
    guest[S.PKRU] = 0


def state(guest: System) -> list[bytes]:
    vectors = [guest.read_cpu(S.VEC + 64 * n, 32) for n in range(16)]
    return [guest.read_cpu(S.FX, 5), guest.read_cpu(S.ST, 128), *vectors, guest.read_cpu(S.PKRU, 8)]


def do(guest: System, text: str, mask: int = ALL) -> None:
    assert guest.execute(f"mov eax, {mask}; xor edx, edx; {text}; hlt") == S.EXIT_HLT
    assert guest.read(guest[S.RIP] - 1, 1) == b"\xf4"


def header(guest: System) -> tuple[int, int]:
    return struct.unpack("<QQ", guest.read(AREA + HEADER, 16))


@pytest.mark.parametrize("save", ["xsave64", "xsaveopt64", "xsavec64", "xsaves64"])
def test_round_trip(guest: System, save: str) -> None:
    set_all(guest)
    before = state(guest)
    do(guest, f"{save} [rbx]")
    compacted = save in ("xsavec64", "xsaves64")
    assert header(guest) == (ALL, COMPACTED | ALL if compacted else 0)
    assert guest.read(AREA + YMM, 256) == b"".join(bytes([n + 1]) * 16 for n in range(16))
    assert guest.read(AREA + (YMM + 256 if compacted else PKRU), 8) == struct.pack("<Q", 0x55555540)
    clear_all(guest)
    do(guest, "xrstors64 [rbx]" if save == "xsaves64" else "xrstor64 [rbx]")
    assert state(guest) == before


def test_what_is_not_in_use(guest: System) -> None:
    """XSAVE writes it all the same, the others do not; restoring makes it initial."""
    guest.write_cpu(S.VEC, b"\1")
    do(guest, "xsaveopt64 [rbx]")
    assert header(guest) == (SSE, 0)
    assert guest.read(AREA + 32, 128) + guest.read(AREA + YMM, 256) == bytes([FILL]) * 384
    do(guest, "xsavec64 [rbx]")
    assert header(guest) == (SSE, COMPACTED | ALL)
    do(guest, "xsave64 [rbx]")
    assert guest.read(AREA + 32, 128) + guest.read(AREA + YMM, 256) == bytes(384)
    set_all(guest)
    do(guest, "xrstor64 [rbx]")
    expected = bytes([1]) + bytes(31)
    assert state(guest)[2:4] == [expected, bytes(32)]
    assert state(guest)[0] == struct.pack("<HHB", 0x37F, 0, 0)


def test_only_what_is_asked_for(guest: System) -> None:
    """XSTATE_BV keeps the bits of others, and their bytes stay."""
    set_all(guest)
    guest.write(AREA + HEADER, struct.pack("<Q", SSE | KEYS))
    do(guest, "xsave64 [rbx]", X87 | AVX)
    assert header(guest) == (ALL, 0)
    assert guest.read(AREA + 160, 256) == bytes([FILL]) * 256  # no SSE
    assert guest.read(AREA + 24, 4) == struct.pack("<I", 0x1F80)  # MXCSR belongs to AVX as well
    assert guest.read(AREA + 416, 96) == bytes([FILL]) * 96
    clear_all(guest)
    do(guest, "xrstor64 [rbx]", AVX)
    assert guest.read_cpu(S.VEC + 64, 32) == bytes(16) + b"\2" * 16
    assert struct.unpack("<HHB", guest.read_cpu(S.FX, 5)) == (0x37F, 0, 0)


def test_compacted_layout_is_that_of_the_area(guest: System) -> None:
    set_all(guest)
    do(guest, "xsavec64 [rbx]", SSE | KEYS)
    assert header(guest) == (SSE | KEYS, COMPACTED | SSE | KEYS)
    assert guest.read(AREA + YMM, 8) == struct.pack("<Q", 0x55555540)
    clear_all(guest)
    do(guest, "xrstor64 [rbx]")
    assert guest[S.PKRU] == 0x55555540
    assert guest.read_cpu(S.VEC, 32) == b"\1" * 16 + bytes(16)


def test_mxcsr(guest: System) -> None:
    """Part of SSE in the compacted format, loaded in any case in the standard one."""
    guest[S.MXCSR] = 0x1FC0
    do(guest, "xsavec64 [rbx]")
    assert header(guest)[0] == SSE
    guest[S.MXCSR] = 0x1F80
    do(guest, "xsavec64 [rbx]")
    assert header(guest)[0] == 0
    guest[S.MXCSR] = 0x1FC0
    do(guest, "xrstor64 [rbx]")
    assert guest[S.MXCSR] == 0x1F80
    guest.write(AREA + 24, struct.pack("<I", 0x1FA0))
    guest.write(AREA + HEADER, bytes(16))
    do(guest, "xrstor64 [rbx]", AVX)
    assert guest[S.MXCSR] == 0x1FA0


@pytest.mark.parametrize(
    ("text", "at", "word"),
    [
        ("xrstor64 [rbx]", HEADER, 1 << 62), ("xrstor64 [rbx]", HEADER + 8, 1), ("xrstor64 [rbx]", HEADER + 16, 1),
        ("xrstor64 [rbx]", HEADER + 8, COMPACTED | 1 << 40), ("xrstors64 [rbx]", HEADER, 0),
        ("xrstor64 [rbx]", 24, 0xFFFF0000), ("xsave64 [rbx + 32]", 0, 0), ("xsaves64 [rbx + 8]", 0, 0),
        ("fxrstor64 [rbx]", 24, 0xFFFF0000), ("fxsave64 [rbx + 8]", 0, 0),
    ],
)  # fmt: skip
def test_refused(guest: System, text: str, at: int, word: int) -> None:
    guest.write(AREA + at, struct.pack("<Q", word))
    guest.execute(f"mov eax, {ALL}; xor edx, edx; {text}; hlt")
    assert guest.frame(error=True)["vector"] == S.GP


def test_reserved_byte_of_the_compacted_header(guest: System) -> None:
    guest.write(AREA + HEADER + 8, struct.pack("<Q", COMPACTED))
    guest.write(AREA + HEADER + 63, b"\1")
    guest.execute(f"mov eax, {ALL}; xor edx, edx; xrstor64 [rbx]; hlt")
    assert guest.frame(error=True)["vector"] == S.GP


@pytest.mark.parametrize("name", ["xsave64", "xsavec64", "xrstor64", "xsaves64"])
def test_not_enabled(guest: System, name: str) -> None:
    guest[S.CR4] &= ~S.CR4_OSXSAVE
    guest.execute(f"{name} [rbx]; hlt")
    assert guest.frame()["vector"] == S.UD
    guest[S.CR4] |= S.CR4_OSXSAVE
    guest[S.CR0] |= S.CR0_TS
    guest.execute(f"{name} [rbx]; hlt")
    assert guest.frame()["vector"] == S.NM


def test_in_use(guest: System) -> None:
    """XGETBV of register 1."""
    guest.write_cpu(S.VEC + 64 + 16, b"\1")
    guest.execute("mov ecx, 1; xgetbv; hlt")
    assert guest[S.RAX] == AVX
    guest.execute("fld1; xgetbv; hlt")
    assert guest[S.RAX] == AVX | X87


def test_supervisor_only(guest: System) -> None:
    guest.user()
    guest.execute("xsaves64 [rbx]")
    assert guest.frame(error=True)["vector"] == S.GP


def test_pointers_of_amd(guest: System) -> None:
    """Its processors save the pointers of an exception that is pending, and zeros otherwise."""
    do(guest, "fld1; fxsave64 [rbx]")
    assert guest.read(AREA + 8, 8) != bytes(8)
    guest[S.IS_AMD] = 1
    do(guest, "fld1; fxsave64 [rbx]")
    assert guest.read(AREA + 6, 18) == bytes(18)


def test_fast_fxsave(guest: System) -> None:
    """EFER.FFXSR: the kernel's does not move XMM registers, user code's does."""
    set_all(guest)
    guest[S.EFER] |= S.EFER_FFXSR
    do(guest, "fxsave64 [rbx]")
    assert guest.read(AREA + 160, 256) == bytes([FILL]) * 256
    assert guest.read(AREA + 24, 4) == struct.pack("<I", 0x1F80)
    do(guest, "fxrstor64 [rbx]")
    assert guest.read_cpu(S.VEC, 16) == b"\1" * 16
    guest.user()
    guest.execute("fxsave64 [rbx]; ud2")
    assert guest.read(AREA + 160, 16) == b"\1" * 16


def test_outside_64_bit_mode() -> None:
    """Pointers have selectors, and there are eight vector registers."""
    machine = Machine(32)
    machine.write(CODE32, bytes.fromhex("dbe3 d9e8 d843 08 0fae03 f4"))  # fninit; fld1; fadd [ebx+8]; fxsave [ebx]
    machine.prepare([0, 0, 0, 0x20000, 0x30000, 0, 0, 0], 2)
    machine[S.CR4] |= S.CR4_OSFXSR
    machine[S.MXCSR] = 0x1F80
    for n in range(16):
        machine.write_cpu(S.VEC + 64 * n, bytes([n + 1]) * 16)
    machine.write(0x20000, bytes([FILL]) * 512)
    machine.derive()
    assert machine.run() == S.EXIT_HLT
    image = machine.read(0x20000, 512)
    assert struct.unpack_from("<HIHxxIHxx", image, 6) == (0x043, CODE32 + 4, 8, 0x20008, 8)
    assert image[160:288] == b"".join(bytes([n + 1]) * 16 for n in range(8))
    assert image[288:] == bytes([FILL]) * 224
