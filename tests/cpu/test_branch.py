"""Branches: where they go, at which operand size, and what they refuse."""

from __future__ import annotations

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import record as R

from .machine import LENGTH, RIP, Machines
from .memory import PAGE, Memory

NEXT = RIP + LENGTH
NONCANONICAL = 0x0000_8000_0000_0000

# Condition code n / 2 of RFLAGS (SDM vol. 1, appendix B); odd codes are the negations.
CONDITIONS = [
    lambda f: f & S.OF,
    lambda f: f & S.CF,
    lambda f: f & S.ZF,
    lambda f: f & (S.CF | S.ZF),
    lambda f: f & S.SF,
    lambda f: f & S.PF,
    lambda f: bool(f & S.SF) != bool(f & S.OF),
    lambda f: f & S.ZF or bool(f & S.SF) != bool(f & S.OF),
]


def machine(*, osize: int = 8, asize: int = 8, imm: int = 0, limit: int = 0xFFFFF, **registers: int) -> Machines:
    """One vCPU with a branch's record; smaller operand sizes mean a 32-bit protected-mode code segment."""
    m = Machines(1)
    m.byte(R.OSIZE)[:], m.byte(R.ASIZE)[:] = osize, asize
    m.field(R.IMM)[:] = imm
    for name, value in registers.items():
        m.word(getattr(S, name.upper()))[:] = value
    if osize < 8:
        m.word(S.HFLAGS)[:] = S.MODE_PROTECTED | S.MODE_CODE32 | S.MODE_STACK32
        m.word(S.CS + S.LIMIT)[:] = limit
        m.word(S.SS + S.LIMIT)[:] = 0xFFFFFFFF
        m.word(S.SS + S.ATTR)[:] = 0xC093
        m.word(S.BLOCK_RIP)[:] = 0x1000
    return m


def rip(m: Machines) -> int:
    return int(m.word(S.RIP)[0])


def went_to(m: Machines, name: str) -> int:
    assert m.run(name)[0] == 0
    assert m.word(S.LEAVE)[0] == S.LEAVE_NEXT
    return rip(m)


def assert_refused(m: Machines, name: str, at: int) -> None:
    """#GP(0) with RIP at the branch."""
    assert m.run(name)[0] == 0
    assert m.word(S.LEAVE)[0] == S.LEAVE_EXCEPTION
    assert (m.word(S.EXC_VECTOR)[0], m.word(S.EXC_ERROR)[0], m.word(S.EXC_HAS_ERROR)[0]) == (S.GP, 0, 1)
    assert rip(m) == at


@pytest.mark.parametrize("code", range(16))
def test_jcc_takes_its_condition(code: int) -> None:
    for flags in range(64):
        bits = sum(bit for n, bit in enumerate((S.CF, S.PF, S.AF, S.ZF, S.SF, S.OF)) if flags >> n & 1)
        m = machine(imm=-0x20)
        m.set_flags(m.word(S.ZERO) + bits)
        taken = bool(CONDITIONS[code >> 1](bits)) != bool(code & 1)
        assert went_to(m, f"j{code}") == (NEXT - 0x20 if taken else NEXT)


@pytest.mark.parametrize(("osize", "target"), [(2, 0x1004 - 0x2000 & 0xFFFF), (4, 0x1004 - 0x2000 & 0xFFFFFFFF)])
def test_a_target_is_cut_to_the_operand_size(osize: int, target: int) -> None:
    assert went_to(machine(osize=osize, imm=-0x2000, limit=0xFFFFFFFF), "jmp") == target


def test_indirect_targets_are_cut_too() -> None:
    m = machine(osize=2, rax=0x12345678)
    m.field(R.SRC)[:] = m.operand("rax")
    assert went_to(m, "jmp_ind") == 0x5678


def test_a_target_must_be_canonical() -> None:
    m = machine(rax=NONCANONICAL)
    m.field(R.SRC)[:] = m.operand("rax")
    assert_refused(m, "jmp_ind", RIP)
    assert_refused(machine(imm=NONCANONICAL), "jmp", RIP)
    m = machine(rax=NONCANONICAL, cr4=S.CR4_LA57)
    m.field(R.SRC)[:] = m.operand("rax")
    assert went_to(m, "jmp_ind") == NONCANONICAL


def test_a_target_must_be_within_the_code_segment() -> None:
    assert went_to(machine(osize=4, imm=0x100, limit=0x1104), "jmp") == 0x1104
    assert_refused(machine(osize=4, imm=0x100, limit=0x1103), "jmp", 0x1000)


@pytest.mark.parametrize(
    ("name", "zf", "taken"),
    [
        ("loop", 0, True),
        ("loop", 1, True),
        ("loope", 0, False),
        ("loope", 1, True),
        ("loopne", 0, True),
        ("loopne", 1, False),
    ],
)
def test_loop_counts_and_looks_at_zf(name: str, zf: int, taken: bool) -> None:
    m = machine(imm=0x40, rcx=5)
    m.set_flags(m.word(S.ZERO) + zf * S.ZF)
    assert went_to(m, name) == (NEXT + 0x40 if taken else NEXT)
    assert m.word(S.RCX)[0] == 4


@pytest.mark.parametrize(
    ("asize", "before", "after", "taken"),
    [
        (8, 1, 0, False),
        (8, 0, -1, True),
        (4, 0x7_0000_0001, 0, False),
        (4, 0x7_0000_0000, 0xFFFFFFFF, True),
        (2, 0x7_0001, 0x7_0000, False),
        (2, 0x7_0000, 0x7_FFFF, True),
    ],
)
def test_loop_counts_at_the_address_size(asize: int, before: int, after: int, taken: bool) -> None:
    m = machine(asize=asize, imm=0x40, rcx=before)
    assert went_to(m, "loop") == (NEXT + 0x40 if taken else NEXT)
    assert m.word(S.RCX)[0] == after


def test_a_refused_loop_has_not_counted() -> None:
    m = machine(osize=4, asize=4, imm=0x100, limit=0x10FF, rcx=5)
    assert_refused(m, "loop", 0x1000)
    assert m.word(S.RCX)[0] == 5


@pytest.mark.parametrize(
    ("asize", "rcx", "taken"), [(8, 1 << 32, False), (4, 1 << 32, True), (2, 0x10000, True), (8, 0, True)]
)
def test_jrcxz_looks_at_the_address_size(asize: int, rcx: int, taken: bool) -> None:
    assert went_to(machine(asize=asize, imm=0x40, rcx=rcx), "jrcxz") == (NEXT + 0x40 if taken else NEXT)


@pytest.mark.parametrize("name", ["call_rel", "call_ind"])
def test_call_pushes_the_return_address_and_ret_pops_it(name: str) -> None:
    m = machine(imm=0x100, rax=NEXT + 0x100)
    m.field(R.SRC)[:] = m.operand("rax")
    memory = Memory(m, 1)
    top = memory.address + PAGE
    m.word(S.RSP)[:] = top
    assert went_to(m, name) == NEXT + 0x100
    assert m.word(S.RSP)[0] == top - 8
    assert memory.word(top - 8) == NEXT
    assert went_to(m, "ret") == NEXT
    assert m.word(S.RSP)[0] == top


def test_ret_releases_arguments() -> None:
    m = machine(imm=0x18)
    memory = Memory(m, 1)
    m.word(S.RSP)[:] = memory.address
    memory.space[:8] = NEXT.to_bytes(8, "little")
    assert went_to(m, "ret_imm") == NEXT
    assert m.word(S.RSP)[0] == memory.address + 8 + 0x18


def test_a_32_bit_call_pushes_4_bytes() -> None:
    m = machine(osize=4, imm=0x100)
    memory = Memory(m, 1)
    m.word(S.RSP)[:] = memory.address + 8
    memory.space[:8] = b"\xff" * 8
    assert went_to(m, "call_rel") == 0x1104
    assert memory.space[:8] == b"\xff" * 4 + (0x1004).to_bytes(4, "little")
    assert went_to(m, "ret") == 0x1004
    assert m.word(S.RSP)[0] == memory.address + 8


def test_refused_calls_and_returns_leave_the_stack_alone() -> None:
    m = machine(rax=NONCANONICAL)
    m.field(R.SRC)[:] = m.operand("rax")
    memory = Memory(m, 1)
    m.word(S.RSP)[:] = memory.address + 8
    memory.space[8:16] = NONCANONICAL.to_bytes(8, "little")
    assert_refused(m, "call_ind", RIP)
    assert m.word(S.RSP)[0] == memory.address + 8
    assert memory.word(memory.address) == 0
    m.word(S.LEAVE)[:] = S.LEAVE_NEXT
    assert_refused(m, "ret", RIP)
    assert m.word(S.RSP)[0] == memory.address + 8


def test_a_call_whose_push_faults_has_not_happened() -> None:
    m = machine(imm=0x100)
    memory = Memory(m, 2, present=range(1, 2))
    m.word(S.RSP)[:] = memory.address + PAGE
    assert m.run("call_rel")[0] == 0
    assert (m.word(S.LEAVE)[0], m.word(S.EXC_VECTOR)[0]) == (S.LEAVE_EXCEPTION, 14)
    assert rip(m) == RIP
    assert m.word(S.RSP)[0] == memory.address + PAGE
