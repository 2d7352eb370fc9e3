"""Guests outside 64-bit mode: real mode with a vector table; protected mode with descriptor tables and tasks.

Every vector's handler is a HLT of its own, so that where a run ends says which exception or interrupt was taken, and
the frame lies untouched on its stack.
"""

from __future__ import annotations

import struct

from kvmfs.jit import state as S

from .assemble import assemble
from .guest import Guest

SEGMENTS = {"es": S.ES, "cs": S.CS, "ss": S.SS, "ds": S.DS, "fs": S.FS, "gs": S.GS}


class Handled(Guest):
    """Runs end in a HLT, which tells the vector."""

    handlers = 0

    def __getattr__(self, name: str) -> int:
        """A register by its name: `guest.eax`, `guest.ds` (its selector)."""
        if name in SEGMENTS:
            return self[SEGMENTS[name] + S.SEL]
        at = getattr(S, "R" + name[-2:].upper(), None)
        if at is None:
            raise AttributeError(name)
        return self[at] & (0xFFFFFFFF if name[0] == "e" else 0xFFFF if len(name) == 2 else -1)

    def set(self, **registers: int) -> None:
        for name, value in registers.items():
            self[getattr(S, "R" + name[-2:].upper())] = value

    def write_handlers(self, address: int) -> None:
        self.handlers = address
        self.write(address, b"\xf4" * 256)

    @property
    def vector(self) -> int | None:
        """The vector whose handler the run has ended in."""
        index = self[S.CS + S.BASE] + self[S.RIP] - 1 - self.handlers
        return index if 0 <= index < 256 else None

    def words(self, count: int, size: int) -> list[int]:
        """The top of the stack."""
        mask = 0xFFFFFFFF if self[S.SS + S.ATTR] >> 14 & 1 else 0xFFFF
        top = self[S.SS + S.BASE] + (self[S.RSP] & mask)
        return list(struct.unpack(f"<{count}{'_BH_I'[size]}", self.read(top, count * size)))


class Real(Handled):
    """Real mode: code at 1000:0, data at 2000:0, stack at 4000:8000."""

    CODE = 0x10000

    def __init__(self) -> None:
        super().__init__()
        self[S.CR0], self[S.CR4], self[S.EFER] = 0x10, 0, 0
        self[S.IDTR_BASE], self[S.IDTR_LIMIT] = 0, 0x3FF
        self[S.GDTR_BASE], self[S.GDTR_LIMIT] = 0, 0
        self.write_handlers(0x1000)
        for vector in range(256):
            self.write(4 * vector, struct.pack("<HH", 0x1000 + vector, 0))
        for name, at in SEGMENTS.items():
            self.segment(at, {"cs": 0x1000, "ss": 0x4000}.get(name, 0x2000), 0x9B if name == "cs" else 0x93)
            self[at + S.BASE], self[at + S.LIMIT] = self[at + S.SEL] << 4, 0xFFFF
        self.set(sp=0x8000)
        self.rflags = 2
        self.function("tlb_init")

    def execute(self, text: str, at: int = 0) -> int:
        """Run 16-bit assembly from an offset in the code segment until an exit."""
        self.write(self.CODE + at, assemble(text, at, 16))
        self[S.CS + S.SEL], self[S.CS + S.BASE], self[S.RIP] = 0x1000, self.CODE, at
        self.derive()
        return self.run()


def descriptor(base: int, limit: int, access: int, flags: int = 0) -> bytes:
    """A segment descriptor; limit in the unit that flags' G bit (8) says; flags' other bits: 4 D/B, 2 L."""
    low = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40
    return struct.pack("<Q", low | (limit >> 16 & 15) << 48 | flags << 52 | (base >> 24) << 56)


def gate(selector: int, offset: int, access: int, count: int = 0) -> bytes:
    """A call, interrupt, trap or task gate."""
    return struct.pack("<HHBBH", offset & 0xFFFF, selector, count, access, offset >> 16)


class Protected(Handled):
    """Flat 32-bit protected mode at CPL 0 in a task of its own; a second task is ready to be switched to."""

    CODE, GDT, IDT, TSS, TSS2, TSS16, STACK, STACK3 = (
        0x10000, 0x8000, 0x9000, 0xA000, 0xA100, 0xA200, 0x50000, 0x58000,
    )  # fmt: skip
    INNER = 0x40000  # the stack of CPL 0 for callers from outside
    CS0, DS0, CS3, DS3, TR, TR2, TR16 = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x30, 0x38
    FREE = 0x40  # selectors from here on are a test's own

    def __init__(self) -> None:
        super().__init__()
        self[S.CR0], self[S.CR4], self[S.EFER] = 0x11, 0, 0
        self.write_handlers(0x1000)
        self.describe(self.CS0, descriptor(0, 0xFFFFF, 0x9B, 0xC))
        self.describe(self.DS0, descriptor(0, 0xFFFFF, 0x93, 0xC))
        self.describe(self.CS3, descriptor(0, 0xFFFFF, 0xFB, 0xC))
        self.describe(self.DS3, descriptor(0, 0xFFFFF, 0xF3, 0xC))
        self.describe(self.TR, descriptor(self.TSS, 0x67, 0x8B))
        self.describe(self.TR2, descriptor(self.TSS2, 0x67, 0x89))
        self.describe(self.TR16, descriptor(self.TSS16, 0x2B, 0x81))
        for vector in range(256):
            self.interrupt(vector, gate(self.CS0, self.handlers + vector, 0x8E))
        self.write(self.TSS + 4, struct.pack("<II", self.INNER, self.DS0))
        self[S.GDTR_BASE], self[S.GDTR_LIMIT] = self.GDT, 0xFF
        self[S.IDTR_BASE], self[S.IDTR_LIMIT] = self.IDT, 0x7FF
        self[S.TR + S.SEL], self[S.TR + S.BASE], self[S.TR + S.LIMIT] = self.TR, self.TSS, 0x67
        self.write(self.TSS + 0x66, struct.pack("<H", 0x68))  # no I/O permission bitmap
        self.rflags = 2
        self.level(0)
        self.function("tlb_init")

    def describe(self, selector: int, data: bytes) -> None:
        self.write(self.GDT + (selector & 0xFFF8), data)

    def described(self, selector: int) -> int:
        """The access byte of a descriptor."""
        return self.read(self.GDT + (selector & 0xFFF8) + 5, 1)[0]

    def interrupt(self, vector: int, data: bytes) -> None:
        self.write(self.IDT + 8 * vector, data)

    def level(self, cpl: int) -> None:
        """Flat segments of a level, and its stack."""
        for name, at in SEGMENTS.items():
            base = self.CS0 if name == "cs" else self.DS0
            self.segment(at, (base if cpl == 0 else base + 0x10) | cpl, 0xC09B if name == "cs" else 0xC093)
            self[at + S.ATTR] |= cpl << 5
        self[S.RSP] = self.STACK3 if cpl else self.STACK

    def v86(self) -> None:
        """Virtual-8086 mode: code at 1000:0, data at 2000:0, stack at 4000:8000."""
        for name, at in SEGMENTS.items():
            self.segment(at, {"cs": 0x1000, "ss": 0x4000}.get(name, 0x2000), 0xF3)
            self[at + S.BASE], self[at + S.LIMIT] = self[at + S.SEL] << 4, 0xFFFF
        self[S.RSP] = 0x8000
        self.rflags |= S.VM86

    def task(self, at: int, **fields: int) -> None:
        """Write a 32-bit TSS; what is not named is flat, at CPL 0."""
        values = dict.fromkeys(("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi", "cr3", "ldt", "flag"), 0)
        values |= {"eip": 0, "eflags": 2, "esp": 0x30000, "cs": self.CS0}
        values |= dict.fromkeys(("es", "ss", "ds", "fs", "gs"), self.DS0) | fields
        order = ["cr3", "eip", "eflags", "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"]
        order += ["es", "cs", "ss", "ds", "fs", "gs", "ldt", "flag"]
        self.write(at + 0x1C, struct.pack("<19I", *(values[name] for name in order)))
        self.write(at + 4, struct.pack("<II", self.INNER, self.DS0))

    def execute(self, text: str, bits: int = 32) -> int:
        """Run assembly from CODE until an exit."""
        at = self.CODE - self[S.CS + S.BASE]
        self.write(self.CODE, assemble(text, at, bits))
        self[S.RIP] = at
        self.derive()
        return self.run()
