"""Fault resolution: where a guest-physical address leads, case by case as kvm_mmu_faultin_pfn has them."""

from __future__ import annotations

import ctypes
import random
from errno import EAGAIN, EFAULT, EINTR

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.mmu import tables

from . import naive
from .machine import PAGE, Machine

PRIVATE = naive.PRIVATE
EHWPOISON = 133  # not in the errno module


def memory(**changes) -> naive.Memory:
    """Pages 0x10 to 0x1f with a guest_memfd, 0x20 to 0x2f without, 0x30 to 0x3f read-only, 0x40 to 0x4f remote."""
    slots = [
        naive.Slot(0x10, 16, bytearray(16 * PAGE), bytearray(16 * PAGE)),
        naive.Slot(0x20, 16, bytearray(16 * PAGE)),
        naive.Slot(0x30, 16, bytearray(16 * PAGE), readonly=True),
        naive.Slot(0x40, 16, bytearray(16 * PAGE), remote=True),
    ]
    return naive.Memory(slots, **changes)


def test_shared_memory_is_the_clients_page() -> None:
    machine = Machine(memory())
    assert machine.resolve(0x12345) == ("host", 0, "shared", 0x2345)
    assert machine.resolve(0x20000) == ("host", 1, "shared", 0)


def test_private_memory_is_the_guest_memfd_page_and_asks_nothing_of_the_client() -> None:
    machine = Machine(memory(attributes={0x12: PRIVATE}))
    assert machine.resolve(0x12345, write=True) == ("host", 0, "private", 0x2345)
    assert machine.resolve(0x13345) == ("host", 0, "shared", 0x3345)
    assert machine.calls == [("fault_in", 0x13, 0)]


@pytest.mark.parametrize("write", [False, True])
def test_private_without_slot_is_a_memory_fault(write: bool) -> None:
    machine = Machine(memory(attributes={0x50: PRIVATE}))
    assert machine.resolve(0x50678, write) == ("memory_fault", 0x50000, PRIVATE)
    assert machine.faults == [(0x50678, int(write) | PRIVATE, M.FAULT_NO_SLOT)]


def test_private_in_a_slot_without_guest_memfd_is_a_memory_fault() -> None:
    machine = Machine(memory(attributes={0x21: PRIVATE}))
    assert machine.resolve(0x21FFF) == ("memory_fault", 0x21000, PRIVATE)
    assert machine.faults == [(0x21FFF, PRIVATE, M.FAULT_NO_GMEM)]


def test_attributes_mean_nothing_to_a_vm_without_private_memory() -> None:
    machine = Machine(memory(attributes={0x12: PRIVATE}, rule="never"))
    assert machine.resolve(0x12000) == ("host", 0, "shared", 0x2000)


@pytest.mark.parametrize(("rule", "private_gpa"), [("private bit", 1 << 47), ("shared bit", 0)])
def test_access_that_disagrees_with_the_attribute_reports_how_it_was_made(rule: str, private_gpa: int) -> None:
    bit = 1 << 47
    machine = Machine(memory(attributes={0x12: PRIVATE}, rule=rule, bit=bit))
    shared_gpa = bit - private_gpa
    assert machine.resolve(private_gpa | 0x12345) == ("host", 0, "private", 0x2345)
    assert machine.resolve(shared_gpa | 0x13345) == ("host", 0, "shared", 0x3345)
    assert machine.resolve(shared_gpa | 0x12345) == ("memory_fault", 0x12000, 0)
    assert machine.resolve(private_gpa | 0x13345) == ("memory_fault", 0x13000, PRIVATE)
    assert machine.resolve(shared_gpa | 0x99345) == ("mmio", 0x99345)


def test_no_slot_is_mmio() -> None:
    machine = Machine(memory())
    for gpa in (0, 0xFFFF, 0x50000, 0xFEE00000, (1 << 52) - 1):
        assert machine.resolve(gpa, write=True) == ("mmio", gpa)


def test_write_to_a_read_only_slot_is_mmio() -> None:
    machine = Machine(memory())
    assert machine.resolve(0x30008) == ("host", 2, "shared", 8)
    assert machine.resolve(0x30008, write=True) == ("mmio", 0x30008)
    assert machine.dirty_pages(2) == set()


def test_no_tables_at_all_is_mmio() -> None:
    machine = Machine()
    machine.vm[M.SLOTS] = machine.vm[M.ATTRIBUTES] = 0
    assert machine.resolve(0x1000) == ("mmio", 0x1000)


def test_client_is_asked_once_for_reading_and_once_for_writing() -> None:
    machine = Machine(memory())
    for write in (False, False, True, True, False):
        machine.resolve(0x10000, write)
    machine.resolve(0x1F000, True)
    machine.resolve(0x1F000)
    assert machine.calls == [("fault_in", 0x10, 0), ("fault_in", 0x10, 1), ("fault_in", 0x1F, 1)]


def test_missing_client_page_is_efault_without_fault_information_until_it_is_there() -> None:
    machine = Machine(memory())
    machine.memory.slots[0].missing.add(2)
    assert machine.resolve(0x12000) == ("efault", EFAULT)
    assert machine.faults == [(0x12000, 0, M.FAULT_NO_PAGE)]
    assert machine.resolve(0x12000) == ("efault", EFAULT)
    machine.memory.slots[0].missing.clear()
    assert machine.resolve(0x12000) == ("host", 0, "shared", 0x2000)


def test_write_to_a_page_that_the_client_may_only_read() -> None:
    machine = Machine(memory())
    machine.memory.slots[0].unwritable.add(2)
    assert machine.resolve(0x12000) == ("host", 0, "shared", 0x2000)
    assert machine.resolve(0x12000, write=True) == ("efault", EFAULT)
    assert machine.dirty_pages(0) == set()


@pytest.mark.parametrize(
    ("error", "leave", "exit_code"),
    [
        (EHWPOISON, S.LEAVE_EXIT, S.EXIT_EFAULT),
        (EINTR, S.LEAVE_EXIT, S.EXIT_INTERRUPTED),
        (EAGAIN, S.LEAVE_RETRY, S.EXIT_NONE),
    ],
)
def test_what_the_client_answers_decides_the_exit(error: int, leave: int, exit_code: int) -> None:
    machine = Machine(memory())
    machine.memory.slots[0].missing.add(2)
    machine.client_error = error
    assert machine("resolve", 0x12000, 0) == 0
    assert (machine.vcpu[S.LEAVE], machine.vcpu[S.EXIT]) == (leave, exit_code)
    if leave == S.LEAVE_EXIT:
        assert machine.vcpu[S.FAULT_ERRNO] == error


def test_dirty_log_has_written_pages_only() -> None:
    machine = Machine(memory(attributes={0x15: PRIVATE}))
    machine.resolve(0x11000)
    machine.resolve(0x12000, write=True)
    machine.resolve(0x15000, write=True)
    machine.resolve(0x40000, write=True)
    assert [machine.dirty_pages(n) for n in range(4)] == [{2, 5}, set(), set(), {0}]
    quiet = Machine(memory(), log_dirty=False)
    assert quiet.resolve(0x12000, write=True) == ("host", 0, "shared", 0x2000)
    assert quiet.dirty_pages(0) == set()


def test_remote_memory_is_named_by_the_clients_address() -> None:
    machine = Machine(memory())
    assert machine.resolve(0x41234) == ("remote", 3, 0x1234)
    assert machine.calls == []


@pytest.mark.parametrize("how", ["request", "generation"])
def test_translations_that_change_while_the_client_is_asked_are_not_used(how: str) -> None:
    machine = Machine(memory())

    def change() -> None:
        if how == "request":
            machine.vcpu[S.REQUEST] |= S.REQ_TLB_FLUSH
        else:
            machine.vm[M.GENERATION] += 1
        machine.hook = None

    machine.hook = change
    assert machine.resolve(0x12000) == ("retry",)
    assert machine.vcpu[S.MODE] == 1
    if how == "request":
        assert machine.vcpu[S.REQUEST] == S.REQ_TLB_FLUSH
        machine("acknowledge_flush")
        assert machine.vcpu[S.REQUEST] == 0
    assert machine.resolve(0x12000) == ("host", 0, "shared", 0x2000)


def test_error_of_the_client_comes_before_the_retry() -> None:
    """kvm_faultin_pfn looks at the pfn first and at mmu_invalidate_seq then."""
    machine = Machine(memory())
    machine.memory.slots[0].missing.add(2)
    machine.hook = lambda: machine.vm.__setitem__(M.GENERATION, 7)
    assert machine.resolve(0x12000) == ("efault", EFAULT)


def test_new_tables_are_seen_at_once_whatever_was_looked_up_before() -> None:
    machine = Machine(memory(attributes=dict.fromkeys(range(16, 32, 2), PRIVATE)))
    assert machine.resolve(0x1E000) == ("host", 0, "private", 0xE000)
    assert machine.resolve(0x2F000) == ("host", 1, "shared", 0xF000)
    machine.memory.attributes = {}
    machine.memory.slots, machine.records = machine.memory.slots[:1], machine.records[:1]
    machine.publish()
    assert machine.resolve(0x2F000) == ("mmio", 0x2F000)
    assert machine.resolve(0x1E000) == ("host", 0, "shared", 0xE000)


def test_random_lookups_agree_with_naive() -> None:
    rng = random.Random(2)
    for _ in range(20):
        slots, gfn = [], rng.randrange(5)
        for _ in range(rng.randrange(40)):
            npages = rng.randrange(1, 6)
            private = bytearray(npages * PAGE) if rng.random() < 0.7 else None
            slots.append(naive.Slot(gfn, npages, bytearray(npages * PAGE), private))
            gfn += npages + rng.choice((0, 0, 1, 3))
        attributes = {page: PRIVATE for page in range(gfn + 4) if rng.random() < 0.5}
        machine = Machine(naive.Memory(slots, attributes))
        for _ in range(200):
            gpa, write = rng.randrange((gfn + 8) * PAGE), rng.random() < 0.5
            try:
                expected = machine.memory.resolve(gpa, write)
            except naive.Left as left:
                expected = left.outcome
            assert machine.resolve(gpa, write) == expected
        for number, slot in enumerate(slots):
            assert machine.dirty_pages(number) == slot.dirty


# Tables ----------


def test_attribute_table_holds_merged_ranges() -> None:
    table = tables.table()
    table = tables.with_attributes(table, 10, 20, PRIVATE)
    table = tables.with_attributes(table, 20, 1 << 40, PRIVATE)
    assert list(tables.attribute_ranges(table)) == [(10, 1 << 40, PRIVATE)]
    table = tables.with_attributes(table, 15, 16, 0)
    assert list(tables.attribute_ranges(table)) == [(10, 15, PRIVATE), (16, 1 << 40, PRIVATE)]
    table = tables.with_attributes(table, 0, 1 << 41, 0)
    assert table[0] == 0


def test_random_attribute_changes_agree_with_a_dict() -> None:
    rng = random.Random(3)
    table, pages = tables.table(), dict.fromkeys(range(64), 0)
    for _ in range(500):
        first = rng.randrange(63)
        end, value = rng.randrange(first + 1, 65), rng.choice((0, PRIVATE, 1))
        table = tables.with_attributes(table, first, end, value)
        pages.update(dict.fromkeys(range(first, end), value))
        assert [tables.attributes_at(table, gfn) for gfn in range(64)] == list(pages.values())
        changes = sum(a != b for a, b in zip([0, *pages.values()], [*pages.values(), 0], strict=True))
        assert len(tables.entries(table)) == table[0] == changes
        expanded = {gfn: value for start, end, value in tables.attribute_ranges(table) for gfn in range(start, end)}
        assert expanded == {gfn: value for gfn, value in pages.items() if value}


def test_slot_table_stays_sorted() -> None:
    table = tables.table([(30, 3), (10, 1)])
    table = tables.with_slot(table, 20, 1, 2)
    table = tables.with_slot(table, 30, 1, 4)
    assert tables.slots(table) == [(10, 1), (20, 2), (30, 4)]
    assert tables.slots(tables.without_slot(table, 20)) == [(10, 1), (30, 4)]
    for gfn in (11, 20):
        with pytest.raises(KeyError):
            tables.without_slot(table, gfn)


def test_slots_that_come_and_go_are_found_where_they_are() -> None:
    rng = random.Random(7)
    machine = Machine()
    table, pages, records = tables.table(), {}, []
    in_place = 0
    for turn in range(1500):
        gfn, size = rng.choice((rng.randrange(3000), 3000 + turn)), rng.randrange(1, 5)
        if rng.randrange(3) == 0 and pages:
            gfn = rng.choice(list(pages))[0]
            table = tables.without_slot(table, gfn)
            pages = {key: host for key, host in pages.items() if key[0] != gfn}
        elif not any(first < gfn + size and gfn < first + length for first, length in pages):
            host = (turn + 1) << 40
            records.append(tables.slot_record(gfn, size, host=host))
            before, table = table, tables.with_slot(table, gfn, size, ctypes.addressof(records[-1]))
            in_place += before is table
            pages[gfn, size] = host
        machine.vm[M.SLOTS] = tables.address(table)
        for page in {0, gfn - 1, gfn, gfn + size - 1, gfn + size, rng.randrange(5000)} - {-1}:
            found = [
                host + (page - first << 12) for (first, length), host in pages.items() if 0 <= page - first < length
            ]
            assert [machine("resolve", page << 12, 0)] == (found or [0])
    assert in_place > 200


# KVM_PRE_FAULT_MEMORY ----------


def test_prefault_out_of_the_guest_even_when_a_flush_is_due() -> None:
    machine = Machine(memory(attributes={0x21: PRIVATE}))
    machine.memory.slots[0].missing.add(3)
    machine.vcpu[S.MODE], machine.vcpu[S.REQUEST] = 0, S.REQ_TLB_FLUSH
    assert machine("prefault", 0x12000) == M.TO_HOST
    assert machine("prefault", 0x40000) == M.TO_REMOTE
    assert machine("prefault", 0x99000) == M.TO_MMIO
    assert machine("prefault", 0x13000) == M.TO_FAULT
    assert (machine.vcpu[S.EXIT], machine.vcpu[S.FAULT_ERRNO]) == (S.EXIT_EFAULT, EFAULT)
    assert machine("prefault", 0x21000) == M.TO_FAULT
    assert (machine.vcpu[S.EXIT], machine.vcpu[S.FAULT_GPA]) == (S.EXIT_MEMORY_FAULT, 0x21000)
    assert machine.vcpu[S.MODE] == machine.vcpu[S.LEAVE] == 0
    assert machine.calls == [("fault_in", 0x12, 0), ("fault_in", 0x12, 0), ("fault_in", 0x13, 0)]


# Pages ahead of their use, in slots that stand for anonymous memory


def anonymous(npages: int = 40) -> Machine:
    machine = Machine(naive.Memory([naive.Slot(0x10, npages, bytearray(npages * PAGE), anonymous=True)]))
    machine.pages_had = 16
    return machine


def wanted(machine: Machine, *pages: int, write: bool = True) -> list[tuple]:
    """What was asked of the client for an access to each of the slot's pages: (page, pages wanted)."""
    machine.calls.clear()
    for page in pages:
        machine.resolve(0x10000 + page * PAGE, write)
    return [(gfn - 0x10, *rest) for _, gfn, _, *rest in machine.calls]


def test_memory_that_is_gone_through_comes_in_clusters() -> None:
    assert wanted(anonymous(), *range(40)) == [(0,), (1, 15), (16, 16), (32, 8)]


def test_scattered_pages_come_alone() -> None:
    assert wanted(anonymous(), 38, 36, 2, 34, 17) == [(38,), (36,), (2,), (34,), (17,)]


def test_pages_ahead_are_only_those_that_could_be_had() -> None:
    machine = anonymous()
    machine.pages_had = 3
    assert wanted(machine, *range(8)) == [(0,), (1, 15), (4, 12), (7, 9)]


def test_pages_read_ahead_are_asked_for_again_when_written() -> None:
    machine = anonymous()
    wanted(machine, *range(16), write=False)
    assert wanted(machine, *range(16)) == [(0,), (1, 15)]
