"""Dirty tracking: logs that KVM clears, logs that the client clears, rings."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import (
    KVM_DIRTY_GFN_F_DIRTY,
    KVM_DIRTY_GFN_F_RESET,
    KVM_DIRTY_LOG_PAGE_OFFSET,
    KVM_MEM_LOG_DIRTY_PAGES,
    ClearDirtyLog,
    DirtyGfn,
    DirtyLog,
)
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import FakeClient
from tests.unit.kvm.inprocess import DATA, MEMORY, PAGE, STACK, TABLES, Machine

HLT, OUT80 = "f4", "e680"  # hlt; out 0x80, al
STORE = "488903"  # mov [rbx], rax
SWEEP = "4889034881c30010000048ffc975f1"  # store; add rbx, 4096; dec rcx; jnz back
LOG = KVM_MEM_LOG_DIRTY_PAGES
WORDS = MEMORY // PAGE // 64


def enable(machine: Machine, cap: Cap, value: int) -> None:
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=cap, args=(value,)))


def pages_of(bitmap: ctypes.Array[ctypes.c_uint64]) -> set[int]:
    return {64 * at + bit for at, word in enumerate(bitmap) for bit in range(64) if word >> bit & 1}


def dirty_pages(machine: Machine) -> set[int]:
    """KVM_GET_DIRTY_LOG of slot 0."""
    bitmap = (ctypes.c_uint64 * WORDS)()
    machine.call(machine.vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=0, dirty_bitmap=ctypes.addressof(bitmap)))
    return pages_of(bitmap)


def clear(machine: Machine, pages: set[int], first: int = 0, count: int = MEMORY // PAGE) -> None:
    """KVM_CLEAR_DIRTY_LOG of `pages`, in a call about `count` pages from `first` on."""
    bitmap = (ctypes.c_uint64 * WORDS)()
    for page in pages:
        bitmap[(page - first) // 64] |= 1 << page % 64
    what = ClearDirtyLog(slot=0, first_page=first, num_pages=count, dirty_bitmap=ctypes.addressof(bitmap))
    machine.call(machine.vm, ioctls.KVM_CLEAR_DIRTY_LOG, what)


def test_log_starts_anew_with_each_harvest() -> None:
    machine = Machine(STORE + OUT80 + STORE + HLT)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    machine.set_regs(rbx=DATA)
    machine.run()
    assert DATA // PAGE in (found := dirty_pages(machine))
    assert STACK // PAGE not in found
    assert dirty_pages(machine) == set()
    machine.run()
    assert dirty_pages(machine) == {DATA // PAGE}


def test_page_tables_whose_bits_the_walk_sets_are_dirty() -> None:
    machine = Machine(STORE + HLT)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    machine.set_regs(rbx=DATA)
    machine.run()
    tables = {(TABLES + at) // PAGE for at in (0, 0x1000, 0x2000)}
    assert dirty_pages(machine) == {DATA // PAGE} | tables


def test_log_of_a_slot_that_begins_anywhere() -> None:
    machine = Machine(STORE + HLT)
    machine.set_slot(0, 0, 0, 0)
    machine.set_slot(0, 0, machine.memory, MEMORY // 2)
    machine.set_slot(1, MEMORY // 2 + 3 * PAGE, machine.memory + MEMORY // 2, 70 * PAGE, flags=LOG)
    machine.set_regs(rbx=MEMORY // 2 + (3 + 65) * PAGE)
    assert machine.run() == 0
    bitmap = (ctypes.c_uint64 * 2)()
    machine.call(machine.vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=1, dirty_bitmap=ctypes.addressof(bitmap)))
    assert pages_of(bitmap) == {65}


def test_log_that_the_client_clears() -> None:
    machine = Machine((STORE + OUT80) * 3 + HLT)
    enable(machine, Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    page, other = DATA // PAGE, DATA // PAGE + 130
    machine.set_regs(rbx=DATA)
    machine.run()
    machine.set_regs(rbx=other * PAGE)
    machine.run()
    assert {page, other} <= dirty_pages(machine) == dirty_pages(machine)
    clear(machine, {other}, first=128, count=64)
    assert page in (found := dirty_pages(machine))
    assert other not in found
    machine.run()
    assert other in dirty_pages(machine)


def test_log_that_begins_with_all_pages() -> None:
    machine = Machine(STORE + HLT)
    enable(machine, Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
    machine.set_slot(1, 1 << 30, machine.client.memory(70 * PAGE), 70 * PAGE, flags=LOG)
    bitmap = (ctypes.c_uint64 * 2)()
    machine.call(machine.vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=1, dirty_bitmap=ctypes.addressof(bitmap)))
    assert pages_of(bitmap) == set(range(70))


def test_logging_that_was_off_begins_with_none() -> None:
    machine = Machine((STORE + OUT80) * 3 + HLT)
    machine.set_regs(rbx=DATA)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    machine.run()
    machine.set_slot(0, 0, machine.memory, MEMORY)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    assert dirty_pages(machine) == set()
    machine.run()
    assert DATA // PAGE in dirty_pages(machine)


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ({"slot": 1}, errno.ENOENT),
        ({"slot": 1 << 16}, errno.EINVAL),
        ({"slot": 32764}, errno.EINVAL),
        ({"first_page": 1}, errno.EINVAL),
        ({"first_page": 576, "num_pages": 1}, errno.EINVAL),
        ({"num_pages": 513}, errno.EINVAL),
        ({"num_pages": 63}, errno.EINVAL),
        ({"first_page": 448, "num_pages": 64}, 0),
        ({"first_page": 512}, 0),
    ],
)
def test_ranges_to_clear(what: dict[str, int], error: int) -> None:
    machine = Machine(HLT)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    bitmap = (ctypes.c_uint64 * WORDS)()
    call = ClearDirtyLog(slot=0, dirty_bitmap=ctypes.addressof(bitmap))
    for name, value in what.items():
        setattr(call, name, value)
    try:
        machine.call(machine.vm, ioctls.KVM_CLEAR_DIRTY_LOG, call)
        found = 0
    except OSError as failure:
        found = failure.errno or -1
    assert found == error


@pytest.mark.parametrize(("value", "error"), [(0, 0), (1, 0), (3, 0), (2, errno.EINVAL), (5, errno.EINVAL)])
def test_manual_protection_modes(vm: Vm, client: FakeClient, value: int, error: int) -> None:
    what = EnableCap(cap=Cap.MANUAL_DIRTY_LOG_PROTECT2, args=(value,))
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, what) == error


# Rings -----


class Ring:
    """The client's side of vCPU 0's ring."""

    def __init__(self, machine: Machine, size: int) -> None:
        count = size // ctypes.sizeof(DirtyGfn)
        self._machine = machine
        self.entries = (DirtyGfn * count).from_address(machine.vcpu.page + KVM_DIRTY_LOG_PAGE_OFFSET * PAGE)
        self._next = 0

    def harvest(self) -> list[tuple[int, int]]:
        """{slot, page} of new entries, to be reset."""
        found = []
        while (entry := self.entries[self._next % len(self.entries)]).flags == KVM_DIRTY_GFN_F_DIRTY:
            found.append((entry.slot, entry.offset))
            entry.flags |= KVM_DIRTY_GFN_F_RESET
            self._next += 1
        return found

    def reset(self) -> int:
        return self._machine.call(self._machine.vm, ioctls.KVM_RESET_DIRTY_RINGS)


def test_page_is_in_the_ring_once_until_it_is_reset() -> None:
    machine = Machine((STORE + OUT80) * 3 + HLT, ring=PAGE)
    ring = Ring(machine, PAGE)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    machine.set_regs(rbx=DATA)
    machine.run()
    found = ring.harvest()
    assert found.count((0, DATA // PAGE)) == 1
    machine.run()
    assert ring.harvest() == []
    assert ring.reset() == len(found)
    assert ring.reset() == 0
    machine.run()
    assert ring.harvest() == [(0, DATA // PAGE)]


def test_full_ring_keeps_the_guest_out_until_it_is_reset() -> None:
    machine = Machine(SWEEP + HLT, ring=PAGE)
    ring = Ring(machine, PAGE)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    first, count = 0x20, 470
    machine.set_regs(rbx=first * PAGE, rcx=count)
    found: list[tuple[int, int]] = []
    exits = 0
    while machine.run() == 0 and machine.page.exit_reason == Exit.DIRTY_RING_FULL:
        exits += 1
        stuck = machine.regs.rip
        assert (machine.run(), machine.page.exit_reason, machine.regs.rip) == (0, Exit.DIRTY_RING_FULL, stuck)
        taken = ring.harvest()
        assert len(ring.entries) // 2 < len(taken) <= len(ring.entries)
        assert ring.reset() == len(taken)
        found += taken
    assert machine.page.exit_reason == Exit.HLT
    found += ring.harvest()
    assert exits >= 2
    assert {page for _, page in found} >= set(range(first, first + count))


def test_log_ioctls_with_rings() -> None:
    machine = Machine(HLT, ring=PAGE)
    machine.set_slot(0, 0, machine.memory, MEMORY, flags=LOG)
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)) as failure:
        dirty_pages(machine)
    assert failure.value.errno == errno.ENXIO


def test_client_that_resets_what_was_never_dirty() -> None:
    machine = Machine(HLT, ring=PAGE)
    ring = Ring(machine, PAGE)
    for entry in ring.entries:
        entry.flags, entry.slot, entry.offset = KVM_DIRTY_GFN_F_RESET, 0xFFFF_FFFF, 1 << 60
    assert ring.reset() == 0


@pytest.mark.parametrize(
    ("size", "error"),
    [(0, errno.EINVAL), (3 * PAGE, errno.EINVAL), (PAGE // 2, errno.EINVAL), (2 << 20, errno.E2BIG), (PAGE, 0)],
)
def test_ring_sizes(vm: Vm, client: FakeClient, size: int, error: int) -> None:
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.DIRTY_LOG_RING, args=(size,))) == error


def test_ring_size_is_set_once_and_before_there_are_vcpus(vm: Vm, client: FakeClient) -> None:
    what = EnableCap(cap=Cap.DIRTY_LOG_RING_ACQ_REL, args=(PAGE,))
    assert client.fails(vm, ioctls.KVM_RESET_DIRTY_RINGS) == errno.EINVAL
    client.call(vm, ioctls.KVM_ENABLE_CAP, what)
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, what) == errno.EINVAL


def test_ring_after_a_vcpu(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    what = EnableCap(cap=Cap.DIRTY_LOG_RING_ACQ_REL, args=(PAGE,))
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, what) == errno.EINVAL
