"""Virtual-8086 mode: SDM vol. 3, ch. 21."""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S

from .modes import Protected, gate


@pytest.fixture
def guest() -> Protected:
    guest = Protected()
    guest.v86()
    return guest


IOPL3 = 3 << 12


def frame(guest: Protected, error: bool = False) -> list[int]:
    """[error,] EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS."""
    return guest.words(10 if error else 9, 4)


def test_exception_leaves_virtual_8086_mode(guest: Protected) -> None:
    """A frame of nine words on the stack of CPL 0; data segments become null (21.2.1)."""
    assert guest.execute("ud2", 16) == S.EXIT_HLT
    assert guest.vector == S.UD
    assert frame(guest) == [0, 0x1000, 2 | S.VM86 | S.RF, 0x8000, 0x4000, 0x2000, 0x2000, 0x2000, 0x2000]
    assert (guest.cs, guest.ss, guest[S.CPL], guest.esp) == (guest.CS0, guest.DS0, 0, guest.INNER - 36)
    assert (guest.ds, guest.es, guest.fs, guest.gs) == (0, 0, 0, 0)
    assert not guest.rflags & S.VM86


def test_iret_enters_virtual_8086_mode(guest: Protected) -> None:
    """By VM in the popped flags at CPL 0 (21.2.5)."""
    guest.rflags = 2
    guest.level(0)
    words = "".join(
        f"push {value};" for value in (0x7000, 0x6000, 0x5000, 0x3000, 0x4000, 0x8000, 2 | S.VM86, 0x3000, 8)
    )
    guest.write(0x30008, bytes.fromhex("8cd8 0f0b"))  # mov ax, ds; ud2
    assert guest.execute(words + "iretd") == S.EXIT_HLT
    assert (guest.vector, guest.ax) == (S.UD, 0x5000)
    assert frame(guest)[3:] == [0x8000, 0x4000, 0x3000, 0x5000, 0x6000, 0x7000]
    assert guest.words(2, 4) == [10, 0x3000]


def test_vm_is_not_for_outer_levels(guest: Protected) -> None:
    guest.rflags = 2
    guest.level(3)
    text = f"pushfd; or dword ptr [esp], {S.VM86}; push {guest.CS3}; push offset a; iretd; a: ud2"
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.vector, guest.words(3, 4)[2] & S.VM86) == (S.UD, 0)


@pytest.mark.parametrize("text", ["cli", "sti", "pushf", "popf", "int 0x30", "iret"])
def test_sensitive_to_iopl(guest: Protected, text: str) -> None:
    """#GP(0) below IOPL 3 (21.2.7)."""
    assert guest.execute(text, 16) == S.EXIT_HLT
    assert (guest.vector, frame(guest, error=True)[:2]) == (S.GP, [0, 0])


@pytest.mark.parametrize("text", ["hlt", "mov eax, cr0", "lgdt [0]", "clts", "in al, 0x20"])
def test_privileged(guest: Protected, text: str) -> None:
    """At any IOPL: I/O goes by the bitmap alone (21.2.8.1)."""
    guest.rflags |= IOPL3
    assert guest.execute(text, 16) == S.EXIT_HLT
    assert guest.vector == S.GP


@pytest.mark.parametrize("text", ["sldt ax", "verr ax", "lar ax, ax", "lldt ax", "arpl ax, ax"])
def test_not_recognized(guest: Protected, text: str) -> None:
    assert guest.execute(text, 16) == S.EXIT_HLT
    assert guest.vector == S.UD


def test_flags_with_iopl_3(guest: Protected) -> None:
    """IF is the program's, IOPL is not."""
    guest.rflags |= IOPL3
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0xEE))
    assert guest.execute("sti; pushf; pop ax; push 2; popf; pushf; pop bx; int 0x30", 16) == S.EXIT_HLT
    assert guest.vector == 0x30
    assert (guest.ax, guest.bx) == (IOPL3 | S.IF | 2, IOPL3 | 2)


def test_gates_must_lead_to_cpl_0(guest: Protected) -> None:
    """#GP with the code segment's selector (vol. 2, INT n)."""
    guest.rflags |= IOPL3
    guest.interrupt(0x30, gate(guest.CS3, 0, 0xEE))
    assert guest.execute("int 0x30", 16) == S.EXIT_HLT
    assert (guest.vector, frame(guest, error=True)[0]) == (S.GP, guest.CS3 & 0xFFFC)


def test_int3_goes_by_the_gate(guest: Protected) -> None:
    """Whatever IOPL: the gate's DPL decides."""
    guest.interrupt(S.BP, gate(guest.CS0, guest.handlers + S.BP, 0xEE))
    assert guest.execute("int3", 16) == S.EXIT_HLT
    assert guest.vector == S.BP
    guest = Protected()
    guest.v86()
    assert guest.execute("int3", 16) == S.EXIT_HLT
    assert (guest.vector, frame(guest, error=True)[0]) == (S.GP, S.BP * 8 + 2)


def test_limit_is_64_kib(guest: Protected) -> None:
    assert guest.execute("mov bx, 0xffff; mov ax, [bx]", 16) == S.EXIT_HLT
    assert guest.vector == S.GP


def test_far_transfers_are_those_of_real_mode(guest: Protected) -> None:
    guest.write(0x30010, bytes.fromhex("b83412 cb"))
    assert guest.execute(".byte 0x9a; .word 0x10, 0x3000; mov bx, 0x5000; mov es, bx; ud2", 16) == S.EXIT_HLT
    assert (guest.vector, guest.ax, frame(guest)[1], frame(guest)[5]) == (S.UD, 0x1234, 0x1000, 0x5000)


class TestVme:
    """Virtual-8086 mode extensions: 21.3."""

    @pytest.fixture
    def guest(self, guest: Protected) -> Protected:
        guest[S.CR4] |= S.CR4_VME
        guest.write(guest.TSS + 0x66, struct.pack("<H", 0x88))
        guest.write(guest.TSS + 0x68, bytes(32) + b"\xff")
        guest[S.TR + S.LIMIT] = 0x88
        for vector in range(256):
            guest.write(4 * vector, struct.pack("<HH", vector, 0x3000))
        return guest

    def test_virtual_interrupt_flag(self, guest: Protected) -> None:
        """CLI, STI, PUSHF, POPF work on VIF; PUSHF shows it as IF, and IOPL as 3."""
        assert guest.execute("sti; pushf; pop ax; cli; pushf; pop bx; push 0x200; popf; ud2", 16) == S.EXIT_HLT
        assert (guest.vector, guest.ax, guest.bx) == (S.UD, IOPL3 | S.IF | 2, IOPL3 | 2)
        assert frame(guest)[2] & (S.VIF | S.IF) == S.VIF

    def test_pending_virtual_interrupt(self, guest: Protected) -> None:
        """With VIP set, enabling is #GP."""
        guest.rflags |= S.VIP
        assert guest.execute("sti", 16) == S.EXIT_HLT
        assert guest.vector == S.GP

    def test_redirected_interrupt(self, guest: Protected) -> None:
        """A clear bit in the bitmap: to the 8086 program's handler; IRET returns and restores VIF."""
        guest.rflags |= S.VIF
        guest.write(0x30021, b"\x9c\x58\xcf")  # pushf; pop ax; iret
        assert guest.execute("int 0x21; mov bx, sp; ud2", 16) == S.EXIT_HLT
        assert (guest.vector, guest.bx, guest.ax & S.IF) == (S.UD, 0x8000, 0)
        assert frame(guest)[2] & S.VIF

    def test_interrupt_that_is_not_redirected(self, guest: Protected) -> None:
        guest.write(guest.TSS + 0x68, b"\xff" * 32)
        assert guest.execute("int 0x21", 16) == S.EXIT_HLT
        assert (guest.vector, frame(guest, error=True)[0]) == (S.GP, 0)

    def test_32_bit_forms_need_iopl_3(self, guest: Protected) -> None:
        assert guest.execute("pushfd", 16) == S.EXIT_HLT
        assert guest.vector == S.GP


def test_protected_mode_virtual_interrupts(guest: Protected) -> None:
    """PVI: at CPL 3 below IOPL, CLI and STI mean VIF (21.4)."""
    guest.rflags = 2
    guest.level(3)
    guest[S.CR4] |= S.CR4_PVI
    assert guest.execute("sti; ud2") == S.EXIT_HLT
    assert guest.words(3, 4)[2] & (S.VIF | S.IF) == S.VIF
    guest.level(3)
    guest.rflags = 2 | S.VIP
    assert guest.execute("sti; ud2") == S.EXIT_HLT
    assert guest.vector == S.GP
