"""Real mode: vector table, frames, limits, far transfers, and the ways in and out of protected mode."""

from __future__ import annotations

import struct

import pytest
from kvmfs.jit import state as S

from .guest import RAM
from .modes import Real, descriptor


@pytest.fixture
def guest() -> Real:
    return Real()


def test_interrupt_and_return(guest: Real) -> None:
    """INT pushes FLAGS, CS, IP, clears IF, TF and AC; IRET brings all back (SDM vol. 2, INT n, IRET)."""
    guest.rflags = S.IF | S.CF | S.AC | 2
    assert guest.execute("int 0x21; hlt") == S.EXIT_HLT
    assert guest.vector == 0x21
    assert guest.words(3, 2) == [2, 0x1000, S.IF | S.CF | 2]
    assert guest.rflags & (S.IF | S.AC) == 0
    guest.write(0x1000 + 0x21, b"\xcf")  # iret
    assert guest.execute("int 0x21; hlt") == S.EXIT_HLT
    assert (guest.cs, guest.sp, guest[S.RIP]) == (0x1000, 0x8000 - 6, 3)
    assert guest.rflags & S.CF


@pytest.mark.parametrize(
    ("text", "vector", "ip"),
    [
        ("nop; ud2", S.UD, 1),
        ("xor cx, cx; div cx", S.DE, 2),
        ("int3", S.BP, 1),
        ("mov al, 0x7f; add al, 1; into", S.OF_TRAP, 5),
        ("mov bx, 0xffff; mov ax, [bx]", S.GP, 3),  # a word at 0xFFFF
        ("mov ebx, 0x10000; mov al, [ebx]", S.GP, 6),
        ("mov bp, 0xffff; mov ax, [bp]", S.SS_FAULT, 3),
        ("mov bp, 0xffff; mov ax, ds:[bp]", S.GP, 3),
        ("mov dword ptr ds:[0x100], 0x00200010; mov ax, 0x21; bound ax, ds:[0x100]", S.BR, 12),
        ("lldt ax", S.UD, 0),  # not recognized in real mode
        ("verr ax", S.UD, 0),
        ("arpl ax, bx", S.UD, 0),
        ("aam 0", S.DE, 0),
        ("jmp far ptr [bx + 0x7fff]", None, 0),
    ],
)
def test_faults_have_no_error_code(guest: Real, text: str, vector: int | None, ip: int) -> None:
    if vector is None:  # a 32-bit offset beyond the limit of CS
        vector, text = S.GP, "jmp fword ptr ds:[0x100]"
        guest.write(0x20100, struct.pack("<IH", 0x10000, 0x1000))
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.vector == vector
    assert guest.words(2, 2) == [ip, 0x1000]
    assert guest.sp == 0x8000 - 6


def test_a_word_cannot_be_pushed_at_1(guest: Real) -> None:
    """#SS, whose own frame does not fit either: double, triple fault."""
    guest[S.RSP] = 1
    assert guest.execute("push ax") == S.EXIT_SHUTDOWN


def test_the_stack_wraps_between_words(guest: Real) -> None:
    guest.set(sp=2, ax=0x1234)
    assert guest.execute("push ax; push ax; hlt") == S.EXIT_HLT
    assert guest.sp == 0xFFFE
    assert guest.read(0x40000, 2) == guest.read(0x4FFFE, 2) == b"\x34\x12"
    guest.set(sp=2)
    assert guest.execute("int 0x30; hlt") == S.EXIT_HLT
    assert (guest.vector, guest.sp) == (0x30, 0xFFFC)


def test_an_idt_too_short(guest: Real) -> None:
    """A vector beyond the IDT's limit is #GP; when that is too, the processor shuts down."""
    guest[S.IDTR_LIMIT] = 4 * 0x20 - 1
    assert guest.execute("int 0x20") == S.EXIT_HLT
    assert guest.vector == S.GP
    guest[S.IDTR_LIMIT] = 4 * 8 - 1
    assert guest.execute("int 0x20") == S.EXIT_SHUTDOWN


def test_running_into_the_limit_of_cs(guest: Real) -> None:
    """An instruction that crosses 0xFFFF, and one that would begin beyond, are #GP."""
    guest.write(0x1FFFE, b"\x90\xb8")  # nop; mov ax, imm16
    assert guest.execute("jmp 0xfffe") == S.EXIT_HLT
    assert (guest.vector, guest.words(1, 2)) == (S.GP, [0xFFFF])
    guest.write(0x1FFFE, b"\x90\x90")
    assert guest.execute("jmp 0xfffe") == S.EXIT_HLT
    assert guest.vector == S.GP


@pytest.mark.parametrize("far", ["call 0x3000:0x10", "call dword ptr ds:[0x100]"])
def test_far_call_and_return(guest: Real, far: str) -> None:
    guest.write(0x20100, struct.pack("<HH", 0x10, 0x3000))
    guest.write(0x30010, bytes.fromhex("b83412 ca0400"))  # mov ax, 0x1234; retf 4
    text = f"push 7; push 8; {far.replace('call 0x3000:0x10', '.byte 0x9a; .word 0x10, 0x3000')}; mov bx, cs; hlt"
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.ax, guest.bx, guest.sp) == (0x1234, 0x1000, 0x8000)


def test_far_call_of_32_bits(guest: Real) -> None:
    guest.write(0x20100, struct.pack("<IH", 0x10, 0x3000))
    guest.write(0x30010, bytes.fromhex("f4"))
    assert guest.execute("call fword ptr ds:[0x100]") == S.EXIT_HLT
    assert (guest.cs, guest.words(2, 4)) == (0x3000, [5, 0x1000])


def test_segment_registers(guest: Real) -> None:
    guest.write(0x20100, struct.pack("<HH", 0x5678, 0x6000))
    text = "push 0x3000; pop es; push ds; pop fs; lgs si, ds:[0x100]; mov ax, 0x5000; mov ds, ax; hlt"
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.es, guest.fs, guest.gs, guest.ds, guest.si) == (0x3000, 0x2000, 0x6000, 0x5000, 0x5678)
    assert guest[S.GS + S.BASE] == 0x60000
    assert guest.sp == 0x8000


def test_a_32_bit_push_of_a_selector_writes_16_bits(guest: Real) -> None:
    """The upper half of its place stays (SDM vol. 2, PUSH)."""
    guest.write(0x47FFC, b"\xff" * 4)
    assert guest.execute(".byte 0x66; push ds; hlt") == S.EXIT_HLT
    assert (guest.sp, guest.words(1, 4)) == (0x7FFC, [0xFFFF2000])


def test_pusha_popa_enter_leave(guest: Real) -> None:
    text = "mov ax, 1; mov bp, 0x7000; pusha; xor ax, ax; mov bp, ax; popa; enter 0x10, 2; mov cx, bp; leave; hlt"
    guest.write(0x46FFE, b"\xaa\xbb")
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.ax, guest.bp, guest.cx, guest.sp) == (1, 0x7000, 0x7FFE, 0x8000)
    assert guest.read(0x47FFA, 6) == struct.pack("<HHH", 0x7FFE, 0xBBAA, 0x7000)


def test_flags_of_popf_and_iret(guest: Real) -> None:
    """IOPL and NT can change, VM, VIF and VIP cannot."""
    text = "push 0x001a; push 0x7002; popfd; pushfd; pop eax; hlt"
    guest.execute(text.replace("popfd", "popfd").replace("push 0x001a; push 0x7002", "push dword ptr 0x001a7002"))
    assert guest.eax == 0x7002
    assert guest.rflags & (S.VM86 | S.VIF | S.VIP) == 0


GDT = 0x500


def write_gdt(guest: Real) -> None:
    """Flat 32-bit code and data, 16-bit code with base 0x10000; its pointer at 2000:0."""
    rows = [bytes(8), descriptor(0, 0xFFFFF, 0x9A, 0xC), descriptor(0, 0xFFFFF, 0x92, 0xC)]
    rows.append(descriptor(0x10000, 0xFFFF, 0x9A))
    rows.append(descriptor(0, 0xFFFF, 0x92))
    guest.write(GDT, b"".join(rows))
    guest.write(0x20000, struct.pack("<HI", 39, GDT))


def test_unreal_mode(guest: Real) -> None:
    """A limit that was loaded in protected mode stays when PE is cleared and the segment loaded again."""
    write_gdt(guest)
    text = """
        cli; lgdt ds:[0]; mov eax, cr0; or al, 1; mov cr0, eax; mov bx, 0x10; mov es, bx; and al, 0xfe; mov cr0, eax
        xor bx, bx; mov es, bx; mov edi, 0x200000; mov eax, 0x12345678; mov es:[edi], eax; mov al, ds:[edi]; hlt
    """
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.read(0x200000, 4) == bytes.fromhex("78563412")
    assert guest.vector == S.GP  # DS still has its limit


def test_protected_mode_and_back(guest: Real) -> None:
    """The switch of SDM vol. 3, 9.9, with a far jump each way, and LMSW, which cannot go back."""
    write_gdt(guest)
    text = """
        lgdt ds:[0]; mov ax, 1; lmsw ax; lmsw cx; .byte 0x66, 0xea; .long 0x10000 + p; .word 8
        .code32
    p:  mov ax, 0x10; mov ds, ax; mov ss, ax; mov esp, 0x90000; push 0x11223344; pop dword ptr [0x200000]
        .byte 0xea; .long q; .word 0x18
        .code16
    q:  mov ax, 0x20; mov ss, ax; mov ds, ax; mov eax, cr0; and al, 0xfe; mov cr0, eax
        .byte 0xea; .word r, 0x1000
    r:  mov ax, 0x2000; mov ds, ax; mov ss, ax; mov sp, 0x4000; smsw bx; int 0x40; hlt
    """
    guest[S.RCX] = 0
    assert guest.execute(text) == S.EXIT_HLT
    assert guest.read(0x200000, 4) == bytes.fromhex("44332211")
    assert (guest.vector, guest.bx & 1, guest[S.SS + S.BASE]) == (0x40, 0, 0x20000)


def test_string_instructions_wrap_at_64_kib(guest: Real) -> None:
    guest.set(si=0xFFFE, di=0x100, cx=4)
    guest.write(0x2FFFE, b"ab")
    guest.write(0x20000, b"cd")
    assert guest.execute("rep movsb; hlt") == S.EXIT_HLT
    assert guest.read(0x20100, 4) == b"abcd"
    assert (guest.si, guest.di, guest.cx) == (2, 0x104, 0)


def test_external_interrupt(guest: Real) -> None:
    guest.rflags = S.IF | 2
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x48 + 1, S.REQ_EVENT
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert (guest.vector, guest.words(2, 2)) == (0x48, [0, 0x1000])


def test_an_exception_on_its_way_has_no_error_code() -> None:
    """What the embedder sees of it when its vector lies where there is no memory."""
    guest = Real()
    guest[S.IDTR_BASE] = RAM
    assert guest.execute("mov ax, [0xffff]") == S.EXIT_MMIO_READ
    assert (guest[S.EXC_PENDING], guest[S.EXC_VECTOR], guest[S.EXC_HAS_ERROR]) == (1, S.GP, 0)
