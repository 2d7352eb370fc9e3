"""Whole programs of 16 and 32 bits, next to Unicorn: registers and memory at the end."""

from __future__ import annotations

import pytest
from kvmfs.jit import state as S

from .assemble import assemble
from .modes import Protected, Real
from .test_modes_decode import NAMES

unicorn = pytest.importorskip("unicorn")
UC = pytest.importorskip("unicorn.x86_const")

DATA_SIZE = 0x4000

# `data` and `code` are offsets of DS and CS; each program ends at a HLT.
PROGRAMS = {
    "sieve": """
        mov edi, 0; mov ecx, 0x1000; mov al, 1; cld; rep stosb
        mov ebx, 2
    a:  cmp byte ptr [ebx], 0; je c; mov edx, ebx; add edx, ebx
    b:  cmp edx, 0x1000; jae c; mov byte ptr [edx], 0; add edx, ebx; jmp b
    c:  inc ebx; cmp ebx, 64; jb a
        xor eax, eax; xor esi, esi; mov ecx, 0x1000
    d:  movzx edx, byte ptr [esi]; add eax, edx; inc esi; loop d
        hlt
    """,
    "fibonacci": """
        mov eax, 17; call f; hlt
    f:  cmp eax, 2; jb g; push eax; dec eax; call f; pop ecx; push eax; lea eax, [ecx - 2]; call f; pop ecx
        add eax, ecx
    g:  ret
    """,
    "sort": """
        mov ecx, 0x200; mov esi, 0; mov eax, 12345
    a:  imul eax, eax, 1103515245; add eax, 12345; mov [esi], eax; add esi, 4; loop a
        mov ebx, 0x1ff
    b:  xor esi, esi; mov ecx, ebx
    c:  mov eax, [esi]; mov edx, [esi + 4]; cmp eax, edx; jle d; mov [esi], edx; mov [esi + 4], eax
    d:  add esi, 4; dec ecx; jnz c; dec ebx; jnz b; xor eax, eax; hlt
    """,
    "decimal": """
        mov ecx, 300; mov si, 0x100; xor eax, eax
    a:  add al, 0x37; daa; adc ah, 0; mov [si], ax; add si, 2; aam; aad; sub al, 0x15; das; loop a
        mov bx, 0x40; xlatb; cwde; bswap eax; hlt
    """,
    "frames": """
        enter 0x20, 0; mov word ptr [bp - 2], 77; pusha; mov bp, 0; mov ax, 9; popa; mov cx, [bp - 2]; leave
        push 0x1234; pushf; pop dx; and dx, 0xf; pop bx; stc; rcl bx, 3; shld cx, bx, 5; bt cx, 3; setc al; hlt
    """,
}


def by_unicorn(code: bytes, bits: int, at: int, data: int, stack: int) -> tuple[list[int], bytes]:
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16 if bits == 16 else unicorn.UC_MODE_32)
    uc.mem_map(0, 1 << 20)
    uc.mem_write(at, code)
    if bits == 16:
        for name, base in (("CS", at), ("DS", data), ("ES", data), ("SS", 0x40000)):
            uc.reg_write(getattr(UC, f"UC_X86_REG_{name}"), base >> 4)
    uc.reg_write(UC.UC_X86_REG_ESP, stack)
    uc.reg_write(UC.UC_X86_REG_EFLAGS, 2)
    uc.emu_start(at, 1 << 20)  # HLT ends it
    return [uc.reg_read(getattr(UC, f"UC_X86_REG_{name}")) for name in NAMES], bytes(uc.mem_read(data, DATA_SIZE))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_as_unicorn(name: str, bits: int) -> None:
    if bits == 16:
        guest, data, stack = Real(), 0x20000, 0x8000
    else:
        guest, data, stack = Protected(), 0, Protected.STACK
    # Where the data lies in flat memory there is something else here: it is cleared on both sides.
    guest.write(data, bytes(DATA_SIZE))
    code = assemble(PROGRAMS[name], 0 if bits == 16 else guest.CODE, bits)
    assert guest.execute(PROGRAMS[name]) == S.EXIT_HLT
    registers, memory = by_unicorn(code, bits, guest.CODE, data, stack)
    assert [guest[S.GPR + 8 * number] for number in range(8)] == registers
    assert guest.read(data, DATA_SIZE) == memory
