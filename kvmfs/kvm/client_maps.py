"""Asking the kernel what one address of the client is mapped to: PROCMAP_QUERY on /proc/PID/maps (Linux 6.11).

The file is opened while paths can be, and asked ever after. One question costs a microsecond, however many mappings
there are.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

PROCMAP_QUERY: Final = 0xC0686611
COVERING_OR_NEXT: Final = 0x10
VMA_READABLE: Final = 1
VMA_WRITABLE: Final = 2
_QUERY: Final = struct.Struct("<QQQ QQQQ QQ IIII QQ")  # struct procmap_query of include/uapi/linux/fs.h


@dataclass(frozen=True, slots=True)
class Vma:
    """A mapping: `device` and `inode` of its file, 0 without one; `offset` of `start` in it; `flags`: VMA_*."""

    start: int
    end: int
    offset: int
    device: int
    inode: int
    flags: int = VMA_READABLE | VMA_WRITABLE


class ClientMaps:
    def __init__(self, pid: int) -> None:
        self.fd = -1
        with contextlib.suppress(OSError):
            self.fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)

    def at(self, address: int) -> Vma | None:
        """The mapping that holds `address`; None when there is none, or nobody to ask."""
        return self._ask(address, 0)

    def after(self, address: int) -> Vma | None:
        """The mapping that holds `address`, or else the next one."""
        return self._ask(address, COVERING_OR_NEXT)

    def _ask(self, address: int, flags: int) -> Vma | None:
        if self.fd < 0:
            return None
        query = bytearray(_QUERY.size)
        _QUERY.pack_into(query, 0, _QUERY.size, flags, address, *[0] * 12)
        try:
            fcntl.ioctl(self.fd, PROCMAP_QUERY, query)
        except OSError:
            return None
        _, _, _, start, end, flags, _, offset, inode, major, minor, *_ = _QUERY.unpack(query)
        return Vma(start, end, offset, os.makedev(major, minor), inode, flags & (VMA_READABLE | VMA_WRITABLE))
