"""Handlers run on many contexts at once: the other side of the comparison with native.py."""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable

import numpy as np
from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.cpu import record as R
from kvmfs.jit.raw import PLAIN

ARITHMETIC = S.ARITHMETIC
RIP = 0x1234_5000
LENGTH = 4  # of the pretended instruction

REGISTERS = {name: S.GPR + 8 * n for n, name in enumerate(["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"])}
REGISTERS |= {f"r{n}": S.GPR + 8 * n for n in range(8, 16)}
REGISTERS |= {f"xmm{n}": S.VEC + 64 * n for n in range(16)}


@functools.cache
def _group_of(handler: str) -> build.Group:
    for name in (
        "alu",
        "shift",
        "muldiv",
        "move",
        "bits",
        "branch",
        "sse_move",
        "string",
        "sse_float",
        "sse_convert",
        "vex",
    ):
        group = importlib.import_module(build.GROUP_MODULES[name]).group
        if handler in group.members:
            return group
    raise KeyError(handler)


@functools.cache
def _table(group: str) -> ctypes.Array:
    table = (ctypes.c_int64 * build.TABLE_SLOTS)()
    build.Group.registry[group].fill()(ctypes.addressof(table))
    return table


def handler(name: str) -> Callable[[int, int], int]:
    """`f(vcpu, record)` by its name: the compiled function, or the Python one under NUMBA_DISABLE_JIT=1."""
    group = _group_of(name)
    if PLAIN:
        return group.members[name]
    address = _table(group.name)[group.slot(name)]
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)


def aligned(rows: int, size: int) -> np.ndarray:
    """Zeroed int64 rows of `size` bytes, 64-byte aligned."""
    space = np.zeros(rows * size // 8 + 8, np.int64)
    skip = -space.ctypes.data % 64 // 8
    return space[skip : skip + rows * size // 8].reshape(rows, size // 8)


class Machines:
    """A vCPU block and a record for each context."""

    def __init__(self, count: int) -> None:
        self.state = aligned(count, S.SIZE)
        self.records = aligned(count, 2 * R.RECORD)
        self._state_bytes = self.state.view(np.uint8)
        self._record_bytes = self.records.view(np.uint8)
        self.base = self.state.ctypes.data + S.SIZE * np.arange(count)
        self.record = self.records.ctypes.data + 2 * R.RECORD * np.arange(count)
        self.word(S.BLOCK_RIP)[:] = RIP
        self.byte(R.NEXT)[:] = LENGTH
        self.word(S.RFLAGS)[:] = 2
        self.word(S.CR4)[:] = S.CR4_OSFXSR | S.CR4_OSXMMEXCPT
        self.word(S.HFLAGS)[:] = S.MODE_CODE64 | S.MODE_LONG | S.MODE_PROTECTED | S.MODE_PAGING

    def word(self, field: int) -> np.ndarray:
        """A 64-bit word of every vCPU block."""
        return self.state[:, field // 8]

    def field(self, field: int) -> np.ndarray:
        """A 64-bit field of every record."""
        return self.records[:, field // 8]

    def byte(self, field: int) -> np.ndarray:
        """A byte field of every record."""
        return self._record_bytes[:, field]

    def operand(self, name: str) -> np.ndarray:
        """The host address that `rbx`, `xmm1`, `rax+1` or `imm` has in each machine."""
        if name == "imm":
            return self.record + R.IMM
        register, _, offset = name.partition("+")
        return self.base + REGISTERS[register] + int(offset or 0)

    def set_flags(self, flags: np.ndarray) -> None:
        """Load RFLAGS. The lazy words are written as cpu/flags.py documents them, from a clean form."""
        flags = flags.astype(np.int64)
        carry, overflow = flags & 1, flags >> 11 & 1
        aux = (carry << 63) | (carry ^ overflow) << 62 | (flags >> 4 & 1) << 3
        aux |= (1 - (flags >> 2 & 1)) << 8 | flags >> 7 & 1
        self.word(S.FLAG_RESULT)[:] = np.where(flags & S.ZF, 0, 0x100)
        self.word(S.FLAG_AUX)[:] = aux
        self.word(S.RFLAGS)[:] = flags & ~ARITHMETIC | 2

    def flags(self) -> np.ndarray:
        """RFLAGS of every machine."""
        result, aux = self.word(S.FLAG_RESULT), self.word(S.FLAG_AUX)
        parity = (result ^ aux >> 8) & 0xFF
        for shift in (4, 2, 1):
            parity ^= parity >> shift
        carry = aux >> 63 & 1
        flags = self.word(S.RFLAGS) | carry | (~parity & 1) << 2 | (aux >> 3 & 1) << 4 | (result == 0) << 6
        return flags | ((result >> 63 ^ aux) & 1) << 7 | (carry ^ aux >> 62 & 1) << 11

    def run(self, name: str) -> np.ndarray:
        """Call a handler on every machine; the returned record addresses."""
        function = handler(name)
        pairs = zip(self.base.tolist(), self.record.tolist(), strict=True)
        return np.array([function(s, r) for s, r in pairs], np.int64)
