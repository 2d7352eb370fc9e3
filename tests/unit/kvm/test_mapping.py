"""Files mapped here: from any page on, also when the file has huge pages."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmfs.kvm.mapping import Mapping

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
NAME = "kvmfs-test-mapping"


@pytest.fixture(params=[0, os.MFD_HUGETLB], ids=["small", "huge"])
def memfd(request: pytest.FixtureRequest) -> Iterator[int]:
    fd = os.memfd_create(NAME, request.param)
    os.ftruncate(fd, 2 * HUGE)
    yield fd
    os.close(fd)


def mapped() -> list[tuple[int, int, int]]:
    """Where the file is mapped: first and end address, offset."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if NAME in line:
            bounds, _, offset, *_ = line.split()
            first, _, end = bounds.partition("-")
            found.append((int(first, 16), int(end, 16), int(offset, 16)))
    return found


@pytest.mark.parametrize(
    ("offset", "length"), [(0, HUGE), (0, 160 * PAGE), (256 * PAGE, HUGE), (HUGE - PAGE, 2 * PAGE), (HUGE, PAGE)]
)
def test_any_pages_of_a_file(memfd: int, offset: int, length: int) -> None:
    """QEMU cuts a PC's memory at 640 KiB and at 1 MiB, whatever its pages are."""
    mapping = Mapping(memfd, offset, length)
    first, end, start = mapped()[0]
    assert mapping.address - first == offset - start
    assert mapping.address + length <= end
    mapping.close()
    assert mapped() == []


def test_the_bytes_are_the_files(request: pytest.FixtureRequest) -> None:
    memfd = os.memfd_create(NAME)
    request.addfinalizer(lambda: os.close(memfd))
    os.ftruncate(memfd, 4 * PAGE)
    mapping = Mapping(memfd, PAGE, 2 * PAGE)
    request.addfinalizer(mapping.close)
    ctypes.memmove(mapping.address + PAGE, b"here", 4)
    assert os.pread(memfd, 4, 2 * PAGE) == b"here"
