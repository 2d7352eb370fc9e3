"""Our processor on a batch: load a case, `step`, store the result, put memory back."""

from __future__ import annotations

import numpy as np
from kvmfs.jit import state as S
from kvmfs.jit.cpu.descriptor import load_hidden
from kvmfs.jit.cpu.flags import rflags, set_arithmetic
from kvmfs.jit.raw import call1, load8, load16, load32, load64, memcpy, store16, store32, store64
from numba import njit

from ...guest import Guest
from ..ours import DERIVE, STEP
from . import layout as L
from .memory import compare_memory, put_case

FIELDS = {name: L.CASE.fields[name][1] for name in L.CASE.names}  # type: ignore[index]
SIZE = L.CASE.itemsize
GPR, EIP, FLAGS, SEGMENT, VECTOR, REPEAT = (
    FIELDS[name] for name in ("gpr", "eip", "flags", "segment", "vector", "repeat")
)
CR0, CR3, CR4, GDT, IDT, LDTR, TR, DR7 = (
    FIELDS[name] for name in ("cr0", "cr3", "cr4", "gdt", "idt", "ldtr", "tr", "dr7")
)
MODE, NO_FAULT, OUTSIDE, EXIT, REPEATS = FIELDS["mode"], L.NO_FAULT, L.OUTSIDE, L.EXIT, L.REPEATS
GDT_BASE, LDT_BASE = L.GDT, L.LDT
REAL, V86 = (next(n for n, mode in enumerate(L.MODES) if mode.name == name) for name in ("real", "virtual-8086"))


@njit(error_model="numpy")
def load(s, c, template, ram):
    """The vCPU block from case `c`; all else in it as in the mode's `template`."""
    memcpy(s, template, S.IMAGE)
    memcpy(s + S.EXC_VECTOR, template + S.EXC_VECTOR, S.PIO_PORT - S.EXC_VECTOR)
    store64(s + S.MMIO_READS, 0)
    store64(s + S.MMIO_WRITES, 0)
    store64(s + S.PIO_STATE, 0)
    mode, flags = load8(c + MODE), load32(c + FLAGS)
    for i in range(8):
        store64(s + S.GPR + 8 * i, load32(c + GPR + 4 * i))
    store64(s + S.RIP, load32(c + EIP))
    store64(s + S.RFLAGS, flags & ~S.ARITHMETIC | 2)
    set_arithmetic(s, flags)
    for i in range(6):
        selector, seg = load16(c + SEGMENT + 2 * i), s + S.SEGMENTS + S.SEGMENT_SIZE * i
        if mode in (REAL, V86):
            store64(seg + S.SEL, selector)
            store64(seg + S.BASE, selector << 4)
            store64(seg + S.LIMIT, 0xFFFF)
            store64(seg + S.ATTR, (0x9B if i == 1 else 0x93) if mode == REAL else 0xF3)
        elif selector & 0xFFFC:
            table = ram + (LDT_BASE if selector & 4 else GDT_BASE)
            load_hidden(s, seg, selector, load64(table + (selector & 0xFFF8)))
        else:
            store64(seg + S.SEL, selector)
            store64(seg + S.BASE, 0)
            store64(seg + S.LIMIT, 0)
            store64(seg + S.ATTR, 1 << 16)
    return call1(load64(load64(s + S.FUNCTIONS) + 8 * DERIVE), s)


@njit(error_model="numpy")
def execute(s, repeat):
    """One instruction, all its iterations."""
    start, leave = load64(s + S.RIP), S.LEAVE_NEXT
    for _ in range(REPEATS):
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        leave = call1(load64(load64(s + S.FUNCTIONS) + 8 * STEP), s)
        if leave != S.LEAVE_NEXT or repeat == 0 or load64(s + S.RIP) != start or load64(s + S.MMIO_WRITES) != 0:
            break
    return leave


@njit(error_model="numpy")
def store(s, c, leave):
    """The result of a case into `c`."""
    for i in range(8):
        store32(c + GPR + 4 * i, load64(s + S.GPR + 8 * i))
    store32(c + EIP, load64(s + S.RIP))
    store32(c + FLAGS, rflags(s))
    for i in range(6):
        store16(c + SEGMENT + 2 * i, load64(s + S.SEGMENTS + S.SEGMENT_SIZE * i + S.SEL))
    store32(c + CR0, load64(s + S.CR0))
    store32(c + CR3, load64(s + S.CR3))
    store32(c + CR4, load64(s + S.CR4))
    store32(c + GDT, load64(s + S.GDTR_BASE))
    store32(c + GDT + 4, load64(s + S.GDTR_LIMIT))
    store32(c + IDT, load64(s + S.IDTR_BASE))
    store32(c + IDT + 4, load64(s + S.IDTR_LIMIT))
    store16(c + LDTR, load64(s + S.LDTR + S.SEL))
    store16(c + TR, load64(s + S.TR + S.SEL))
    store32(c + DR7, load64(s + S.DR7))
    vector, exit_ = NO_FAULT, load64(s + S.EXIT)
    if leave == S.LEAVE_EXCEPTION or (leave == S.LEAVE_NEXT and load64(s + S.EXC_PENDING)):
        vector = load64(s + S.EXC_VECTOR)
    elif load64(s + S.MMIO_WRITES) != 0 or (
        leave == S.LEAVE_EXIT and exit_ in (S.EXIT_MMIO_READ, S.EXIT_EMULATION_FAILURE)
    ):
        vector = OUTSIDE
    elif leave == S.LEAVE_EXIT and exit_ != S.EXIT_HLT and exit_ != S.EXIT_PIO:
        vector = EXIT + exit_
    store32(c + VECTOR, vector)
    return 0


@njit("int64(int64,int64,int64,int64,int64,int64,int64)", error_model="numpy", nogil=True)
def run_batch(s, templates, before, after, count, ram, pristine):
    """`count` cases from `before` to `after`; templates: a vCPU block for each mode."""
    for i in range(count):
        c, end = before + SIZE * i, after + SIZE * i
        memcpy(end, c, SIZE)
        put_case(c, ram)
        load(s, c, templates + S.SIZE * load8(c + MODE), ram)
        store(s, end, execute(s, load8(c + REPEAT)))
        compare_memory(end, ram, pristine)
    return 0


class Ours(Guest):
    """Our CPU, without paging."""

    size = L.MEMORY

    def __init__(self) -> None:
        super().__init__()
        self[S.MODE] = 1
        self._templates = np.zeros((len(L.MODES), S.SIZE), np.uint8)
        for number, mode in enumerate(L.MODES):
            self[S.CR0] = 0x11 if mode.protected else 0x10
            self.derive()
            self._templates[number] = np.frombuffer(self.read_cpu(0, S.SIZE), np.uint8)

    def enter_long_mode(self) -> None:
        """Not here: what all the modes have in common."""
        self[S.CR0], self[S.CR3], self[S.CR4], self[S.EFER] = 0x11, 0, 0, 0
        self[S.DR6], self[S.DR7], self[S.RFLAGS] = 0xFFFF0FF0, 0x400, 2
        self[S.GDTR_BASE], self[S.GDTR_LIMIT] = L.GDT, L.GDT_LIMIT
        self[S.IDTR_BASE], self[S.IDTR_LIMIT] = 0, 0x3FF
        self.segment(S.TR, L.TSS_BUSY, 0x8B)
        self[S.TR + S.BASE], self[S.TR + S.LIMIT] = L.TSS, 0x67
        self.segment(S.LDTR, L.LDT_SELECTOR, 0x82)
        self[S.LDTR + S.BASE], self[S.LDTR + S.LIMIT] = L.LDT, L.LDT_LIMIT
        self.function("tlb_init")
        self.derive()

    def run_cases(self, cases: np.ndarray, memory: np.ndarray) -> np.ndarray:
        """The cases after one instruction each. memory: what there is before each."""
        results = np.zeros(len(cases), L.CASE)
        self.write(0, memory.tobytes())
        run_batch(
            self.cpu.address, self._templates.ctypes.data, cases.ctypes.data, results.ctypes.data, len(cases),
            self.ram.address, memory.ctypes.data,
        )  # fmt: skip
        return results
