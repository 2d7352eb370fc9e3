"""Long mode: between 64-bit and compatibility mode, by far transfers, gates and system calls."""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S

from .assemble import assemble
from .test_system import CODE, GDT, HANDLER, IDT, KERNEL_CS, KERNEL_SS, KERNEL_STACK, STACK, USER_CS, USER_SS, System

COMPAT, COMPAT3, GATE, MIXED = 0x38, 0x43, 0x48, 0x58
CODE32 = 0x140000


class LongMode(System):
    """With 32-bit code segments of both levels, and a call gate."""

    def __init__(self) -> None:
        super().__init__()
        self.write(GDT + 0x38, struct.pack("<QQ", 0x00CF9B000000FFFF, 0x00CFFB000000FFFF))
        self.write(GDT + MIXED, struct.pack("<Q", 0x00EF9B000000FFFF))
        self.call_gate(CODE32 + 0x800)
        self[S.GDTR_LIMIT] = 0x67

    def call_gate(self, target: int, selector: int = KERNEL_CS, high: int = 0) -> None:
        low = target & 0xFFFF | selector << 16 | 0xEC << 40 | (target >> 16 & 0xFFFF) << 48
        self.write(GDT + GATE, struct.pack("<QQ", low, target >> 32 | high))

    def compatibility(self, text: str) -> None:
        self.write(CODE32, assemble(text, CODE32, 32))

    def vendor(self, ebx: int) -> None:
        """CPUID leaf 0 with a vendor's first four letters."""
        self._leaves = struct.pack("<10I", 0, 0, 0, 1, ebx, 0, 0, 0, 0, 0)
        self.write(0x170000, self._leaves)
        self[S.CPUID_ENTRIES], self[S.CPUID_COUNT] = self.ram.address + 0x170000, 1
        self[S.IS_AMD] = ebx == 0x68747541


@pytest.fixture
def guest() -> LongMode:
    return LongMode()


@pytest.mark.parametrize(
    "way",
    [
        f"jmp fword ptr [rip + p]; p: .long {CODE32}; .word {COMPAT}",
        f"push {COMPAT}; push {CODE32}; retfq",
        f"mov rax, rsp; push {KERNEL_SS}; push rax; pushfq; push {COMPAT}; push {CODE32}; iretq",
        f"call fword ptr [rip + p]; p: .long {CODE32}; .word {COMPAT}",
    ],
)
def test_to_compatibility_mode_and_back(guest: LongMode, way: str) -> None:
    """Code is decoded as 32-bit code there: 40 is INC; addresses have 32 bits; a far jump leads back."""
    guest.compatibility(f"inc eax; push 0x11223344; pop ecx; .byte 0xea; .long {CODE + 0x100}; .word {KERNEL_CS}")
    guest.write(CODE + 0x100, assemble("mov rdx, 0x123456789; mov bx, cs; hlt", CODE + 0x100))
    guest[S.RAX], guest[S.RBX] = 0, 0
    assert guest.execute(way) == S.EXIT_HLT
    assert (guest[S.RCX], guest[S.RDX], guest[S.RBX]) == (0x11223344, 0x123456789, KERNEL_CS)


def test_interrupt_out_of_compatibility_mode(guest: LongMode) -> None:
    """A 64-bit frame, and back by IRETQ (6.14)."""
    guest.compatibility("int 0x30; mov ecx, 7; ud2")
    guest.gate(0x30, HANDLER + 0x2000, dpl=3)
    guest.write(HANDLER + 0x2000, assemble("mov rax, [rsp + 8]; mov rbx, rsp; iretq", HANDLER + 0x2000))
    way = f"push {USER_SS}; push {STACK}; push 2; push {COMPAT3}; push {CODE32}; iretq"
    assert guest.execute(way) == S.EXIT_HLT
    frame = guest.frame()
    assert (frame["vector"], frame["rip"], frame["cs"], frame["ss"]) == (S.UD, CODE32 + 7, COMPAT3, USER_SS)
    assert (guest[S.RAX], guest[S.RBX], guest[S.RCX]) == (COMPAT3, KERNEL_STACK - 40, 7)


@pytest.mark.parametrize("compat", [False, True])
def test_call_gate(guest: LongMode, compat: bool) -> None:
    """16 bytes long; SS null with the new level as RPL; frames of 8 bytes; no parameters (5.8.3.1, 5.8.5.1)."""
    guest.write(CODE32 + 0x800, assemble("mov ax, ss; mov rbx, rsp; retfq", CODE32 + 0x800))
    if compat:
        guest.compatibility(f".byte 0x9a; .long 0; .word {GATE | 3}; ud2")
    call = f"call fword ptr [rip + p]; jmp q; p: .long 0; .word {GATE | 3}; q: ud2"
    guest.write(CODE + 0x800, assemble(call, CODE + 0x800))
    selector, target = (COMPAT3, CODE32) if compat else (USER_CS, CODE + 0x800)
    guest[S.RAX] = 0x99
    way = f"push {USER_SS}; push {STACK}; push 2; push {selector}; push {target}; iretq"
    assert guest.execute(way) == S.EXIT_HLT
    frame = guest.frame()
    assert (frame["vector"], frame["cs"], frame["rsp"], frame["ss"]) == (S.UD, selector, STACK, USER_SS)
    assert (guest[S.RAX], guest[S.RBX]) == (0, KERNEL_STACK - 32)


@pytest.mark.parametrize(
    ("prepare", "selector", "error"),
    [
        (lambda g: g.call_gate(CODE32, COMPAT), GATE, COMPAT),  # to a segment that is not 64-bit
        (lambda g: g.call_gate(CODE32, high=0xC00 << 32), GATE, GATE),  # a type in the upper half
        (lambda g: g.call_gate(1 << 47), GATE, 0),  # not canonical
        (lambda g: None, MIXED, MIXED),  # both L and D
        (lambda g: None, 0x28, 0x28),  # no task switches in long mode
        (lambda g: g.write(GDT + 0x60, struct.pack("<Q", 0x0000850000280000)), 0x60, 0x60),  # nor task gates
    ],
)
def test_far_transfers_that_long_mode_refuses(guest: LongMode, prepare, selector: int, error: int) -> None:
    prepare(guest)
    assert guest.execute(f"call fword ptr [rip + p]; p: .long 0; .word {selector}") == S.EXIT_HLT
    frame = guest.frame(error=True)
    assert (frame["vector"], frame["error"], frame["rip"]) == (S.GP, error, CODE)


def test_task_gate_in_the_idt(guest: LongMode) -> None:
    guest.write(IDT + 16 * 0x30, struct.pack("<QQ", 0x0000850000280000, 0))
    assert guest.execute("int 0x30") == S.EXIT_HLT
    assert (guest.frame(error=True)["vector"], guest.frame(error=True)["error"]) == (S.GP, 0x182)


def test_nested_task_flag(guest: LongMode) -> None:
    """IRET with NT is #GP(0) in long mode (vol. 2, IRET)."""
    assert guest.execute("pushfq; or dword ptr [rsp], 0x4000; popfq; iretq") == S.EXIT_HLT
    assert guest.frame(error=True)["vector"] == S.GP


def test_bases_survive_a_return_to_user_mode(guest: LongMode) -> None:
    """FS and GS with a null selector keep the base that an MSR gave them."""
    guest.segment(S.FS, 0, 1 << 16)
    guest[S.FS + S.BASE] = 0x160000
    guest.write(0x160010, b"\x2a")
    guest.write(CODE + 0x800, assemble("mov al, fs:[0x10]; ud2", CODE + 0x800))
    way = f"push {USER_SS}; push {STACK}; push 2; push {USER_CS}; push {CODE + 0x800}; iretq"
    assert guest.execute(way) == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.RAX] & 0xFF) == (S.UD, 0x2A)


@pytest.mark.parametrize("amd", [False, True])
def test_syscall_in_compatibility_mode(guest: LongMode, amd: bool) -> None:
    """AMD's processors have it, to CSTAR; on Intel's it is #UD (em_syscall_is_enabled)."""
    guest.vendor(0x68747541 if amd else 0x756E6547)
    guest[S.STAR], guest[S.CSTAR] = KERNEL_CS << 32, CODE + 0x900
    guest.write(CODE + 0x900, assemble("mov ax, cs; hlt", CODE + 0x900))
    guest.compatibility("syscall")
    way = f"push {USER_SS}; push {STACK}; push 2; push {COMPAT3}; push {CODE32}; iretq"
    assert guest.execute(way) == S.EXIT_HLT
    if amd:
        assert (guest[S.RAX] & 0xFFFF, guest[S.RCX], guest[S.RIP]) == (KERNEL_CS, CODE32 + 2, CODE + 0x900 + 4)
    else:
        assert guest.frame()["vector"] == S.UD


def test_descriptor_types_of_long_mode(guest: LongMode) -> None:
    """LAR knows call gates there, not 16-bit ones or task gates; ARPL's opcode is MOVSXD."""
    guest.write(GDT + 0x60, struct.pack("<Q", 0x0000850000280000))
    text = f"mov ecx, {GATE | 3}; lar eax, ecx; setz dl; mov ecx, 0x60; lar ebx, ecx; setz dh; hlt"
    guest[S.RDX] = 0
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest[S.RAX] & 0xFF00, guest[S.RDX]) == (0xEC00, 1)
