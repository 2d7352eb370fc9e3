"""Guest memory for handlers under test: linear addresses are host addresses below 4 GiB."""

from __future__ import annotations

import ctypes
import mmap

from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.cpu import access
from kvmfs.jit.mmu import layout as M

from .machine import Machines, aligned

PAGE = 4096
MAP_32BIT = 0x40
_SLOW = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class Memory:
    """Pages of guest memory. The TLB knows those that are `present`; the slow path copies within them (accesses that
    cross a page come here) and raises #PF for all others."""

    def __init__(self, machines: Machines, pages: int, present: range | None = None) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_32BIT
        self.space = mmap.mmap(-1, pages * PAGE, flags=flags)
        self._anchor = ctypes.c_char.from_buffer(self.space)
        self.address = ctypes.addressof(self._anchor)
        self.present = {self.address + PAGE * n for n in (present if present is not None else range(pages))}
        self._tlb = aligned(1, M.TLB_SIZE)
        self._tlb[:] = M.TLB_INVALID
        for page in self.present:
            entry = (page >> 12) % M.TLB_ENTRIES * M.TLB_ENTRY // 8
            self._tlb[0, entry : entry + M.TLB_ENTRY // 8] = (page, page, M.TLB_INVALID, 0)
        self._table = (ctypes.c_int64 * build.TABLE_SLOTS)()
        self._callbacks = []
        for slot, write in ((access.READ_SLOW, False), (access.WRITE_SLOW, True)):
            callback = _SLOW(lambda s, la, size, pointer, write=write: self._slow(s, la, size, pointer, write))
            self._callbacks.append(callback)
            self._table[slot] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        machines.word(S.TLB)[:] = self._tlb.ctypes.data
        machines.word(S.FUNCTIONS)[:] = ctypes.addressof(self._table)

    def _slow(self, s: int, la: int, size: int, pointer: int, write: bool) -> int:
        size &= (1 << M.ACCESS_SHIFT) - 1  # flags are above
        for address in (la, la + size - 1):
            if address & -PAGE not in self.present:
                state = {S.CR2: max(la, address & -PAGE), S.EXC_VECTOR: 14, S.LEAVE: S.LEAVE_EXCEPTION}
                for field, value in state.items():
                    ctypes.c_int64.from_address(s + field).value = value
                return 0
        ctypes.memmove(*((la, pointer) if write else (pointer, la)), size)
        return 1

    def word(self, address: int) -> int:
        return ctypes.c_uint64.from_address(address).value
