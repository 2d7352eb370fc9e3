"""Task switches: SDM vol. 3, ch. 8."""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S

from .modes import Protected, descriptor, gate

FREE = Protected.FREE
NEW = 0x20000  # the second task's code


@pytest.fixture
def guest() -> Protected:
    guest = Protected()
    guest.task(guest.TSS2, eip=NEW, eax=0xA, edi=0xD, eflags=2 | S.CF)
    guest.write(NEW, b"\xf4")
    return guest


def saved(guest: Protected, offset: int, size: int = 4) -> int:
    return int.from_bytes(guest.read(guest.TSS + offset, size), "little")


JUMP, CALL = (f".byte {op}; .long 0; .word {Protected.TR2}" for op in ("0xea", "0x9a"))


def test_jump_to_a_tss(guest: Protected) -> None:
    """The old task is no longer busy and has no link; TS is set (8.2.1, table 8-2)."""
    guest.set(ebx=0xB)
    assert guest.execute(JUMP) == S.EXIT_HLT
    assert (guest[S.RIP], guest.eax, guest.edi, guest.esp) == (NEW + 1, 0xA, 0xD, 0x30000)
    assert (guest[S.TR + S.SEL], guest[S.TR + S.BASE]) == (guest.TR2, guest.TSS2)
    assert (guest.described(guest.TR), guest.described(guest.TR2)) == (0x89, 0x8B)
    assert guest[S.CR0] & S.CR0_TS
    assert guest.rflags & (S.NT | S.CF) == S.CF
    assert saved(guest, 0x20) == guest.CODE + 7
    assert (saved(guest, 0x34), saved(guest, 0x38), saved(guest, 0x4C)) == (0xB, guest.STACK, guest.CS0)


def test_call_and_iret(guest: Protected) -> None:
    """A nested task: NT and a link; IRET goes back by it, and saves the nested task without NT."""
    guest.write(NEW, b"\xcf\xf4")
    assert guest.execute(CALL + "; mov ecx, 5; hlt") == S.EXIT_HLT
    assert (guest.ecx, guest[S.TR + S.SEL], guest.esp) == (5, guest.TR, guest.STACK)
    assert guest.read(guest.TSS2, 2) == struct.pack("<H", guest.TR)
    assert (guest.described(guest.TR), guest.described(guest.TR2)) == (0x8B, 0x89)
    assert struct.unpack("<II", guest.read(guest.TSS2 + 0x20, 8)) == (NEW + 1, 2 | S.CF)
    assert not guest.rflags & S.NT


def test_nested_task_is_busy(guest: Protected) -> None:
    guest.execute(CALL)
    assert (guest.described(guest.TR), guest.described(guest.TR2)) == (0x8B, 0x8B)
    assert guest.rflags & S.NT


def test_exception_by_a_task_gate(guest: Protected) -> None:
    """The error code is pushed on the new task's stack; the old one has RF saved (6.14, 17.3.1.1)."""
    guest.interrupt(S.GP, gate(guest.TR2, 0, 0x85))
    assert guest.execute("mov eax, 0x200; mov ds, eax") == S.EXIT_HLT
    assert (guest[S.RIP], guest.words(1, 4), guest.esp) == (NEW + 1, [0x200], 0x30000 - 4)
    assert saved(guest, 0x20) == guest.CODE + 5
    assert saved(guest, 0x24) & S.RF
    assert guest.rflags & S.NT


def test_external_interrupt_by_a_task_gate(guest: Protected) -> None:
    guest.interrupt(0x48, gate(guest.TR2, 0, 0x85))
    guest.rflags = S.IF | 2
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x48 + 1, S.REQ_EVENT
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert (guest[S.RIP], saved(guest, 0x20)) == (NEW + 1, guest.CODE)
    assert guest.esp == 0x30000


def test_task_gate_by_call(guest: Protected) -> None:
    guest.describe(FREE, gate(guest.TR2, 0, 0xE5))
    guest.level(3)
    assert guest.execute(f".byte 0x9a; .long 0; .word {FREE | 3}") == S.EXIT_HLT
    assert (guest[S.TR + S.SEL], guest[S.CPL]) == (guest.TR2, 0)


def test_16_bit_tss(guest: Protected) -> None:
    """14 words; FS and GS are null, upper halves of registers are cleared."""
    words = [NEW & 0xFFFF, 2, 1, 2, 3, 4, 0x3000, 6, 7, 8, guest.DS0, FREE, guest.DS0, guest.DS0, 0]
    guest.describe(FREE, descriptor(NEW, 0xFFFF, 0x9B))
    guest.write(guest.TSS16 + 0x0E, struct.pack("<15H", *words))
    guest.set(eax=0xFFFFFFFF)
    assert guest.execute(f".byte 0xea; .long 0; .word {guest.TR16}") == S.EXIT_HLT
    assert (guest.eax, guest.ecx, guest.edi, guest.fs, guest.gs) == (1, 2, 8, 0, 0)
    assert (guest[S.RIP], guest.cs) == (1, FREE)
    assert guest.described(guest.TR16) == 0x83


def test_ldt_and_cr3_of_the_new_task(guest: Protected) -> None:
    """The LDT is loaded before the segments that come from it; CR3 when paging is on."""
    guest.describe(FREE, descriptor(0x7000, 0x0F, 0x82))
    guest.write(0x7000, bytes(8) + descriptor(0, 0xFFFFF, 0x93, 0xC))
    guest.write(0x6000, struct.pack("<I", 0x83))
    guest.task(guest.TSS2, eip=NEW, ldt=FREE, fs=0xC, cr3=0x6000)
    guest.write(0x5000, struct.pack("<I", 0x83))
    guest[S.CR4], guest[S.CR3] = S.CR4_PSE, 0x5000
    guest[S.CR0] |= S.CR0_PG
    assert guest.execute(JUMP) == S.EXIT_HLT
    assert (guest.fs, guest[S.LDTR + S.BASE], guest[S.CR3]) == (0xC, 0x7000, 0x6000)


def test_debug_trap(guest: Protected) -> None:
    """The T bit: #DB with DR6.BT before the new task's first instruction (17.3.1.5)."""
    guest.task(guest.TSS2, eip=NEW, flag=1)
    assert guest.execute(JUMP) == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.DB, [NEW])
    assert guest[S.DR6] & 1 << 15


def test_a_task_in_virtual_8086_mode(guest: Protected) -> None:
    guest.task(guest.TSS2, eip=0x10, eflags=2 | S.VM86, cs=0x3000, ss=0x4000, ds=0x2000, es=0x2000, fs=0, gs=0)
    guest.write(0x30010, b"\x0f\x0b")
    assert guest.execute(JUMP) == S.EXIT_HLT
    frame = guest.words(9, 4)
    assert (guest.vector, frame[:2], frame[4:]) == (S.UD, [0x10, 0x3000], [0x4000, 0x2000, 0x2000, 0, 0])


BEFORE = {
    "beyond the GDT": (lambda g: None, 0x200, S.GP),
    "in the LDT": (lambda g: None, 0x34, S.GP),
    "busy": (lambda g: None, Protected.TR, S.GP),
    "not present": (lambda g: g.describe(g.TR2, descriptor(g.TSS2, 0x67, 0x09)), Protected.TR2, S.NP),
    "too small": (lambda g: g.describe(g.TR2, descriptor(g.TSS2, 0x66, 0x89)), Protected.TR2, S.TS),
}


@pytest.mark.parametrize("name", BEFORE)
def test_faults_of_the_old_task(guest: Protected, name: str) -> None:
    """Table 8-1, and as if nothing had been tried."""
    prepare, selector, vector = BEFORE[name]
    prepare(guest)
    assert guest.execute(f".byte 0x9a; .long 0; .word {selector}") == S.EXIT_HLT
    assert (guest.vector, guest.words(2, 4)) == (vector, [selector & 0xFFFC, guest.CODE])
    assert guest[S.TR + S.SEL] == guest.TR
    assert guest.described(guest.TR) == 0x8B


AFTER = {
    "LDT": ({"ldt": 0x10}, S.TS, 0x10),
    "CS null": ({"cs": 0}, S.TS, 0),
    "CS of data": ({"cs": 0x10}, S.TS, 0x10),
    "CS of another level": ({"cs": 0x1A}, S.TS, 0x18),
    "CS not present": ({"cs": FREE}, S.NP, FREE),
    "SS null": ({"ss": 0}, S.TS, 0),
    "SS of another level": ({"ss": 0x23}, S.TS, 0x20),
    "SS not present": ({"ss": FREE + 8}, S.SS_FAULT, FREE + 8),
    "DS of a system descriptor": ({"ds": 0x30}, S.TS, 0x30),
    "GS not present": ({"gs": FREE + 8}, S.NP, FREE + 8),
}


@pytest.mark.parametrize("name", AFTER)
def test_faults_of_the_new_task(guest: Protected, name: str) -> None:
    """Table 8-1 from the commit point on: in the new task's context. A third task takes them: its stack is good."""
    fields, vector, error = AFTER[name]
    guest.describe(FREE, descriptor(0, 0xFFFFF, 0x1B, 0xC))
    guest.describe(FREE + 8, descriptor(0, 0xFFFFF, 0x13, 0xC))
    guest.describe(FREE + 16, descriptor(0xA400, 0x67, 0x89))
    guest.task(0xA400, eip=guest.handlers + vector, esp=0x38000)
    guest.interrupt(vector, gate(FREE + 16, 0, 0x85))
    guest.task(guest.TSS2, eip=NEW, **fields)
    assert guest.execute(JUMP) == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (vector, [error])
    assert guest.read(0xA400, 2) == struct.pack("<H", guest.TR2)
    assert int.from_bytes(guest.read(guest.TSS2 + 0x20, 4), "little") == NEW


def test_iret_of_a_link_that_is_not_busy(guest: Protected) -> None:
    guest.write(guest.TSS, struct.pack("<H", guest.TR2))
    guest.rflags = S.NT | 2
    assert guest.execute("iretd") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.TS, [guest.TR2])


def test_a_page_fault_that_stops_a_switch_changes_nothing(guest: Protected) -> None:
    """The new TSS is on a page that is not present: #PF of the old task, which can try again."""
    guest.describe(guest.TR2, descriptor(0x400000, 0x67, 0x89))
    guest.write(0x5000, struct.pack("<I", 0x83))
    guest[S.CR4], guest[S.CR3] = S.CR4_PSE, 0x5000
    guest[S.CR0] |= S.CR0_PG
    assert guest.execute(CALL) == S.EXIT_HLT
    assert (guest.vector, guest.words(2, 4), guest[S.CR2]) == (S.PF_FAULT, [0, guest.CODE], 0x400000)
    assert (guest.described(guest.TR2), guest[S.TR + S.SEL]) == (0x89, guest.TR)
