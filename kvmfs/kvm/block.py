"""A raw memory block seen from Python: 64-bit words by byte offset."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

from kvmfs.kvm.mapping import Mapping

_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Block:
    """Zeroed, page-aligned memory that lives as long as this object; compiled code gets its `address`.

    With `memory` it is `size` bytes of that mapping, from `at` on, and keeps it.
    """

    def __init__(self, size: int, memory: Mapping | None = None, at: int = 0) -> None:
        self._memory = memory
        if memory is None:
            self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._pin: Any = ctypes.c_char.from_buffer(self._map)
            self._bytes = memoryview(self._map)
        else:
            self._pin = (ctypes.c_char * size).from_address(memory.address + at)
            self._bytes = memoryview(self._pin).cast("B")
        self._words = self._bytes.cast("Q")
        self.address = ctypes.addressof(self._pin)
        self.size = size

    def __getitem__(self, offset: int) -> int:
        """The word at a byte offset, unsigned."""
        return self._words[offset >> 3]

    def __setitem__(self, offset: int, value: int) -> None:
        self._words[offset >> 3] = value & _MASK

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._bytes[offset : offset + size])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._bytes[offset : offset + len(data)] = data

    def close(self) -> None:
        """Give the memory back; nobody may use the address any more."""
        self._words.release()
        self._bytes.release()
        del self._pin
        if self._memory is None:
            self._map.close()
