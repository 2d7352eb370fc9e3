"""Unicorn on the same cases, by its C interface from one compiled loop.

A mode is entered once, by IRET as a guest would, and kept as a context; each case begins with that.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from ctypes import addressof, c_int64, c_uint64

import numpy as np
import unicorn.x86_const as X
from kvmfs.jit.raw import load8, load16, load32, load64, memcpy, store16, store32, store64
from numba import cfunc, njit
from unicorn import UC_ARCH_X86, UC_ERR_FETCH_UNMAPPED, UC_ERR_INSN_INVALID, UC_HOOK_INTR, UC_MODE_16, UC_MODE_32, Uc
from unicorn.unicorn_const import UC_CTL_IO_WRITE, UC_CTL_TB_REMOVE_CACHE, UC_PROT_ALL
from unicorn.unicorn_py3.unicorn import uclib

from . import layout as L
from .memory import CODE_BYTES, compare_memory, put_case
from .ours import FIELDS, FLAGS, GPR, MODE, REPEAT, SEGMENT, SIZE, VECTOR

_NAMES = ["EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI"]
_SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"]
_SYSTEM = ["CR0", "CR3", "CR4", "GDTR", "IDTR", "LDTR", "TR", "DR7"]
WRITTEN = [*(f for f in _SEGMENTS if f not in ("CS", "SS")), *_NAMES, "EFLAGS"]
READ = [*_NAMES, "EIP", "EFLAGS", *_SEGMENTS, *_SYSTEM]
SLOT = 24  # of a register's value: struct uc_x86_mmr {u16 selector; u64 base; u32 limit, flags}
LIMIT = 16
INVALID, FETCHED = UC_ERR_INSN_INVALID, UC_ERR_FETCH_UNMAPPED
REMOVE = UC_CTL_TB_REMOVE_CACHE | 2 << 26 | UC_CTL_IO_WRITE << 30
EIP, CR0, CR3, CR4, GDT, IDT, LDTR, TR, DR7 = (
    FIELDS[name] for name in ("eip", "cr0", "cr3", "cr4", "gdt", "idt", "ldtr", "tr", "dr7")
)
NO_FAULT, OUTSIDE, REPEATS, CODE = L.NO_FAULT, L.OUTSIDE, L.REPEATS, L.CODE
_AT = {name: SLOT * number for number, name in enumerate(READ)}
R_GPR, R_EIP, R_FLAGS, R_SEGMENT = _AT["EAX"], _AT["EIP"], _AT["EFLAGS"], _AT["ES"]
R_CR0, R_CR3, R_CR4, R_GDTR, R_IDTR, R_LDTR, R_TR, R_DR7 = (_AT[name] for name in _SYSTEM)
NWRITTEN, NREAD = len(WRITTEN), len(READ)


def _native(name: str, arguments: int):
    function = ctypes.CDLL(uclib._name)[name]  # of its own: argument types are per object
    function.argtypes, function.restype = [c_int64] * arguments, ctypes.c_int
    return function


start, restore = _native("uc_emu_start", 5), _native("uc_context_restore", 2)
write_registers, read_registers = _native("uc_reg_write_batch", 4), _native("uc_reg_read_batch", 4)
control = _native("uc_ctl", 4)
HOOK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, c_int64)


@cfunc("void(int64,uint32,int64)")
def interrupted(engine, vector, place):
    """UC_HOOK_INTR: exceptions come here in place of the IDT."""
    store64(place, vector + 1)
    return


class Registers:
    """What Unicorn's batch functions take: numbers, and addresses of values."""

    def __init__(self, names: list[str]) -> None:
        self._numbers = np.array([getattr(X, f"UC_X86_REG_{name}") for name in names], np.int32)
        self._values = np.zeros(SLOT * len(names), np.uint8)
        self._pointers = self._values.ctypes.data + SLOT * np.arange(len(names), dtype=np.int64)
        parts = (self._numbers, self._pointers, self._values)
        self._parts = np.array([part.ctypes.data for part in parts], np.int64)

    @property
    def address(self) -> int:
        return self._parts.ctypes.data


@njit(error_model="numpy")
def write_case(c, values):
    """WRITTEN from a case."""
    for i in range(4):
        store64(values + SLOT * i, load16(c + SEGMENT + 2 * (i if i == 0 else i + 2)))
    for i in range(8):
        store64(values + SLOT * (4 + i), load32(c + GPR + 4 * i))
    store64(values + SLOT * 12, load32(c + FLAGS))


@njit(error_model="numpy")
def read_case(c, values):
    """READ into a case."""
    for i in range(8):
        store32(c + GPR + 4 * i, load32(values + R_GPR + SLOT * i))
    store32(c + EIP, load32(values + R_EIP))
    store32(c + FLAGS, load32(values + R_FLAGS))
    for i in range(6):
        store16(c + SEGMENT + 2 * i, load16(values + R_SEGMENT + SLOT * i))
    store32(c + CR0, load32(values + R_CR0))
    store32(c + CR3, load32(values + R_CR3))
    store32(c + CR4, load32(values + R_CR4))
    store32(c + GDT, load32(values + R_GDTR + 8))
    store32(c + GDT + 4, load32(values + R_GDTR + LIMIT))
    store32(c + IDT, load32(values + R_IDTR + 8))
    store32(c + IDT + 4, load32(values + R_IDTR + LIMIT))
    store16(c + LDTR, load16(values + R_LDTR))
    store16(c + TR, load16(values + R_TR))
    store32(c + DR7, load32(values + R_DR7))


@njit(error_model="numpy")
def is_another(c, former):
    """Whether a case has another instruction than the one before, or another mode."""
    if former == 0 or load8(c + MODE) != load8(former + MODE):
        return True
    return load64(c + CODE_BYTES) != load64(former + CODE_BYTES) or load64(c + 8 + CODE_BYTES) != load64(
        former + 8 + CODE_BYTES
    )


@njit("int64(int64,int64,int64,int64,int64,int64,int64,int64,int64)", error_model="numpy")
def run_batch(engines, before, after, count, writing, reading, seen, ram, pristine):
    """`count` cases. engines: {engine, context, where emulation begins, its IP} for each mode; writing, reading:
    {numbers, addresses of values, values} of the registers; seen: where interrupted() leaves its word."""
    values, former = load64(reading + 16), 0
    for i in range(count):
        c, end = before + SIZE * i, after + SIZE * i
        memcpy(end, c, SIZE)
        engine = engines + 32 * load8(c + MODE)
        uc, begin, ip = load64(engine), load64(engine + 16), load64(engine + 24)
        put_case(c, ram)
        if is_another(c, former):
            control(uc, REMOVE, CODE, CODE + 32)
        former = c
        restore(uc, load64(engine + 8))
        write_case(c, load64(writing + 16))
        write_registers(uc, load64(writing), load64(writing + 8), NWRITTEN)
        error = 0
        for _ in range(REPEATS):
            store64(seen, 0)
            error = start(uc, begin, -1, 0, 1)
            read_registers(uc, load64(reading), load64(reading + 8), NREAD)
            if error != 0 or load64(seen) != 0 or load8(c + REPEAT) == 0 or load32(values + R_EIP) != ip:
                break
        read_case(end, values)
        vector = NO_FAULT
        if load64(seen) != 0:
            vector = load64(seen) - 1
        elif error == INVALID:
            vector = 6
        elif error != 0 and error != FETCHED:
            vector = OUTSIDE
        store32(end + VECTOR, vector)
        compare_memory(end, ram, pristine)
    return 0


class Unicorn:
    """Unicorn in each of the modes, all with the same memory."""

    def __init__(self) -> None:
        self._ram = mmap.mmap(-1, L.MEMORY)
        self._view = (ctypes.c_char * L.MEMORY).from_buffer(self._ram)
        self._ram[: L.AREA] = L.tables()
        self._seen = c_int64(0)
        self._writing, self._reading = Registers(WRITTEN), Registers(READ)
        self._engines = np.zeros((len(L.MODES), 4), np.int64)
        self._kept: list[object] = []
        for number, mode in enumerate(L.MODES):
            uc = self._engine(mode)
            context = uc.context_save()
            self._kept += [uc, context]
            begin = mode.ip if mode.protected else L.CODE  # linear where Unicorn knows that it is real mode
            self._engines[number] = uc._uch.value, context.context.value, begin, mode.ip

    def _engine(self, mode: L.Mode) -> Uc:
        uc = Uc(UC_ARCH_X86, UC_MODE_32 if mode.protected else UC_MODE_16)
        uc.mem_map_ptr(0, L.MEMORY, UC_PROT_ALL, addressof(self._view))
        hook = c_uint64(0)
        callback = ctypes.cast(interrupted.address, HOOK)
        nothing = c_uint64(0)
        uclib.uc_hook_add(
            uc._uch, ctypes.byref(hook), UC_HOOK_INTR, callback, ctypes.c_void_p(addressof(self._seen)),
            c_uint64(1), nothing,
        )  # fmt: skip
        write = lambda name, value: uc.reg_write(getattr(X, f"UC_X86_REG_{name}"), value)  # noqa: E731
        write("GDTR", (0, L.GDT, L.GDT_LIMIT, 0))
        write("IDTR", (0, 0, 0x3FF, 0))
        write("LDTR", (L.LDT_SELECTOR, L.LDT, L.LDT_LIMIT, 0x8200))
        write("TR", (L.TSS_BUSY, L.TSS, 0x67, 0x8900))  # Unicorn wants it not busy
        write("CR4", 0)
        write("CR0", 0x11 if mode.protected else 0x10)
        if mode.cpl == 3:
            self._return_to(uc, mode)
        else:
            write("CS", mode.cs)
            write("SS", mode.ss)
        return uc

    def _return_to(self, uc: Uc, mode: L.Mode) -> None:
        """By IRET, as a guest would: Unicorn lets nobody write another CPL."""
        for name, selector in (("CS", L.CODE32), ("SS", L.DATA32)):
            uc.reg_write(getattr(X, f"UC_X86_REG_{name}"), selector)
        flags = 0x20002 if mode.v86 else 2
        frame = struct.pack("<9I", mode.ip, mode.cs, flags, 0x8000, mode.ss, *[mode.usual] * 4)
        uc.mem_write(L.ENTRY, b"\xcf" + bytes(7) + frame)
        uc.reg_write(X.UC_X86_REG_ESP, L.ENTRY + 8)
        uc.emu_start(L.ENTRY, -1 & 0xFFFFFFFF, count=1)

    def run_cases(self, cases: np.ndarray, memory: np.ndarray) -> np.ndarray:
        """The cases after one instruction each; see ours.Ours."""
        results = np.zeros(len(cases), L.CASE)
        self._ram[:] = memory.tobytes()
        run_batch(
            self._engines.ctypes.data, cases.ctypes.data, results.ctypes.data, len(cases), self._writing.address,
            self._reading.address, addressof(self._seen), addressof(self._view), memory.ctypes.data,
        )  # fmt: skip
        return results
