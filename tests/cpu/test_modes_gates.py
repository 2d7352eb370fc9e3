"""Protected mode: interrupts and faults through gates, far transfers, call gates, segment limits.

Sections are of the SDM, vol. 3 unless another is named.
"""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S

from .modes import Protected, descriptor, gate

FREE, FREE2 = Protected.FREE, Protected.FREE + 8
INNER = Protected.INNER


@pytest.fixture
def guest() -> Protected:
    return Protected()


def test_interrupt_at_the_same_level(guest: Protected) -> None:
    """EFLAGS, CS, EIP on the current stack; an interrupt gate clears IF, a trap gate does not (6.12.1)."""
    guest.rflags = S.IF | 2
    assert guest.execute("int 0x30; hlt") == S.EXIT_HLT
    assert (guest.vector, guest.words(3, 4)) == (0x30, [guest.CODE + 2, guest.CS0, S.IF | 2])
    assert guest.esp == guest.STACK - 12
    assert not guest.rflags & S.IF
    guest.interrupt(0x31, gate(guest.CS0, guest.handlers + 0x31, 0x8F))
    guest.rflags = S.IF | 2
    guest.execute("int 0x31; hlt")
    assert guest.rflags & S.IF


def test_interrupt_to_an_inner_level_and_back(guest: Protected) -> None:
    """The stack of the TSS, with the old one's SS:ESP (6.12.1); IRET returns to it (vol. 2)."""
    guest.level(3)
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0xEE))
    assert guest.execute("int 0x30; hlt") == S.EXIT_HLT
    assert guest.words(5, 4) == [guest.CODE + 2, guest.CS3, 2, guest.STACK3, guest.DS3]
    assert (guest.ss, guest.esp, guest[S.CPL]) == (guest.DS0, INNER - 20, 0)
    guest.write(guest.handlers + 0x30, b"\xcf")
    guest.level(3)
    assert guest.execute("int 0x30; mov eax, ss; int 0x32") == S.EXIT_HLT
    assert guest.eax == guest.DS3
    assert (guest.vector, guest.words(1, 4)) == (S.GP, [0x32 * 8 + 2])  # a gate of DPL 0


def test_16_bit_gate(guest: Protected) -> None:
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0x86))
    assert guest.execute("int 0x30") == S.EXIT_HLT
    assert guest.words(3, 2) == [2, guest.CS0, 2]  # IP is cut


def test_16_bit_tss_and_stack(guest: Protected) -> None:
    """SS:SP of a 16-bit TSS; a 16-bit stack keeps the upper half of ESP."""
    guest.describe(FREE, descriptor(0x40000, 0xFFFF, 0x93))
    guest[S.TR + S.ATTR] = 0x83
    guest.write(guest.TSS + 2, struct.pack("<HH", 0x1000, FREE))
    guest.level(3)
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0xEE))
    assert guest.execute("int 0x30") == S.EXIT_HLT
    assert (guest.esp, guest.ss) == (0x50000 | 0x1000 - 20, FREE)
    assert guest.words(5, 4)[3:] == [guest.STACK3, guest.DS3]


ERRORS = {
    "gate beyond the IDT": (lambda g: None, "int 0xff; int 0xfe", S.GP, 0xFF * 8 + 2),
    "gate of another type": (lambda g: g.interrupt(0x30, bytes(8)), "int 0x30", S.GP, 0x182),
    "gate not present": (lambda g: g.interrupt(0x30, gate(8, 0, 0x0E)), "int 0x30", S.NP, 0x182),
    "null selector": (lambda g: g.interrupt(0x30, gate(0, 0, 0x8E)), "int 0x30", S.GP, 0),
    "selector beyond the GDT": (lambda g: g.interrupt(0x30, gate(0x200, 0, 0x8E)), "int 0x30", S.GP, 0x200),
    "not code": (lambda g: g.interrupt(0x30, gate(0x10, 0, 0x8E)), "int 0x30", S.GP, 0x10),
    "code not present": (lambda g: g.describe(FREE, descriptor(0, 0, 0x1B)), "int 0x33", S.NP, FREE),
    "target beyond the limit": (lambda g: g.describe(FREE, descriptor(0, 0xFF, 0x9B)), "int 0x33", S.GP, 0),
    "far jump, null": (lambda g: None, ".byte 0xea; .long 0; .word 0", S.GP, 0),
    "far jump, beyond": (lambda g: None, ".byte 0xea; .long 0; .word 0x200", S.GP, 0x200),
    "far jump, LDT without one": (lambda g: None, ".byte 0xea; .long 0; .word 0x44", S.GP, 0x44),
    "far jump to data": (lambda g: None, ".byte 0xea; .long 0; .word 0x10", S.GP, 0x10),
    "far jump to an outer level": (lambda g: None, ".byte 0xea; .long 0; .word 0x1b", S.GP, 0x18),
    "far jump to a busy TSS": (lambda g: None, ".byte 0xea; .long 0; .word 0x28", S.GP, 0x28),
    "stack segment of code": (lambda g: None, "mov eax, 8; mov ss, eax", S.GP, 8),
    "null stack segment": (lambda g: None, "xor eax, eax; mov ss, eax", S.GP, 0),
    "stack segment of another level": (lambda g: None, "mov eax, 0x23; mov ss, eax", S.GP, 0x20),
    "stack segment not present": (
        lambda g: g.describe(FREE, descriptor(0, 0, 0x13)), f"mov eax, {FREE}; mov ss, eax", S.SS_FAULT, FREE,
    ),
    "data segment not present": (
        lambda g: g.describe(FREE, descriptor(0, 0, 0x13)), f"mov eax, {FREE}; mov fs, eax", S.NP, FREE,
    ),
    "data segment that cannot be read": (
        lambda g: g.describe(FREE, descriptor(0, 0, 0x99)), f"mov eax, {FREE}; mov ds, eax", S.GP, FREE,
    ),
    "null data segment": (lambda g: None, "xor eax, eax; mov es, eax; mov al, es:[0]", S.GP, 0),
    "a write to code": (lambda g: None, "mov byte ptr cs:[0x20000], 1", S.GP, 0),
    "beyond a limit": (
        lambda g: g.describe(FREE, descriptor(0x20000, 0xFF, 0x93)), f"mov eax, {FREE}; mov gs, eax; mov al, gs:[0xff];"
        "mov eax, gs:[0xfd]", S.GP, 0,
    ),
    "below an expand-down limit": (
        lambda g: g.describe(FREE, descriptor(0, 0xFFF, 0x97, 4)), f"mov eax, {FREE}; mov gs, eax; mov al, gs:[0x1000];"
        "mov al, gs:[0xfff]", S.GP, 0,
    ),
    "above a small expand-down segment": (
        lambda g: g.describe(FREE, descriptor(0, 0xFFF, 0x97)), f"mov eax, {FREE}; mov gs, eax; mov al, gs:[0xffff];"
        "mov al, gs:[0x10000]", S.GP, 0,
    ),
    "LLDT of something else": (lambda g: None, "mov eax, 0x10; lldt ax", S.GP, 0x10),
    "LTR of a busy TSS": (lambda g: None, "mov eax, 0x28; ltr ax", S.GP, 0x28),
    "IRET to an inner level": (lambda g: g.level(3), "push 2; push 8; push 0; iretd", S.GP, 8),
    "IRET to null": (lambda g: None, "push 2; push 0; push 0; iretd", S.GP, 0),
    "RETF to a null stack": (lambda g: None, "push 0; push 0; push 0x1b; push 0; retf", S.GP, 0),
    "RETF to a stack of another level": (lambda g: None, "push 0x10; push 0; push 0x1b; push 0; retf", S.GP, 0x10),
    "no stack in the TSS": (
        lambda g: (g.level(3), g.write(g.TSS + 8, bytes(4)), g.interrupt(S.TS, gate(0, 0, 0x85))), "ud2", None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, case in ERRORS.items() if case[2] is not None])
def test_fault_with_its_error_code(guest: Protected, name: str) -> None:
    prepare, text, vector, error = ERRORS[name]
    guest[S.IDTR_LIMIT] = 0x7F7
    guest.interrupt(0x33, gate(FREE, 0x1000, 0x8E))
    prepare(guest)
    for software in (0x30, 0x33, 0xFE):  # CPL 3 may call them
        guest.write(guest.IDT + 8 * software + 5, bytes([guest.read(guest.IDT + 8 * software + 5, 1)[0] | 0x60]))
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.vector == vector
    assert guest.words(1, 4)[0] == error


def test_ext_bit(guest: Protected) -> None:
    """Set when the event is no INT instruction's (6.13): here an external interrupt and an exception."""
    guest.interrupt(0x48, bytes(8))
    guest.interrupt(S.UD, gate(guest.CS0, 0, 0x0E))
    guest.rflags = S.IF | 2
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x48 + 1, S.REQ_EVENT
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.GP, [0x48 * 8 + 3])
    assert guest.execute("ud2") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.NP, [S.UD * 8 + 3])


def test_double_and_triple_fault(guest: Protected) -> None:
    """#GP while #NP is delivered is #DF; if that fails too, shutdown (6.15, interrupt 8)."""
    guest.interrupt(S.NP, bytes(8))
    guest.describe(FREE, descriptor(0, 0, 0x13))
    assert guest.execute(f"mov eax, {FREE}; mov ds, eax") == S.EXIT_HLT
    assert (guest.vector, guest.words(2, 4)) == (S.DF_FAULT, [0, guest.CODE + 5])
    guest.interrupt(S.DF_FAULT, bytes(8))
    assert guest.execute(f"mov eax, {FREE}; mov ds, eax") == S.EXIT_SHUTDOWN


def test_fault_frame_has_rf(guest: Protected) -> None:
    assert guest.execute("ud2") == S.EXIT_HLT
    assert guest.words(3, 4)[2] & S.RF


def test_stack_fault_on_the_inner_stack(guest: Protected) -> None:
    """The new stack's selector and EXT are the error code (6.15, interrupt 12)."""
    guest.describe(FREE, descriptor(0, 0x3FFFF, 0x93, 4))
    guest.write(guest.TSS + 4, struct.pack("<II", 0x40008, FREE))  # room for two words below the limit: none above
    guest.level(3)
    guest.interrupt(S.SS_FAULT, gate(guest.TR2, 0, 0x85))
    guest.task(guest.TSS2, eip=guest.handlers + S.SS_FAULT)
    assert guest.execute("ud2") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.SS_FAULT, [FREE | 1])


def test_conforming_code_keeps_the_level(guest: Protected) -> None:
    guest.describe(FREE, descriptor(0, 0xFFFFF, 0x9F, 0xC))
    guest.level(3)
    text = f".byte 0x9a; .long f; .word {FREE}; mov ebx, cs; int 0x30; f: mov eax, cs; retf"
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0xEE))
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.vector, guest.eax, guest.ebx) == (0x30, FREE | 3, guest.CS3)


def test_far_return_to_an_outer_level(guest: Protected) -> None:
    """Arguments are released on both stacks; data segments of the inner level become null (vol. 2, RET)."""
    text = f"""
        mov eax, {guest.DS3}; mov fs, eax
        push {guest.DS3}; push {guest.STACK3}; push 1; push 2; push {guest.CS3}; push offset u; retf 8
    u:  mov ebx, cs; mov ecx, ss; mov edx, esp; mov eax, ds; mov esi, fs; ud2
    """
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.ebx, guest.ecx, guest.edx) == (guest.CS3, guest.DS3, guest.STACK3 + 8)
    assert (guest.eax, guest.esi) == (0, guest.DS3)


def test_call_gate_with_parameters(guest: Protected) -> None:
    """From CPL 3: a new stack with the old one's address, parameters copied, return with RETF n (5.8.4, 5.8.5)."""
    guest.describe(FREE, gate(guest.CS0, 0x20000, 0xEC, 2))
    guest.level(3)
    guest.write(0x20000, bytes.fromhex("8cd0 8b5c2408 8b4c240c 89e2 ca0800"))  # mov eax,ss .. mov edx,esp; retf 8
    guest.interrupt(0x30, gate(guest.CS0, guest.handlers + 0x30, 0xEE))
    text = f"push 0x11; push 0x22; .byte 0x9a; .long 0; .word {FREE | 3}; mov esi, ss; int 0x30"
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.vector == 0x30
    assert (guest.eax, guest.ebx, guest.ecx, guest.edx) == (guest.DS0, 0x22, 0x11, INNER - 24)
    assert guest.esi == guest.DS3
    assert guest.words(5, 4)[3] == guest.STACK3


@pytest.mark.parametrize("access", [0xE4, 0xEC])
def test_call_gate_at_the_same_level(guest: Protected, access: int) -> None:
    guest.describe(FREE, gate(guest.CS3, 0x2000, access))
    guest.level(3)
    guest.write(0x2000, b"\x0f\x0b")
    assert guest.execute(f".byte 0x9a; .long 0; .word {FREE | 3}") == S.EXIT_HLT
    frame = guest.words(5, 4)
    assert frame[:2] == [0x2000, guest.CS3]
    size = 4 if access == 0xEC else 2
    assert frame[3] == guest.STACK3 - 2 * size
    words = struct.unpack("<II" if size == 4 else "<HH", guest.read(frame[3], 2 * size))
    assert words == (guest.CODE + 7 & (1 << 8 * size) - 1, guest.CS3)


def test_call_gate_privileges(guest: Protected) -> None:
    """The gate's DPL against CPL and RPL; a jump must not change the level (5.8.4)."""
    guest.describe(FREE, gate(guest.CS0, 0x2000, 0x8C))
    guest.describe(FREE2, gate(guest.CS0, 0x2000, 0xEC))
    guest.level(3)
    assert guest.execute(f".byte 0x9a; .long 0; .word {FREE | 3}") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.GP, [FREE])
    guest.level(3)
    assert guest.execute(f".byte 0xea; .long 0; .word {FREE2 | 3}") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.GP, [guest.CS0])


def test_descriptor_instructions(guest: Protected) -> None:
    """LAR, LSL, VERR, VERW, ARPL (vol. 2)."""
    text = f"""
        mov ecx, {guest.DS0}; lar eax, ecx; lsl ebx, ecx; setz dl
        mov ecx, 0x200; mov esi, 0x77; lar esi, ecx; setz dh
        mov ecx, {guest.CS0}; verr cx; setz ch; verw cx; setz cl; mov edi, 0x40; mov ebp, 3; arpl di, bp; hlt
    """
    guest.set(edx=0)
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.eax, guest.ebx, guest.edx) == (0xCF9300, 0xFFFFFFFF, 1)
    assert (guest.esi, guest.ecx, guest.edi) == (0x77, 0x100, 0x43)


def test_accessed_and_busy_bits(guest: Protected) -> None:
    guest.describe(FREE, descriptor(0, 0xFF, 0x92))
    assert guest.execute(f"mov eax, {FREE}; mov fs, eax; mov eax, {guest.TR2}; ltr ax; str ebx; hlt") == S.EXIT_HLT
    assert (guest.described(FREE), guest.described(guest.TR2), guest.ebx) == (0x93, 0x8B, guest.TR2)


@pytest.mark.parametrize("text", ["hlt", "mov eax, cr0", "lgdt [0]", "clts", "in al, 0x20", "cli", "lmsw ax"])
@pytest.mark.parametrize("cpl", [1, 3])
def test_privileged_instructions(guest: Protected, text: str, cpl: int) -> None:
    guest.level(cpl)
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4)) == (S.GP, [0])


def test_io_permission_bitmap(guest: Protected) -> None:
    """A clear bit for each byte of the port allows it below IOPL (vol. 1, 19.5.2)."""
    guest.write(guest.TSS + 0x66, struct.pack("<H", 0x68))
    guest.write(guest.TSS + 0x68, b"\xff\xff\xff\xff\xfe\xff")
    guest[S.TR + S.LIMIT] = 0x6D
    guest.level(3)
    assert guest.execute("in al, 0x20; hlt") == S.EXIT_PIO
    guest.level(3)
    guest[S.PIO_STATE] = 0
    assert guest.execute("in ax, 0x20; hlt") == S.EXIT_HLT
    assert guest.vector == S.GP


def test_umip(guest: Protected) -> None:
    guest[S.CR4] |= S.CR4_UMIP
    for text in ("sgdt [0x20000]", "sidt [0x20000]", "sldt eax", "smsw eax", "str eax"):
        guest.level(3)
        assert guest.execute(text) == S.EXIT_HLT
        assert guest.vector == S.GP


def test_sysenter_and_sysexit(guest: Protected) -> None:
    guest[S.SYSENTER_CS], guest[S.SYSENTER_ESP], guest[S.SYSENTER_EIP] = guest.CS0, 0x30000, 0x20000
    guest.describe(0x18, descriptor(0, 0xFFFFF, 0xFB, 0xC))
    guest.write(0x20000, bytes.fromhex("8cd0 ba00000200 83c220 b900800500 0f35"))
    guest.write(0x20020, b"\x8c\xcb\x0f\x0b")  # mov ebx, cs; ud2
    guest.level(3)
    assert guest.execute("sysenter") == S.EXIT_HLT
    assert (guest.vector, guest.eax, guest.ebx) == (S.UD, guest.DS0, guest.CS3)
    assert guest.words(5, 4)[3:] == [0x58000, guest.DS3]
    guest[S.SYSENTER_CS] = 0
    guest.level(3)
    assert guest.execute("sysenter") == S.EXIT_HLT
    assert guest.vector == S.GP


def test_paging(guest: Protected) -> None:
    """A page fault of CPL 3 with 32-bit paging, 4 MiB pages (PSE) and their user bit."""
    guest.write(0x6000, struct.pack("<II", 0x83, 0))
    text = "mov eax, 0x6000; mov cr3, eax; mov eax, cr4; or al, 0x10; mov cr4, eax; mov eax, cr0; bts eax, 31;"
    text += f"mov cr0, eax; push {guest.DS3}; push {guest.STACK3}; push 2; push {guest.CS3}; push 0x20000; iretd"
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4), guest[S.CR2]) == (S.PF_FAULT, [5], 0x20000)
    guest[S.CR0] &= ~S.CR0_PG
    guest.write(0x6000, struct.pack("<II", 0x87, 0))
    guest.write(0x20000, bytes.fromhex("b823000000 8ed8 a100004000"))  # with DS: mov eax, [0x400000]
    guest.function("tlb_init")
    guest.level(0)
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4), guest[S.CR2]) == (S.PF_FAULT, [4], 0x400000)


def test_pae_paging(guest: Protected) -> None:
    """PDPTEs are loaded with CR3; a reserved bit in one is #GP (4.4.1)."""
    guest.write(0x6000, struct.pack("<4Q", 0x7001, 0, 0, 0))
    guest.write(0x7000, struct.pack("<QQ", 0x83, 0x200083))
    text = "mov eax, 0x6000; mov cr3, eax; mov eax, 0x20; mov cr4, eax; mov eax, cr0; bts eax, 31; mov cr0, eax;"
    assert guest.execute(text + "mov eax, [0x400000]") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 4), guest[S.CR2]) == (S.PF_FAULT, [0], 0x400000)
    guest[S.CR0] &= ~S.CR0_PG
    guest.write(0x6000, struct.pack("<Q", 0x7003))
    guest.level(0)
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.vector == S.GP


def test_alignment_check(guest: Protected) -> None:
    """CR0.AM and EFLAGS.AC at CPL 3, by the operand's own size (6.15, interrupt 17); not at other levels."""
    guest[S.CR0] |= S.CR0_AM
    text = "pushfd; or dword ptr [esp], 0x40000; popfd; mov eax, [0x20004]; mov al, [0x20001]; mov ax, [0x20002];"
    for access in ("mov eax, [0x20002]", "inc dword ptr [0x20001]", "mov [0x20003], ax"):
        guest.level(3)
        assert guest.execute(text + access) == S.EXIT_HLT
        assert (guest.vector, guest.words(1, 4)) == (S.AC_FAULT, [0])
        guest.level(0)
        assert guest.execute(text + access + "; int 0x30") == S.EXIT_HLT
        assert guest.vector == 0x30
        guest.rflags = 2
