"""Shared mappings of files at addresses that compiled code uses.

Not mmap.mmap: that keeps a duplicate of the fd for each mapping, and a VM may have tens of thousands.
"""

from __future__ import annotations

import ctypes
import os
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_NORESERVE: Final = 0x4000
_FAILED: Final = ctypes.c_void_p(-1).value


class Mapping:
    """`length` bytes of a file from `offset` on, at `address` until close(). The fd may be closed.

    hugetlbfs maps and unmaps whole pages of its own: those that the bytes lie in.
    """

    def __init__(self, fd: int, offset: int, length: int, *, writable: bool = True) -> None:
        protection = PROT_READ | PROT_WRITE if writable else PROT_READ
        page = max(os.fstat(fd).st_blksize, PAGESIZE)  # of hugetlbfs: the size of its pages
        before = offset % page
        self._size = (before + length + page - 1) // page * page
        address = _libc.mmap(None, self._size, protection, MAP_SHARED | _MAP_NORESERVE, fd, offset - before)
        if address == _FAILED or address is None:
            error = ctypes.get_errno()
            raise OSError(error, f"mmap: {os.strerror(error)}")
        self._start: int = address
        self.address: int = address + before
        self.length = length

    def close(self) -> None:
        """Nobody may use the address any more."""
        if self.length:
            _libc.munmap(self._start, self._size)
            self.length = 0
