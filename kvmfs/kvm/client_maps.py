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
_QUERY: Final = struct.Struct("<QQQ QQQQ QQ IIII QQ")  # struct procmap_query of include/uapi/linux/fs.h


@dataclass(frozen=True, slots=True)
class Vma:
    """A mapping: `device` and `inode` of its file, 0 without one; `offset` of `start` in it."""

    start: int
    end: int
    offset: int
    device: int
    inode: int


class ClientMaps:
    def __init__(self, pid: int) -> None:
        self.fd = -1
        with contextlib.suppress(OSError):
            self.fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)

    def at(self, address: int) -> Vma | None:
        """The mapping that holds `address`; None when there is none, or nobody to ask."""
        if self.fd < 0:
            return None
        query = bytearray(_QUERY.size)
        _QUERY.pack_into(query, 0, _QUERY.size, 0, address, *[0] * 12)
        try:
            fcntl.ioctl(self.fd, PROCMAP_QUERY, query)
        except OSError:
            return None
        _, _, _, start, end, _, _, offset, inode, major, minor, *_ = _QUERY.unpack(query)
        return Vma(start, end, offset, os.makedev(major, minor), inode)
