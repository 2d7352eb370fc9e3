"""The TLBs: what an entry grants, what survives which flush, and that no entry grants more than a walk would."""

from __future__ import annotations

import random

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.raw import u64

from . import naive
from .machine import PAGE, Machine, flags_of
from .test_walk import random_cpu, random_linear, random_memory

KINDS = {
    "read": (M.TLB_READ, naive.Access()),
    "write": (M.TLB_WRITE, naive.Access(write=True)),
    "fetch": (M.TLB_FETCH, naive.Access(fetch=True)),
}


def mapped(leaves: dict[int, int], **cpu) -> Machine:
    """A machine with 64 pages of memory at 0 and 4-level tables at 1000 2000 3000 4000; leaves: page number -> PTE."""
    data = bytearray(64 * PAGE)
    tables = {0x1000: {0: 0x2007}, 0x2000: {0: 0x3007}, 0x3000: {0: 0x4007, 1: 0x87, 2: 0x87}, 0x4000: leaves}
    for table, content in tables.items():
        for index, value in content.items():
            data[table + 8 * index : table + 8 * index + 8] = value.to_bytes(8, "little")
    machine = Machine(naive.Memory([naive.Slot(0, 64, data)]))
    machine.set_cpu(naive.Cpu(cr3=0x1000, **cpu))
    return machine


def hit(machine: Machine, la: int, tag: int, tlb: int | None = None) -> int:
    """The host address that a TLB (by default the current one) has for `la`, or 0."""
    base = machine.vcpu[S.TLB] if tlb is None else machine.tlb.address + tlb * M.TLB_SIZE
    entry = base - machine.tlb.address + (la >> 12 & M.TLB_ENTRIES - 1) * M.TLB_ENTRY
    if u64(machine.tlb[entry + tag]) != la & ~0xFFF:
        return 0
    return u64(la + machine.tlb[entry + M.TLB_ADDEND])


def granted(machine: Machine, la: int, tlb: int | None = None) -> set[str]:
    return {name for name, (tag, _) in KINDS.items() if hit(machine, la, tag, tlb)}


def test_fill_grants_what_was_asked_for() -> None:
    machine = mapped({8: 0x8007, 9: 0x9007})
    assert granted(machine, 0x8123) == set()
    machine.translate(0x8123)
    assert granted(machine, 0x8123) == {"read"}
    assert hit(machine, 0x8123, M.TLB_READ) == machine.shared[0].address + 0x8123
    machine.translate(0x8000, naive.Access(fetch=True))
    assert granted(machine, 0x8123) == {"read", "fetch"}
    machine.translate(0x8000, naive.Access(write=True))
    assert granted(machine, 0x8123) == {"read", "write", "fetch"}
    assert granted(machine, 0x9123) == set()


def test_pages_of_one_entry_evict_each_other() -> None:
    machine = mapped({8: 0x8007})
    machine.translate(0x8000, naive.Access(write=True))
    far = 0x8000 + M.TLB_ENTRIES * PAGE  # through a large page
    machine.translate(far)
    assert granted(machine, far) == {"read"}
    assert granted(machine, 0x8000) == set()


@pytest.mark.parametrize(
    ("cpu", "implicit", "tlb"),
    [
        ({"cpl": 3}, False, M.TLB_USER),
        ({"cpl": 3, "smap": True}, True, M.TLB_SUPERVISOR),
        ({"cpl": 3, "smap": True, "ac": True}, True, M.TLB_SUPERVISOR),
        ({"cpl": 3}, True, M.TLB_SUPERVISOR_AC),
        ({"smap": True}, False, M.TLB_SUPERVISOR),
        ({"smap": True, "ac": True}, False, M.TLB_SUPERVISOR_AC),
        ({}, False, M.TLB_SUPERVISOR_AC),
    ],
)
def test_each_privilege_fills_its_own_tlb(cpu: dict, implicit: bool, tlb: int) -> None:
    user = 4 if cpu.get("cpl") == 3 and not implicit else 0
    machine = mapped({8: 0x8003 | user}, **cpu)
    assert machine.translate(0x8000, naive.Access(implicit=implicit)) == ("host", 0, "shared", 0x8000)
    assert [bool(granted(machine, 0x8000, n)) for n in range(3)] == [n == tlb for n in range(3)]
    if not implicit:
        assert machine.vcpu[S.TLB] == machine.tlb.address + tlb * M.TLB_SIZE


def test_mmio_remote_and_faults_are_never_entered() -> None:
    machine = mapped({8: 1 << 40 | 7, 9: 0x9000})
    assert machine.translate(0x8000) == ("mmio", 1 << 40)
    assert machine.translate(0x9000)[0] == "exception"
    assert granted(machine, 0x8000) == granted(machine, 0x9000) == set()


def test_cr3_write_keeps_global_pages_and_a_full_flush_keeps_none() -> None:
    machine = mapped({8: 0x8007, 9: 0x9107})
    for _ in range(2):
        machine.translate(0x8000)
        machine.translate(0x9000)
        machine("tlb_flush", 1)
        assert granted(machine, 0x8000) == set()
        assert granted(machine, 0x9000) == {"read"}
    machine("tlb_flush", 0)
    assert granted(machine, 0x9000) == set()


def test_entry_reused_by_a_page_that_is_not_global_is_not_kept() -> None:
    machine = mapped({9: 0x9107})
    machine.translate(0x9000)
    other = 0x9000 + M.TLB_ENTRIES * PAGE
    machine.translate(other)
    machine("tlb_flush", 1)
    assert granted(machine, other) == set()


def test_invlpg_drops_the_page_from_all_tlbs_even_a_global_one() -> None:
    machine = mapped({8: 0x8107, 9: 0x9007}, smap=True, ac=True)
    machine.translate(0x8000)
    machine.translate(0x9000)
    machine.vcpu[S.CPL] = 3
    machine("select_tlb")
    machine.translate(0x8000)
    machine("tlb_flush_page", 0x8FFF)
    assert [granted(machine, 0x8000, n) for n in range(3)] == [set()] * 3
    assert granted(machine, 0x9000, M.TLB_SUPERVISOR_AC) == {"read"}


def test_invlpg_anywhere_in_a_large_page_drops_all_of_it() -> None:
    machine = mapped({8: 0x8007})
    for la in (0x20_0000, 0x21_0000, 0x23_F000):
        machine.translate(la)
    machine.translate(0x8000)
    machine("tlb_flush_page", 0x3F_F000)
    assert [granted(machine, la) for la in (0x20_0000, 0x21_0000, 0x23_F000)] == [set()] * 3
    assert granted(machine, 0x8000) == {"read"}


def test_flush_request_is_done_and_acknowledged() -> None:
    machine = mapped({8: 0x8007})
    machine.translate(0x8000)
    machine.vm[M.GENERATION] = 5
    machine.vcpu[S.REQUEST] = S.REQ_TLB_FLUSH | S.REQ_STOP
    machine("acknowledge_flush")
    assert machine.vcpu[S.REQUEST] == S.REQ_STOP
    assert granted(machine, 0x8000) == set()
    machine.translate(0x8000)
    assert machine("enter_guest") == 0
    assert granted(machine, 0x8000) == {"read"}


@pytest.mark.parametrize("how", ["request", "generation"])
def test_entering_the_guest_after_a_change_flushes(how: str) -> None:
    machine = mapped({8: 0x8007})
    machine.translate(0x8000)
    machine("leave_guest")
    assert machine.vcpu[S.MODE] == 0
    if how == "request":
        machine.vcpu[S.REQUEST] |= S.REQ_TLB_FLUSH
    else:
        machine.vm[M.GENERATION] += 1
    assert machine("enter_guest") == 1
    assert machine.vcpu[S.MODE] == 1
    assert granted(machine, 0x8000) == set()


def test_first_write_goes_through_the_walk_for_the_d_bit_and_the_dirty_log() -> None:
    machine = mapped({8: 0x8027})
    machine.translate(0x8000)
    assert granted(machine, 0x8000) == {"read"}
    assert 8 not in machine.dirty_pages(0)
    machine.translate(0x8000, naive.Access(write=True))
    assert machine.shared[0][0x4040] == 0x8067
    assert 8 in machine.dirty_pages(0)


@pytest.mark.parametrize("mode", ["32-bit", "PAE", "4-level", "5-level"])
def test_no_entry_grants_more_than_a_walk(mode: str) -> None:
    """Random accesses fill the TLBs; every grant of every entry is then what the naive walk says, bits all set."""
    rng = random.Random(mode)
    checked = 0
    for _ in range(40):
        memory = random_memory(rng, mode, "attribute")
        machine, cpu = Machine(memory), random_cpu(rng, mode, "attribute", 0)
        cpu.wp, cpu.maxphyaddr = True, 52
        for _ in range(60):
            cpu.cpl, cpu.ac = rng.choice((0, 3)), rng.random() < 0.5
            machine.set_cpu(cpu)
            access = naive.Access(write=rng.random() < 0.5)
            machine.translate(random_linear(rng, mode), access)
        for number, slot in enumerate(memory.slots):
            slot.shared[:] = machine.shared[number].read(0, len(slot.shared))
            if slot.private is not None:
                slot.private[:] = machine.private[number].read(0, len(slot.private))
        for tlb in range(M.TLB_KINDS):
            cpu.cpl, cpu.ac = (3, False) if tlb == M.TLB_USER else (0, tlb == M.TLB_SUPERVISOR_AC)
            if tlb == M.TLB_SUPERVISOR and not cpu.smap:
                continue
            for index in range(M.TLB_ENTRIES):
                entry = tlb * M.TLB_SIZE + index * M.TLB_ENTRY
                for tag, access in KINDS.values():
                    la = u64(machine.tlb[entry + tag])
                    if la == M.TLB_INVALID:
                        continue
                    host = u64(la + machine.tlb[entry + M.TLB_ADDEND])
                    before = [bytes(slot.shared) for slot in memory.slots]
                    assert naive.translate(cpu, memory, la, access) == machine.place(host), flags_of(access)
                    if access.write:
                        assert before == [bytes(slot.shared) for slot in memory.slots]
                    checked += 1
    assert checked > 100
