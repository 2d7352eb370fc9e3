"""client_fault_in: what is asked of the client's mm, and when pages may be had ahead. This process is the client."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import threading
from pathlib import Path

import pytest
from kvmfs.jit import build
from kvmfs.jit.mmu import layout as mmu

from kvmfs.kvm.client_maps import ClientMaps
from kvmfs.kvm.words import Vm

PAGE = resource.getpagesize()
PAGES = 64
READ, WRITE = 0, 1
PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_libc.mincore.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


class Memory:
    """A memfd, mapped once as the client has it and once as the VM's worker has it."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("memory")
        os.ftruncate(self._fd, PAGES * PAGE)
        self._maps = [mmap.mmap(self._fd, PAGES * PAGE) for _ in range(2)]
        self.client, self.host = (ctypes.addressof(ctypes.c_char.from_buffer(each)) for each in self._maps)
        self._maps_of_client = ClientMaps(os.getpid())
        self._vm = (ctypes.c_int64 * (mmu.VM_SIZE // 8))()
        self._vm[mmu.CLIENT // 8] = os.getpid()
        self._vm[Vm.MAPS_FD // 8] = self._maps_of_client.fd + 1
        self._fault_in = build.function("client_fault_in", 4)

    def fault_in(self, page: int, write: int, pages: int = 1) -> int:
        at = page * PAGE
        return self._fault_in(ctypes.addressof(self._vm), self.client + at, self.host + at, pages << 1 | write)

    def resident(self) -> list[int]:
        """The pages that exist."""
        answer = ctypes.create_string_buffer(PAGES)
        assert _libc.mincore(self.host, PAGES * PAGE, answer) == 0
        return [page for page in range(PAGES) if answer.raw[page] & 1]

    def protect(self, page: int, pages: int, protection: int) -> None:
        assert _libc.mprotect(self.client + page * PAGE, pages * PAGE, protection) == 0


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.mark.parametrize("write", [READ, WRITE])
def test_a_page_alone(memory: Memory, write: int) -> None:
    assert memory.fault_in(3, write) == 1
    assert memory.resident() == [3]


@pytest.mark.parametrize("write", [READ, WRITE])
def test_pages_ahead_of_a_missing_one(memory: Memory, write: int) -> None:
    assert memory.fault_in(3, write, 13) == 13
    assert memory.resident() == list(range(3, 16))


def test_nothing_is_had_ahead_of_a_page_that_is_there(memory: Memory) -> None:
    """It tells nothing about how missing pages come."""
    memory.fault_in(3, WRITE)
    assert memory.fault_in(3, WRITE, 13) == 1
    assert memory.resident() == [3]


def test_pages_ahead_end_with_the_clients_mapping(memory: Memory) -> None:
    memory.protect(8, 8, mmap.PROT_READ)
    assert memory.fault_in(3, WRITE, 13) == 5
    assert memory.resident() == list(range(3, 8))


def test_protections_count(memory: Memory) -> None:
    memory.protect(8, 8, mmap.PROT_READ)
    memory.protect(16, 8, PROT_NONE)
    assert memory.fault_in(8, READ, 2) == 2
    assert memory.fault_in(9, WRITE, 2) == memory.fault_in(16, READ, 2) == memory.fault_in(17, READ) == -errno.EFAULT


# struct uffdio_* of include/uapi/linux/userfaultfd.h
UFFDIO_NEW, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_ZEROPAGE = 0xAA00, 0xC018AA3F, 0xC020AA00, 0xC020AA04
REGISTER_MISSING = 1


class Handler:
    """A userfaultfd handler for the client's side of `memory`: fills each missing page with zeros, and keeps count."""

    def __init__(self, memory: Memory, fd: int) -> None:
        self.memory, self._fd, self.faults = memory, fd, []
        self._ioctl(UFFDIO_API, 0xAA, 0, 0)
        self._ioctl(UFFDIO_REGISTER, memory.client, PAGES * PAGE, REGISTER_MISSING, 0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _ioctl(self, command: int, *words: int) -> None:
        fcntl.ioctl(self._fd, command, (ctypes.c_uint64 * len(words))(*words))

    def _serve(self) -> None:
        while message := os.read(self._fd, 32):
            page = (int.from_bytes(message[16:24], "little") - self.memory.client) // PAGE
            self.faults.append(page)
            self._ioctl(UFFDIO_ZEROPAGE, self.memory.client + page * PAGE, PAGE, 0, 0)


@pytest.fixture
def handler(memory: Memory) -> Handler:
    device = Path("/dev/userfaultfd")
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip("/dev/userfaultfd (Linux 6.1) is not accessible")
    with device.open() as opened:
        fd = fcntl.ioctl(opened, UFFDIO_NEW, os.O_CLOEXEC)
    return Handler(memory, fd)  # its thread goes with the process: closing a descriptor does not end a read of it


def test_a_userfaultfd_handler_is_asked_for_each_page(handler: Handler) -> None:
    memory = handler.memory
    assert [memory.fault_in(page, WRITE, 13) for page in (3, 4, 9)] == [1, 1, 1]
    assert handler.faults == memory.resident() == [3, 4, 9]
