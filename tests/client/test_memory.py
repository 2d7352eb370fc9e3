"""Reading and writing a client's memory: what copy_from_user and copy_to_user do, with hostile addresses."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Iterator

import pytest

from kvmfs.client import memory
from tests.client.expect import raises_errno

PAGE = mmap.PAGESIZE
ME = os.getpid()


@pytest.fixture
def page() -> Iterator[int]:
    """The address of a page that can be used, between two that cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    window = mmap.mmap(-1, 3 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(window))
    assert not libc.mprotect(address, PAGE, 0)
    assert not libc.mprotect(address + 2 * PAGE, PAGE, 0)
    yield address + PAGE
    window.close()


def test_reads_and_writes(page: int) -> None:
    memory.write(ME, page + 10, b"hello")
    assert memory.read(ME, page + 9, 7) == b"\0hello\0"
    memory.write(ME, page, bytearray(b"ab"))
    memory.write(ME, page + 2, memoryview(b"cd"))
    assert memory.read(ME, page, 4) == b"abcd"


def test_nothing_is_always_there() -> None:
    assert memory.read(ME, 0, 0) == b""
    memory.write(ME, -1, b"")


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0, 1),
        (-1, 1),
        (-(1 << 70), 1),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        (1 << 64, 1),
        (1 << 80, 1),
        (1 << 47, 8),
        (0x8000_0000_0000_0000, 8),
        (0xFFFF_FFFF_8100_0000, 8),
        (0x1000, -1),
        (0x1000, 1 << 30),
    ],
)
def test_bad_addresses_fault(address: int, size: int) -> None:
    with raises_errno(errno.EFAULT):
        memory.read(ME, address, size)
    if 0 < size < 100:
        with raises_errno(errno.EFAULT):
            memory.write(ME, address, bytes(size))


def test_partly_bad_faults(page: int) -> None:
    for address in (page - 1, page + PAGE - 1):
        with raises_errno(errno.EFAULT):
            memory.read(ME, address, 2)
    with raises_errno(errno.EFAULT):
        memory.write(ME, page + PAGE - 2, b"xyz")


def test_absurd_size_costs_nothing() -> None:
    with raises_errno(errno.ENOMEM):
        memory.read(ME, 0x1000, 1 << 40)


def test_dead_client_faults() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with raises_errno(errno.EFAULT):
        memory.read(process.pid, 0x1000, 1)


def test_more_than_a_chunk() -> None:
    size = (16 << 20) + 5
    source = ctypes.create_string_buffer(os.urandom(1 << 20) * 16, size)
    assert memory.read(ME, ctypes.addressof(source), size) == source.raw


def test_gathers_runs_in_order(page: int) -> None:
    memory.write(ME, page, b"abcdefgh")
    buffer = ctypes.create_string_buffer(5)
    memory.gather(ME, [(page + 6, page + 8), (page, page + 3)], buffer)
    assert buffer.raw == b"ghabc"
