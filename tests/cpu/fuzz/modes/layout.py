"""The machine that both sides have: memory, descriptor tables, modes; and a case in memory.

There is no paging: linear is physical. 16-bit segments have 64 KiB each within the working area, so that what can be
written is small enough to be compared and put back after every case.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ...modes import descriptor, gate

PAGE = 4096
GDT, LDT, TSS, OTHER_TSS, TSS16, ENTRY, INNER_STACK = 0x1000, 0x1800, 0x2000, 0x2200, 0x2400, 0x3000, 0x9000
AREA, MEMORY = 0x10000, 0x30000  # code, data and stacks; the end of all memory
CODE_OFFSET = 0x100
CODE = AREA + CODE_OFFSET
MAXIMUM_LENGTH = 15

# Selectors in the GDT
CODE32, DATA32, USER_CODE32, USER_DATA32, CODE16, DATA16, USER_CODE16, USER_DATA16 = range(0x08, 0x48, 8)
CONFORMING, EXECUTE_ONLY, READ_ONLY, EXPAND_DOWN, ABSENT_DATA, ABSENT_CODE, FAR_DATA16, LDT_SELECTOR = (
    range(0x48, 0x88, 8)
)  # fmt: skip
TSS_BUSY, TSS_FREE, TSS16_FREE, CALL16, CALL32, CALL_USER, TASK_GATE, ABSENT_GATE = range(0x88, 0xC8, 8)
GDT_LIMIT, LDT_LIMIT = 0xC7, 0x1F

_TABLE = (
    bytes(8),
    descriptor(0, 0xFFFFF, 0x9B, 0xC),
    descriptor(0, 0xFFFFF, 0x93, 0xC),
    descriptor(0, 0xFFFFF, 0xFB, 0xC),
    descriptor(0, 0xFFFFF, 0xF3, 0xC),
    descriptor(AREA, 0xFFFF, 0x9B),
    descriptor(AREA, 0xFFFF, 0x93),
    descriptor(AREA, 0xFFFF, 0xFB),
    descriptor(AREA, 0xFFFF, 0xF3),
    descriptor(AREA, 0xFFFF, 0x9F),
    descriptor(AREA, 0xFFFF, 0x99),
    descriptor(AREA, 0xFFFF, 0xF1),
    descriptor(AREA, 0x0FFF, 0xF7),
    descriptor(AREA, 0xFFFF, 0x73),
    descriptor(AREA, 0xFFFF, 0x1B),
    descriptor(AREA + 0x8000, 0xFFFF, 0xF3),
    descriptor(LDT, LDT_LIMIT, 0x82),
    descriptor(TSS, 0x67, 0x8B),
    descriptor(OTHER_TSS, 0x67, 0x89),
    descriptor(TSS16, 0x2B, 0x81),
    gate(CODE16, 0x40, 0xE4),
    gate(CODE32, AREA + 0x40, 0x8C),
    gate(CODE32, AREA + 0x40, 0xEC, 3),
    gate(TSS_FREE, 0, 0xE5),
    gate(CODE32, 0, 0x6C),
)
_LOCAL = (
    descriptor(AREA, 0xFFFF, 0xFB),
    descriptor(AREA, 0xFFFF, 0xF3),
    descriptor(AREA + 0x4000, 0xFFFF, 0x93),
    descriptor(AREA, 0xFFFF, 0xFF),
)
SELECTORS = [*range(0, GDT_LIMIT + 9, 8), *(4 | at for at in range(0, LDT_LIMIT + 9, 8))]


def tables() -> bytes:
    """Memory below AREA."""
    memory = bytearray(AREA)
    memory[GDT : GDT + GDT_LIMIT + 1] = b"".join(_TABLE)
    memory[LDT : LDT + LDT_LIMIT + 1] = b"".join(_LOCAL)
    memory[TSS + 4 : TSS + 12] = struct.pack("<II", INNER_STACK, DATA32)
    memory[TSS + 0x66 : TSS + 0x68] = struct.pack("<H", 0x68)  # no I/O permission bitmap
    registers = [0x11111111 * n for n in range(1, 5)] + [INNER_STACK - 0x100] + [0x11111111 * n for n in range(5, 8)]
    words = [0, AREA + 0x40, 2, *registers, DATA32, CODE32, *[DATA32] * 4, LDT_SELECTOR]
    memory[OTHER_TSS + 0x1C : OTHER_TSS + 0x64] = struct.pack("<18I", *words)
    halves = [0x40, 2, *(n & 0xFFFF for n in registers), DATA32, CODE16, DATA16, DATA16, LDT_SELECTOR]
    memory[TSS16 + 0x0E : TSS16 + 0x2C] = struct.pack("<15H", *halves)
    return bytes(memory)


@dataclass(frozen=True)
class Mode:
    """bits: of the code segment; usual: selector of the data segments; loadable: others that they may hold."""

    name: str
    bits: int
    cs: int
    ss: int
    usual: int
    loadable: tuple[int, ...]
    base: int  # of the usual segments
    protected: bool = True
    v86: bool = False

    @property
    def cpl(self) -> int:
        return 3 if self.v86 else self.cs & 3 if self.protected else 0

    @property
    def ip(self) -> int:
        """Of CODE."""
        return CODE - self.base


_PARAGRAPHS = tuple((AREA >> 4) + n for n in (0, 0x10, 0x401, 0x800, 0x1000))
MODES = (
    Mode("real", 16, AREA >> 4, AREA >> 4, AREA >> 4, _PARAGRAPHS, AREA, protected=False),
    Mode("virtual-8086", 16, AREA >> 4, AREA >> 4, AREA >> 4, _PARAGRAPHS, AREA, v86=True),
    Mode("16-bit", 16, CODE16, DATA16, DATA16, (DATA16, FAR_DATA16, 0x0C), AREA),
    Mode("16-bit user", 16, USER_CODE16 | 3, USER_DATA16 | 3, USER_DATA16 | 3, (USER_DATA16 | 3, 0x0F, 0), AREA),
    Mode("32-bit", 32, CODE32, DATA32, DATA32, (DATA32, USER_DATA32, FAR_DATA16), 0),
    Mode("32-bit user", 32, USER_CODE32 | 3, USER_DATA32 | 3, USER_DATA32 | 3, (USER_DATA32 | 3, FAR_DATA16 | 3, 0), 0),
)

ES, CS, SS, DS, FS, GS = range(6)
FRAME = 40  # bytes that a case may have at its operand's place
CASE = np.dtype(
    [
        ("gpr", "<u4", 8),
        ("eip", "<u4"),
        ("flags", "<u4"),
        ("cr0", "<u4"),
        ("cr3", "<u4"),
        ("cr4", "<u4"),
        ("gdt", "<u4", 2),  # base, limit
        ("idt", "<u4", 2),
        ("segment", "<u2", 6),
        ("ldtr", "<u2"),
        ("tr", "<u2"),
        ("dr7", "<u4"),
        ("vector", "<u4"),  # of the fault, NO_FAULT, OUTSIDE, or EXIT + what our CPU left with
        ("digest", "<u8"),  # of the memory that changed, 0: none
        ("value", "<u8"),  # its first word
        ("changed", "<u4"),  # where that is, + 1
        ("frame_at", "<u4"),  # where `frame` goes, 0: nowhere
        ("repeat", "u1"),
        ("length", "u1"),
        ("mode", "u1"),  # number in MODES
        ("code", "u1", 16),
        ("frame", "u1", FRAME),
    ],
    align=True,
)
NO_FAULT, OUTSIDE, EXIT = 255, 0x80, 0x100
REPEATS = 64
