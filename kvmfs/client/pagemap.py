"""Which pages of a range hold data.

The PAGEMAP_SCAN ioctl of /proc/TID/pagemap (6.7) reports runs of pages, so the cost is that of what is there, not of
the size. Before, the file has 8 bytes for each page, of which the two uppermost bits count here: present, swapped.
Nothing is faulted in by either.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Iterator

PAGE = 4096
_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO = 1 << 3, 1 << 4, 1 << 5
_REGIONS = 512  # what the kernel collects in one go; for more, Linux up to 6.18 gives a wrong walk_end
_CHUNK = 1 << 17  # pages looked at in one read of the file

# The uppermost byte of an entry -> whether the page holds data.
_HOLDS_DATA = bytes(entry >= 0x40 for entry in range(256))
_RUN = re.compile(b"\x01+")


class _Region(ctypes.Structure):
    """struct page_region."""

    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


class _ScanArg(ctypes.Structure):
    """struct pm_scan_arg."""

    _names = (
        "size flags start end walk_end vec vec_len max_pages category_inverted category_mask category_anyof_mask"
        " return_mask"
    )
    _fields_ = tuple((name, ctypes.c_uint64) for name in _names.split(" "))


def present(tid: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """Runs [start, end) of pages in [address, address + length) that are in memory or in swap, in order.

    Pages that were only ever read, the zero page, are left out where the kernel tells. Addresses and length are
    multiples of PAGE. OSError(ESRCH), EPERM without ptrace access.
    """
    try:
        fd = os.open(f"/proc/{tid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ESRCH, f"no thread {tid}") from None
    try:
        try:
            yield from scan(fd, address, length)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            yield from read(fd, address, length)
    finally:
        os.close(fd)


def scan(fd: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """present() by PAGEMAP_SCAN. OSError(ENOTTY) before anything else where the kernel has none."""
    regions = (_Region * _REGIONS)()
    argument = _ScanArg(
        size=ctypes.sizeof(_ScanArg),
        start=address,
        end=address + length,
        vec=ctypes.addressof(regions),
        vec_len=_REGIONS,
        category_inverted=_IS_PFNZERO,
        category_mask=_IS_PFNZERO,
        category_anyof_mask=_IS_PRESENT | _IS_SWAPPED,
    )
    while argument.start < argument.end:
        count = fcntl.ioctl(fd, _SCAN, argument)
        for region in regions[:count]:
            yield region.start, region.end
        argument.start = argument.walk_end


def read(fd: int, address: int, length: int) -> Iterator[tuple[int, int]]:
    """present() by reading the entries."""
    for first in range(address // PAGE, (address + length) // PAGE, _CHUNK):
        pages = min(_CHUNK, (address + length) // PAGE - first)
        entries = os.pread(fd, pages * 8, first * 8)
        for run in _RUN.finditer(entries[7::8].translate(_HOLDS_DATA)):
            yield (first + run.start()) * PAGE, (first + run.end()) * PAGE
