"""Our processor on the same cases: user mode, with the page tables and descriptor tables that native.c's process has.

The whole batch is one call of a compiled loop: load a case, `step`, store the result. What `step` would deliver through
the IDT is taken as the result: vector, error code, CR2.
"""

from __future__ import annotations

import numpy as np
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features
from kvmfs.jit.cpu.descriptor import load_hidden
from kvmfs.jit.cpu.exception import group as exception_group
from kvmfs.jit.cpu.flags import rflags, set_arithmetic
from kvmfs.jit.cpu.fpu_image import MXCSR_MASK_AT
from kvmfs.jit.cpu.run import group as run_group
from kvmfs.jit.raw import (
    call1,
    load8,
    load16,
    load32,
    load64,
    memcpy,
    memset,
    s64,
    store8,
    store16,
    store32,
    store64,
)
from numba import njit

from ..guest import Guest
from . import layout as L

TABLES = 0x1000  # guest-physical: PML4, then a PDPT and a PD for low addresses, page tables for code and data
CODE_GPA, DATA_GPA, DESCRIPTORS_GPA = 0x10_0000, 0x20_0000, 0x30_0000
DESCRIPTORS = 0xFFFF_FE00_0000_0000  # linear; supervisor only. GDT, then on the next page the LDT
TSS = 0x800  # its offset on the page of the GDT
PRESENT, WRITE, USER = 1, 2, 4
GDT = {0x20: 0x00CF_FB00_0000_FFFF, 0x28: 0x00CF_F300_0000_FFFF, 0x30: 0x00AF_FB00_0000_FFFF}

STEP, DERIVE = run_group.slot("step"), exception_group.slot("derive")
MIX = s64(0x9E3779B97F4A7C15)
FIELDS = {name: L.STATE.fields[name][1] for name in L.STATE.names}  # type: ignore[index]
SIZE, DATA_BYTES = L.STATE.itemsize, L.WRITABLE_PAGES * L.PAGE
GPR, RIP, FLAGS, FS_BASE, GS_BASE, ADDRESS, DIGEST, VALUE, SEGMENT, FCW, FSW, FTW, FOP, MXCSR, VECTOR, ERROR = (
    FIELDS[name]
    for name in (
        "gpr", "rip", "flags", "fs_base", "gs_base", "address", "digest", "value", "segment", "fcw", "fsw", "ftw",
        "fop", "mxcsr", "vector", "error",
    )
)  # fmt: skip
REPEAT, LENGTH, IMAGE, CHANGED, CODE_BYTES, ST, VEC = (
    FIELDS[name] for name in ("repeat", "length", "image", "changed", "code", "st", "vec")
)
(CODE, USER64_CS, NO_FAULT, EXIT, REPEATS) = (L.CODE, L.USER64_CS, L.NO_FAULT, L.EXIT, L.REPEATS)


@njit(error_model="numpy")
def load(s, c, template, tables):
    """The vCPU block from case `c`; all else in it as in `template`."""
    memcpy(s, template, S.IMAGE)
    memcpy(s + S.EXC_VECTOR, template + S.EXC_VECTOR, S.PIO_PORT - S.EXC_VECTOR)
    store64(s + S.MMIO_READS, 0)
    store64(s + S.MMIO_WRITES, 0)
    memcpy(s + S.GPR, c + GPR, 128)
    store64(s + S.RIP, load64(c + RIP))
    flags = load64(c + FLAGS) | S.TF  # as on the host: PUSHF shows it
    store64(s + S.RFLAGS, flags & ~S.ARITHMETIC | 2)
    set_arithmetic(s, flags)
    for i in range(6):
        selector, seg = load16(c + SEGMENT + 2 * i), s + S.SEGMENTS + S.SEGMENT_SIZE * i
        if selector & 0xFFFC:
            table = tables + (4096 if selector & 4 else 0)
            load_hidden(s, seg, selector, load64(table + (selector & 0xFFF8)))
        else:
            store64(seg + S.SEL, selector)
            store64(seg + S.BASE, 0)
            store64(seg + S.LIMIT, 0)
            store64(seg + S.ATTR, 1 << 16)
    if load16(c + SEGMENT + 2) == USER64_CS:
        store64(s + S.FS + S.BASE, load64(c + FS_BASE))
        store64(s + S.GS + S.BASE, load64(c + GS_BASE))
    store16(s + S.FCW, load16(c + FCW))
    store16(s + S.FSW, load16(c + FSW))
    store8(s + S.FTW, load16(c + FTW))
    memcpy(s + S.ST, c + ST, 128)
    store64(s + S.FOP, load16(c + FOP))
    store64(s + S.MXCSR, load32(c + MXCSR))
    for i in range(16):
        memcpy(s + S.VEC + 64 * i, c + VEC + 32 * i, 32)
    return call1(load64(load64(s + S.FUNCTIONS) + 8 * DERIVE), s)


@njit(error_model="numpy")
def execute(s, c):
    """One instruction, all its iterations."""
    start, repeat = load64(s + S.RIP), load8(c + REPEAT)
    for _ in range(REPEATS):
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        leave = call1(load64(load64(s + S.FUNCTIONS) + 8 * STEP), s)
        if leave == S.LEAVE_EXIT or leave == S.LEAVE_EXCEPTION:
            return leave
        if load64(s + S.EXC_PENDING) != 0:  # the single-step trap
            store64(s + S.EXC_PENDING, 0)
            if repeat == 0 or load64(s + S.RIP) != start:
                return S.LEAVE_NEXT
        # else nothing trapped: MOV SS holds that back, and the next instruction runs too
    return S.LEAVE_NEXT


@njit(error_model="numpy")
def store(s, c, leave):
    """The result of a case into `c`."""
    memcpy(c + GPR, s + S.GPR, 128)
    store64(c + RIP, load64(s + S.RIP))
    store64(c + FLAGS, rflags(s) & ~S.TF)
    store64(c + FS_BASE, load64(s + S.FS + S.BASE))
    store64(c + GS_BASE, load64(s + S.GS + S.BASE))
    for i in range(6):
        store16(c + SEGMENT + 2 * i, load64(s + S.SEGMENTS + S.SEGMENT_SIZE * i + S.SEL))
    store16(c + FCW, load16(s + S.FCW))
    store16(c + FSW, load16(s + S.FSW))
    store16(c + FTW, load8(s + S.FTW))
    store16(c + FOP, load64(s + S.FOP))
    store32(c + MXCSR, load64(s + S.MXCSR))
    for i in range(8):
        memcpy(c + ST + 16 * i, s + S.ST + 16 * i, 10)
    for i in range(16):
        memcpy(c + VEC + 32 * i, s + S.VEC + 64 * i, 32)
    vector, error, address = NO_FAULT, 0, 0
    if leave == S.LEAVE_EXCEPTION:
        vector = load64(s + S.EXC_VECTOR)
        error = load64(s + S.EXC_ERROR) if load64(s + S.EXC_HAS_ERROR) else 0
        address = load64(s + S.EXC_PAYLOAD) if vector == S.PF_FAULT else 0
    elif leave == S.LEAVE_EXIT:
        vector = EXIT + load64(s + S.EXIT)
    store32(c + VECTOR, vector)
    store32(c + ERROR, error)
    store64(c + ADDRESS, address)
    return 0


@njit(error_model="numpy")
def compare_memory(c, memory, pristine):
    """native.c's compare_memory()."""
    digest, changed, at = 0, 0, 0
    store64(c + VALUE, 0)
    if load16(c + IMAGE) != 0:
        store16(memory + load16(c + IMAGE) - 1 + MXCSR_MASK_AT + 2, 0)
    while at < DATA_BYTES:
        value = load64(memory + at)
        if value != load64(pristine + at):
            if digest == 0:
                changed = at + 1
                store64(c + VALUE, value)
            digest = (digest ^ value) * MIX + at // 8
            store64(memory + at, load64(pristine + at))
        at += 8
    store64(c + DIGEST, digest)
    store16(c + CHANGED, changed)
    return 0


@njit("int64(int64,int64,int64,int64,int64,int64,int64,int64,int64)", error_model="numpy", nogil=True)
def run_batch(s, template, before, after, count, code, tables, memory, pristine):
    """`count` cases from `before` to `after`; code, tables, memory: host addresses of those pages of the guest."""
    for i in range(count):
        c, end = before + SIZE * i, after + SIZE * i
        memcpy(end, c, SIZE)
        load(s, c, template, tables)
        at = code + load64(c + RIP) - (CODE if load64(c + RIP) >= CODE else 0)
        memcpy(at, c + CODE_BYTES, load8(c + LENGTH))
        store(s, end, execute(s, end))
        memset(at, 0x90, load8(c + LENGTH))
        compare_memory(end, memory, pristine)
    return 0


class Ours(Guest):
    """Our CPU. `skipped`: CPUID features that it shall not have, by features.NAMES."""

    def __init__(self, skipped: frozenset[str] = frozenset()) -> None:
        super().__init__()
        for bit, name in enumerate(features.NAMES):
            if name not in skipped:
                self[S.FEATURES + 8 * (bit // 64)] |= 1 << bit % 64
        self[S.MODE] = 1
        self._template = np.frombuffer(self.read_cpu(0, S.SIZE), np.uint8).copy()

    def enter_long_mode(self) -> None:
        """User mode. Linear memory as in layout.py; the descriptor tables where user mode cannot reach them."""
        entry = lambda at, value: self.write(at, value.to_bytes(8, "little"))  # noqa: E731
        pdpt, pd, code, data, high = (TABLES + L.PAGE * n for n in range(1, 6))
        everything = PRESENT | WRITE | USER
        entry(TABLES, pdpt | everything)
        entry(pdpt, pd | everything)
        entry(pd + 8 * (L.CODE >> 21 & 511), code | everything)
        entry(pd + 8 * (L.DATA >> 21 & 511), data | everything)
        for page in range(L.CODE_PAGES):
            entry(code + 8 * page, CODE_GPA + L.PAGE * page | PRESENT | USER)
        for page in range(L.DATA_PAGES):
            at = L.WRITABLE + L.PAGE * page
            access = PRESENT | USER | (0 if at == L.READABLE else WRITE)
            entry(data + 8 * (at >> 12 & 511), DATA_GPA + L.PAGE * page | access)
        entry(TABLES + 8 * (DESCRIPTORS >> 39 & 511), high | PRESENT | WRITE)
        entry(high, high + L.PAGE | PRESENT | WRITE)
        entry(high + L.PAGE, high + 2 * L.PAGE | PRESENT | WRITE)
        for page in range(2):
            entry(high + 2 * L.PAGE + 8 * page, DESCRIPTORS_GPA + L.PAGE * page | PRESENT | WRITE)
        for at, descriptor in GDT.items():
            entry(DESCRIPTORS_GPA + at, descriptor)
        for number, segment in enumerate(L.LDT):
            entry(DESCRIPTORS_GPA + L.PAGE + 8 * number, segment.descriptor)
        self[S.CR0], self[S.CR3] = 0x8005_0033, TABLES
        self[S.CR4] = S.CR4_PAE | S.CR4_OSFXSR | S.CR4_OSXMMEXCPT | S.CR4_UMIP | S.CR4_FSGSBASE | S.CR4_OSXSAVE
        self[S.XCR0] = 7
        self[S.EFER] = S.EFER_SCE | S.EFER_LME | S.EFER_LMA | S.EFER_NX
        self.segment(S.CS, L.USER64_CS, 0xA0FB)
        for seg in (S.DS, S.ES, S.SS, S.FS, S.GS):
            self.segment(seg, L.USER_DS, 0xC0F3)
        self.segment(S.TR, 0x40, 0x8B)
        self[S.TR + S.BASE], self[S.TR + S.LIMIT] = DESCRIPTORS + TSS, 0x67
        self.write(DESCRIPTORS_GPA + TSS + 0x66, b"\xff\xff")  # no I/O permission bitmap
        self.segment(S.LDTR, 0x50, 0x82)
        self[S.LDTR + S.BASE], self[S.LDTR + S.LIMIT] = DESCRIPTORS + L.PAGE, 8 * len(L.LDT) - 1
        self[S.GDTR_BASE], self[S.GDTR_LIMIT] = DESCRIPTORS, 0x7F
        self[S.RFLAGS] = 2
        self.function("tlb_init")
        self.derive()

    def run_cases(self, states: np.ndarray, data: np.ndarray) -> np.ndarray:
        """The states after one instruction each; see hostcpu.Host.run."""
        states, results = np.ascontiguousarray(states), np.zeros(len(states), L.STATE)
        data = np.ascontiguousarray(data)
        self.write(DATA_GPA, data.tobytes())
        self.write(CODE_GPA, b"\x90" * (L.CODE_PAGES * L.PAGE))
        ram = self.ram.address
        run_batch(
            self.cpu.address, self._template.ctypes.data, states.ctypes.data, results.ctypes.data, len(states),
            ram + CODE_GPA, ram + DESCRIPTORS_GPA, ram + DATA_GPA, data.ctypes.data,
        )  # fmt: skip
        return results
