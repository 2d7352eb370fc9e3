"""What the client does to a memslot's memory between two KVM_RUNs, after the guest has used it."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator

import pytest

from kvmfs.abi.exits import Exit
from kvmfs.kvm.client_watch import EVERY_RUN
from tests.unit.kvm.fakes import find_slot
from tests.unit.kvm.inprocess import MMIO, PAGE, Machine, libc

LOAD, STORE, OUT80 = "488b03", "488903", "e680"  # mov rax, [rbx]; mov [rbx], rax; out 0x80, al
LOADS = (LOAD + OUT80) * 8
STORES = (STORE + OUT80) * 8
PAGES = 8
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED, MADV_REMOVE, MADV_MERGEABLE = 4, 9, 12


class Changing(Machine):
    """A machine with PAGES pages of a file at MMIO, that loads or stores and exits, again and again."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.shared = self.client.map_file(PAGES * PAGE)
        self.set_slot(1, MMIO, self.shared, PAGES * PAGE)

    def elsewhere(self) -> int:
        """An address where PAGES pages fit, and nothing is."""
        address = self.client.map_file(PAGES * PAGE)
        self.client.forget(address)
        libc.munmap(address, PAGES * PAGE)
        return address

    def touch(self, page: int = 0) -> int:
        """Run up to the next exit, with an access to a page of the slot: KVM_RUN's result."""
        self.set_regs(rbx=MMIO + page * PAGE)
        return self.run()

    def is_direct(self, page: int) -> bool:
        slot = find_slot(self.vm, (MMIO >> 12) + page)
        assert slot
        return slot["host"] != 0


@pytest.fixture
def loads() -> Iterator[Changing]:
    machine = Changing(LOADS)
    assert machine.touch() == 0
    yield machine
    libc.munmap(machine.shared, PAGES * PAGE)


@pytest.fixture
def stores() -> Iterator[Changing]:
    machine = Changing(STORES)
    assert machine.touch() == 0
    yield machine
    libc.munmap(machine.shared, PAGES * PAGE)


def test_unmapped(loads: Changing) -> None:
    libc.munmap(loads.shared, PAGES * PAGE)
    assert loads.touch() == -errno.EFAULT
    assert loads.page.exit_reason == Exit.UNKNOWN


def test_unmapped_in_the_middle(loads: Changing) -> None:
    libc.munmap(loads.shared + 2 * PAGE, 3 * PAGE)
    assert [loads.touch(page) for page in (1, 5)] == [0, 0]
    assert [loads.is_direct(page) for page in range(PAGES)] == [True] * 2 + [False] * 3 + [True] * 3
    assert [loads.touch(page) for page in (2, 4)] == [-errno.EFAULT] * 2


def test_replaced_by_other_memory(loads: Changing) -> None:
    loads.client.map_file(PAGE, at=loads.shared)
    ctypes.memmove(loads.shared, b"replaced", 8)
    assert loads.touch() == 0
    assert loads.regs.rax == int.from_bytes(b"replaced", "little")


def test_protected_against_writing(stores: Changing) -> None:
    libc.mprotect(stores.shared, PAGE, mmap.PROT_READ)
    assert stores.touch(1) == 0
    assert stores.touch(0) == -errno.EFAULT
    libc.mprotect(stores.shared, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    assert stores.touch(0) == 0


def test_protected_against_all(loads: Changing) -> None:
    libc.mprotect(loads.shared, PAGES * PAGE, 0)
    assert loads.touch() == -errno.EFAULT


def test_moved_away(loads: Changing) -> None:
    moved = libc.mremap(loads.shared, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, loads.elsewhere())
    assert loads.touch() == -errno.EFAULT
    assert loads.page.exit_reason == Exit.UNKNOWN
    loads.set_slot(1, 0, 0, 0)
    loads.client.forget(loads.shared, moved)
    loads.set_slot(1, MMIO, moved, PAGES * PAGE)
    assert loads.touch() == 0  # the same memory at its new place
    loads.shared = moved


def test_something_else_moved_there(loads: Changing) -> None:
    other = loads.client.map_file(PAGE)
    ctypes.c_uint64.from_address(other).value = 0x1234
    libc.mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, loads.shared)
    assert loads.touch() == 0
    assert loads.regs.rax == 0x1234
    assert not loads.is_direct(0)
    assert loads.is_direct(1)


def test_holes_are_seen_at_once_and_dropped_page_tables_are_not(loads: Changing) -> None:
    word = ctypes.c_uint64.from_address(loads.shared)
    for advice, left in ((MADV_DONTNEED, 0x77), (MADV_MERGEABLE, 0x77), (MADV_REMOVE, 0)):
        word.value = 0x77
        assert libc.madvise(loads.shared, PAGE, advice) == 0
        assert loads.touch() == 0
        assert loads.regs.rax == word.value == left
    assert loads.is_direct(0)


def test_mapped_once_more_for_a_new_slot(loads: Changing) -> None:
    loads.client.map_file(PAGES * PAGE, at=loads.shared)
    assert loads.touch() == 0
    assert not loads.is_direct(0)
    loads.set_slot(1, 0, 0, 0)
    loads.set_slot(1, MMIO, loads.shared, PAGES * PAGE)
    assert loads.touch() == 0
    assert loads.is_direct(0)


def test_memory_that_was_not_changed_stays_as_it_is(loads: Changing) -> None:
    before = find_slot(loads.vm, MMIO >> 12)
    libc.mprotect(loads.shared, PAGE, mmap.PROT_READ | mmap.PROT_WRITE)  # as it was
    loads.vm.changes.revalidate()
    assert find_slot(loads.vm, MMIO >> 12) == before


def test_many_mappings_are_looked_at_now_and_then(loads: Changing) -> None:
    others = [loads.client.map_file(PAGE) for _ in range(EVERY_RUN + 1)]
    for number, address in enumerate(others):
        loads.set_slot(2 + number, MMIO + (16 + 2 * number) * PAGE, address, PAGE)
    libc.munmap(loads.shared, PAGES * PAGE)
    results = set()
    for _ in range(1000):
        if loads.touch():
            break
        loads.set_regs(rip=0x1000)
        results.add(0)
    else:
        pytest.fail("never looked at")
