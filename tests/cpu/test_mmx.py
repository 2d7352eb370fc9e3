"""MMX instructions against the host CPU: every row of opcodes_mmx.py, in register and memory form."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import opcodes_mmx, optable
from kvmfs.jit.raw import PLAIN

from .compare import interesting
from .test_float import numbers, states
from .test_system import CODE, System
from .test_x87 import DATA, RBX, ST, compare, contexts

pytestmark = pytest.mark.skipif(PLAIN, reason="a whole processor is slow in plain Python")

PREFIX = {"NP": b"", "66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
IMMEDIATES = (0, 1, 7, 0x1B, 0x93, 8, 15, 16, 33, 64, 200)
REG, RM = 1, 2
COUNT = 40


def encodings(row: optable.Row, escape: bytes) -> Iterator[bytes]:
    """Register form, memory form at [rbx], 64-bit operand size; a few immediates."""
    reg = REG if row.reg is None else row.reg
    kinds = [operand[0] for operand in row.operands]
    tails = [bytes([n]) for n in IMMEDIATES] if "I" in kinds else [b""]
    if not kinds:
        yield PREFIX[row.prefix] + escape + bytes([row.opcode])
        return
    for wide in (b"", b"\x48") if any(operand.endswith("y") for operand in row.operands) or "M" in kinds else (b"",):
        head = PREFIX[row.prefix] + wide + escape + bytes([row.opcode])
        for tail in tails:
            if row.form != "m" and "M" not in kinds:
                yield head + bytes([0xC0 | reg << 3 | RM]) + tail
                yield head + bytes([0xC0 | reg << 3 | reg]) + tail
            if row.form != "r":
                yield head + bytes([reg << 3 | RBX]) + tail


def forms() -> Iterator[tuple[str, list[bytes]]]:
    escapes = {1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
    for number, _, text in opcodes_mmx.SECTIONS:
        escape = escapes[number]
        for row in optable.parse(text):
            yield f"{row.prefix}.{row.opcode:02X}{row.form} {row.mnemonic}", list(encodings(row, escape))


def fill(seed: str) -> np.ndarray:
    """x87 states whose registers hold integers, or pairs of floating-point numbers."""
    start = contexts(seed, COUNT)
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    for index in range(8):
        words = interesting(rng, COUNT)
        start["fx"][:, ST + 16 * index : ST + 16 * index + 8] = words.view(np.uint8).reshape(COUNT, 8)
    counts = rng.integers(0, 70, COUNT // 2, np.uint64).view(np.uint8).reshape(-1, 8)
    start["fx"][: COUNT // 2, ST + 16 * RM : ST + 16 * RM + 8] = counts
    single = numbers(rng, COUNT * 64, 8, 23)
    pairs = (single[::2] | single[1::2] << np.uint64(32)).reshape(COUNT, 16, 2)
    double = numbers(rng, COUNT * 32, 11, 52).reshape(COUNT, 16, 2)
    start["vector"] = np.where(rng.integers(0, 2, (COUNT, 1, 1)) == 0, pairs, double)
    start["mxcsr"][:, 0] = states(rng, COUNT)
    return start


@pytest.mark.parametrize(("name", "codes"), list(forms()), ids=[name for name, _ in forms()])
def test_as_the_host(name: str, codes: list[bytes]) -> None:
    for code in codes:
        compare(code, fill(f"{name} {code.hex()}"))


@pytest.fixture
def guest() -> System:
    return System()


@pytest.mark.parametrize("text", ["movq mm0, [rax]", "paddb mm0, [rax]", "movq [rax], mm0", "movd [rax], mm0"])
def test_fault_changes_nothing(guest: System, text: str) -> None:
    """Not even the top of the stack and the tags."""
    guest.execute("fninit; fld1; hlt")
    assert guest.execute(f"mov rax, {1 << 30}; {text}; hlt") == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.PF_FAULT
    assert guest.read_cpu(S.FX + 2, 3) == bytes([0, 7 << 3, 0x80])


def test_pending_exception_comes_first(guest: System) -> None:
    """#MF, not the page fault."""
    guest.execute("fninit; hlt")
    text = f"mov ebx, {DATA}; mov word ptr [rbx], 0x37b; fldcw [rbx]; fld1; fldz; fdivp st(1), st; paddb mm0, [rax]"
    assert guest.execute(f"mov rax, {1 << 30}; {text}; hlt") == S.EXIT_HLT
    assert guest.frame()["vector"] == S.MF


@pytest.mark.parametrize(("bit", "vector"), [(S.CR0_EM, S.UD), (S.CR0_TS, S.NM)])
def test_not_available(guest: System, bit: int, vector: int) -> None:
    guest[S.CR0] |= bit
    for text in ("paddb mm0, mm1", "emms", "movq [rsp - 8], mm0"):
        guest.execute(f"{text}; hlt")
        frame = guest.frame()
        assert (frame["vector"], frame["rip"]) == (vector, CODE)
