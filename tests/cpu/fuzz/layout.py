"""What both sides of the comparison agree on: the linear address space, the segments, and a case in memory.

A case is one STATE record before and one after: registers, instruction bytes, and after it the fault and a digest of
what it changed in memory. native.c has the same record; a batch is an array of them, so no Python runs per case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Linear memory. Code: two pages, not to be written; data: a page that is absent, two to write, one to read only,
# another absent. All of it lies where 32-bit addresses reach, and each part within 64 KiB of its base, where 16-bit
# ones do.
PAGE = 4096
CODE, CODE_PAGES = 0x2000_0000, 2
DATA = 0x1000_0000
WRITABLE, WRITABLE_PAGES = DATA + PAGE, 2
READABLE = DATA + 3 * PAGE
DATA_PAGES = WRITABLE_PAGES + 1  # present
MAXIMUM_LENGTH = 15
# In the data: far pointers and the frames of far returns, one every 64 bytes; images of XRSTOR and FXRSTOR.
FRAMES, FRAME_COUNT, FRAME_SIZES = READABLE - PAGE // 2, 32, (2, 4, 8, 8)  # sizes of an element, in turn
IMAGES = (WRITABLE, READABLE, READABLE + 0x400, READABLE + 0x800, READABLE + 0xC00)

# The selectors of Linux user space, and ours in the LDT.
USER32_CS, USER_DS, USER64_CS = 0x23, 0x2B, 0x33


@dataclass(frozen=True)
class Segment:
    """A descriptor as modify_ldt(2) takes it. contents: 0 data, 1 expand-down data, 2 code."""

    base: int
    limit: int
    contents: int = 0
    big: bool = False
    read_only: bool = False  # for code: execute-only
    pages: bool = False
    present: bool = True

    @property
    def descriptor(self) -> int:
        """The eight bytes in the table; DPL 3, accessed, as the kernel makes them."""
        kind = self.contents << 2 | (0 if self.read_only else 2) | 1
        attributes = kind | 0x70 | self.present << 7 | self.big << 14 | self.pages << 15
        low = self.limit & 0xFFFF | (self.base & 0xFFFFFF) << 16 | (self.base >> 24) << 56
        return low | (attributes & 0xFF) << 40 | (self.limit >> 16) << 48 | (attributes >> 12) << 52


LDT = (
    Segment(CODE, 0xFFFF, contents=2),  # 07: 16-bit code
    Segment(DATA, 0xFFFF),  # 0F: 16-bit data and stack
    Segment(DATA, 0x1FFF),  # 17: ends in the middle of the pages to write
    Segment(DATA, 0x17FF, contents=1),  # 1F: expand-down, valid above that
    Segment(DATA, 0xFFFF, read_only=True),  # 27
    Segment(CODE, 0xFFFF, contents=2, read_only=True),  # 2F: code that cannot be read
    Segment(0, 0xFFFFF, big=True, pages=True),  # 37: flat
    Segment(DATA, 0xFFFF, present=False),  # 3F
    Segment(DATA, 0x17FF, contents=1, big=True),  # 47: expand-down with a 32-bit upper bound
    Segment(CODE, 0xFFFF, contents=2, present=False),  # 4F
    Segment(CODE, 0x0FFF, contents=2, big=True),  # 57: 32-bit code that ends with its first page
)
CODE16, DATA16 = 0x07, 0x0F
# Of code, data, stacks; of descriptors that are absent, privileged, or not there; null ones.
SELECTORS = (
    *(number << 3 | 7 for number in range(len(LDT) + 1)), USER32_CS, USER_DS, USER64_CS, USER32_CS & ~3,
    USER_DS & ~2, 0x30, 0x10, 0x18, 0x40, 0x50, 0x81, 0x04, 0, 3,
)  # fmt: skip

# Register numbers, and segments in the order of their encodings
RSP = 4
ES, CS, SS, DS, FS, GS = range(6)


def bases(states: np.ndarray, bits: int, segment: int) -> np.ndarray:
    """Base addresses of a segment in these states."""
    if bits == 64:
        name = {FS: "fs_base", GS: "gs_base"}.get(segment)
        return states[name].copy() if name else np.zeros(len(states), np.uint64)
    table = np.zeros(0x10000 >> 3, np.uint64)
    for number, entry in enumerate(LDT):
        table[number] = entry.base
    selectors = states["segment"][:, segment]
    return np.where(selectors & 4, table[selectors >> 3], np.uint64(0))


STATE = np.dtype(
    [
        ("gpr", "<u8", 16),
        ("rip", "<u8"),
        ("flags", "<u8"),
        ("fs_base", "<u8"),
        ("gs_base", "<u8"),
        ("address", "<u8"),  # CR2 of a page fault
        ("digest", "<u8"),  # of the memory that changed, 0: none
        ("value", "<u8"),  # its first word
        ("segment", "<u2", 6),
        ("fcw", "<u2"),
        ("fsw", "<u2"),
        ("ftw", "<u2"),  # abridged, as FXSAVE has it
        ("fop", "<u2"),
        ("mxcsr", "<u4"),
        ("vector", "<u4"),  # of the fault, NO_FAULT, or EXIT + what our CPU left with
        ("error", "<u4"),
        ("repeat", "u1"),  # in: go on while RIP stays (REP)
        ("length", "u1"),  # of the instruction
        ("image", "<u2"),  # in: where an FPU image is stored whose MXCSR_MASK is not compared, from WRITABLE, + 1
        ("spare", "u1", 6),
        ("changed", "<u2"),  # that word's offset from WRITABLE, + 1
        ("code", "u1", 16),
        ("st", "u1", (8, 16)),  # ST0..ST7, 80 bits each
        ("vec", "<u8", (16, 4)),  # YMM0..15
    ]
)
NO_FAULT = 255
EXIT = 0x100
CRASHED = 0x200  # the native side did not survive it
REPEATS = 4096  # iterations of a repeated instruction, at most
