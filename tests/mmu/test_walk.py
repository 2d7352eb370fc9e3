"""Page walk and resolution against the naive MMU, over random page tables, control bits and accesses."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M

from . import naive
from .machine import Machine

PAGE = 4096
MODES = {
    "none": {"paging": False, "long": False},
    "32-bit": {"pae": False, "long": False},
    "PAE": {"long": False},
    "4-level": {},
    "5-level": {"la57": True},
}


# How often an entry has the bit, and a page the attribute, so that they agree often enough for walks to get anywhere.
AGREEMENT = {"never": (0, 0), "attribute": (0, 0.5), "private bit": (0.95, 0.95), "shared bit": (0.05, 0.95)}


def random_table(rng: random.Random, mode: str, rule: str, bit: int) -> bytes:
    """A page of paging-structure entries that point anywhere in 2 MiB, most of them valid."""
    entries = []
    wide = mode not in ("32-bit", "none")
    for _ in range(512 if wide else 1024):
        entry = rng.getrandbits(12) | 1 if rng.random() < 0.97 else rng.getrandbits(12)
        if rng.random() < 0.7:
            entry |= 6
        if rng.random() < 0.85:
            entry &= ~128
        entry |= rng.randrange(512) << 12
        if entry & 128 and rng.random() < 0.8:
            entry &= 0xFFF  # a large page at 0: no reserved bits
            if rng.random() < 0.3:
                entry |= 0x1000  # but PAT
        if wide:
            if rng.random() < 0.1:
                entry |= 1 << 63
            if mode in ("4-level", "5-level"):
                entry |= rng.getrandbits(11) << 52 if rng.random() < 0.6 else 0
            if rng.random() < 0.01:
                entry |= 1 << rng.randrange(36, 63)
            if rng.random() < AGREEMENT[rule][0]:
                entry |= bit
        elif rng.random() < 0.02:
            entry |= 1 << rng.randrange(12, 32)
        entries.append(entry.to_bytes(8 if wide else 4, "little"))
    return b"".join(entries)


def random_memory(rng: random.Random, mode: str, rule: str) -> naive.Memory:
    bit = 0 if rule in ("never", "attribute") else 1 << 45
    pool = [random_table(rng, mode, rule, bit) for _ in range(24)]

    def pages(n: int) -> bytearray:
        return bytearray(b"".join(rng.choice(pool) for _ in range(n)))

    slots = [
        naive.Slot(0, 120, pages(120), pages(120)),
        naive.Slot(120, 120, pages(120), pages(120), missing={3, 77}, unwritable={5, 60, 61}),
        naive.Slot(240, 60, pages(60), readonly=True, missing={9}),
        naive.Slot(300, 60, pages(60), remote=True, missing={4}, unwritable={8, 9}),
        naive.Slot(364, 100, pages(100)),
        naive.Slot(464, 46, pages(46), pages(46)),
    ]
    attributes = {gfn: naive.PRIVATE for gfn in range(512) if rng.random() < AGREEMENT[rule][1]}
    return naive.Memory(slots, attributes, rule, bit)


def random_cpu(rng: random.Random, mode: str, rule: str, bit: int) -> naive.Cpu:
    def flip(chance: float = 0.5) -> bool:
        return rng.random() < chance

    cpu = naive.Cpu(
        wp=flip(0.7),
        pse=flip(0.8),
        pge=flip(),
        smep=flip(0.4),
        smap=flip(0.4),
        pke=flip(0.4),
        nxe=flip(0.8),
        ac=flip(),
        cpl=rng.choice((0, 0, 3)),
        cr3=rng.randrange(512) << 12 | rng.getrandbits(12) | (bit if flip(AGREEMENT[rule][0]) else 0),
        pkru=rng.getrandbits(32) & rng.getrandbits(32),
        maxphyaddr=rng.choice((32, 36, 39, 40, 46, 52)),
        pdpte=tuple(rng.randrange(512) << 12 | flip(0.9) | (bit if flip(AGREEMENT[rule][0]) else 0) for _ in range(4)),
    )
    for name, value in MODES[mode].items():
        setattr(cpu, name, value)
    if mode == "none":
        cpu.pae = flip()
        cpu.cr3 = 0
    if mode == "32-bit":
        cpu.pke = False
    return cpu


def random_linear(rng: random.Random, mode: str) -> int:
    la = rng.getrandbits(64)
    if rng.random() < 0.3:
        la &= ~0x3FE0_0000  # gigabyte pages reach the slots only there
    if mode == "none":
        return la & (0x1F_FFFF if rng.random() < 0.9 else 0xFFFF_FFFF)
    if mode in ("4-level", "5-level") and rng.random() < 0.97:
        width = 57 if mode == "5-level" else 48
        la &= (1 << width) - 1
        if la >> (width - 1):
            la |= -1 << width
    return la & 0xFFFF_FFFF_FFFF_FFFF


@pytest.mark.parametrize("rule", ["attribute", "never", "private bit", "shared bit"])
@pytest.mark.parametrize("mode", MODES)
def test_random_walks_agree_with_naive(mode: str, rule: str) -> None:
    rng = random.Random(f"{mode} {rule}")
    seen: Counter[str] = Counter()
    for _ in range(3):
        memory = random_memory(rng, mode, rule)
        machine = Machine(memory)
        for _ in range(1000):
            cpu, la = random_cpu(rng, mode, rule, memory.bit), random_linear(rng, mode)
            access = naive.Access(write=rng.random() < 0.4, implicit=rng.random() < 0.1, stack=rng.random() < 0.2)
            access.fetch = not access.write and rng.random() < 0.3
            machine.set_cpu(cpu)
            machine("tlb_flush", 0)
            expected = naive.translate(cpu, memory, la, access)
            assert machine.translate(la, access) == expected, (cpu, hex(la), access)
            seen[expected[0]] += 1
            if expected[0] == "exception":
                seen[f"#{expected[1]} {expected[2]:#x}"] += 1
        for number, slot in enumerate(memory.slots):
            size = slot.npages * PAGE
            assert machine.shared[number].read(0, size) == slot.shared
            if slot.private is not None:
                assert machine.private[number].read(0, size) == slot.private
            assert machine.dirty_pages(number) == slot.dirty
    assert seen["host"] > 10
    if rule in ("never", "attribute"):
        assert min(seen["mmio"], seen["remote"], seen["efault"]) > 5
    if rule != "never":
        assert seen["memory_fault"] > 100
    if mode != "none":
        assert len([key for key in seen if key.startswith("#14")]) > 10


def simple(pages: int = 16) -> tuple[Machine, naive.Cpu, bytearray]:
    """A machine with one slot at 0 and 4-level tables at 1000 2000 3000 4000 that map 5000, 6000, 7000 and 8000."""
    data = bytearray(pages * PAGE)

    def entry(table: int, index: int, value: int) -> None:
        data[table + 8 * index : table + 8 * index + 8] = value.to_bytes(8, "little")

    entry(0x1000, 0, 0x2007)
    entry(0x2000, 0, 0x3007)
    entry(0x3000, 0, 0x4007)
    entry(0x4000, 5, 0x5007)
    entry(0x4000, 6, 0x6007)
    entry(0x4000, 7, 1 << 32 | 7)  # MMIO
    entry(0x4000, 8, 0x8005)  # read-only
    machine = Machine(naive.Memory([naive.Slot(0, pages, data)]))
    cpu = naive.Cpu(cr3=0x1000)
    machine.set_cpu(cpu)
    return machine, cpu, data


def test_accessed_and_dirty_bits_are_set_once_the_access_is_granted() -> None:
    machine, _, _ = simple()
    ram = machine.shared[0]
    machine.translate(0x5123)
    assert [ram[a] & 0x60 for a in (0x1000, 0x2000, 0x3000, 0x4028)] == [0x20] * 4
    machine.translate(0x5123, naive.Access(write=True))
    assert [ram[a] & 0x60 for a in (0x1000, 0x2000, 0x3000, 0x4028)] == [0x20, 0x20, 0x20, 0x60]
    assert machine.translate(0x8000, naive.Access(write=True)) == ("exception", 14, 3, 0x8000)
    assert ram[0x4040] & 0x60 == 0


def test_marking_page_tables_is_dirty_logged() -> None:
    machine, _, _ = simple()
    machine.translate(0x5123)
    assert machine.dirty_pages(0) == {1, 2, 3, 4}
    machine.translate(0x6123, naive.Access(write=True))
    assert machine.dirty_pages(0) == {1, 2, 3, 4, 6}


def test_entry_that_changes_under_the_walk_is_walked_again() -> None:
    """The first write to the leaf's table asks the client for the page; meanwhile the guest remaps."""
    machine, _, _ = simple()
    ram = machine.shared[0]
    machine.translate(0x6000)  # all upper levels marked, and their pages touched for writing

    def remap() -> None:
        ram[0x4028] = 0x9007

    ram[0x4028] = 0xA007
    machine.touched[0].write(0, bytes(8))
    machine.calls.clear()
    machine.hook = lambda: remap() if machine.calls[-1] == ("fault_in", 4, 1) else None
    assert machine.translate(0x5000) == ("host", 0, "shared", 0x9000)
    assert ram[0x4028] == 0x9027


def test_walk_through_a_private_table_and_a_fault_in_it() -> None:
    data = bytearray(8 * PAGE)
    memory = naive.Memory(
        [naive.Slot(0, 4, data[: 4 * PAGE], bytearray(4 * PAGE)), naive.Slot(4, 4, bytearray(4 * PAGE))]
    )
    memory.attributes = {1: naive.PRIVATE, 5: naive.PRIVATE}
    machine = Machine(memory)
    machine.set_cpu(naive.Cpu(cr3=0x1000))
    machine.private[0][0x1000] = 0x5007  # a table that is private, in a slot without guest_memfd
    assert machine.translate(0x123) == ("memory_fault", 0x5000, naive.PRIVATE)
    assert machine.faults == [(0x5000, naive.PRIVATE, M.FAULT_NO_GMEM)]


def test_table_without_memory_is_not_present() -> None:
    machine, _, _ = simple()
    machine.shared[0][0x2000] = 1 << 40 | 7
    assert machine.translate(0x5000, naive.Access(write=True)) == ("exception", 14, 2, 0x5000)


def test_global_and_large_pages_are_told() -> None:
    machine, _, _ = simple()
    ram = machine.shared[0]
    assert machine("walk", 0x5000, M.READ) == 1
    ram[0x4028] |= 256
    assert machine("walk", 0x5000, M.READ) == 1 | 2
    ram[0x3000 + 8] = 0x87
    assert machine("walk", 0x20_0000, M.READ) == 1 | 4
    assert machine.vcpu[S.XLAT_GPA] == 0


def test_pdptes_load_all_or_none() -> None:
    machine, _, _ = simple()
    cpu = naive.Cpu(long=False, cr3=0x7020)
    machine.set_cpu(cpu)
    ram = machine.shared[0]
    for i in range(4):
        ram[0x7020 + 8 * i] = 0x1001 * (i + 1) | 1
    ram[0x7020] = 0x1001
    ram[0x7028] = 0x1E6  # not present: its reserved bits do not count
    ram[0x7030], ram[0x7038] = 0x3001, 0x4001
    assert machine("load_pdptes") == 1
    assert [machine.vcpu[S.PDPTE + 8 * i] for i in range(4)] == [0x1001, 0x1E6, 0x3001, 0x4001]
    ram[0x7020], ram[0x7038] = 0x5001, 0x4003
    assert machine("load_pdptes") == 0
    assert (machine.vcpu[S.LEAVE], machine.vcpu[S.EXC_VECTOR], machine.vcpu[S.EXC_ERROR]) == (S.LEAVE_EXCEPTION, 13, 0)
    assert machine.vcpu[S.PDPTE] == 0x1001
    assert machine("reload_pdptes") == 0
    ram[0x7038] = 0x4001
    assert machine("reload_pdptes") == 1
    assert machine.vcpu[S.PDPTE] == 0x5001


def test_translate_debug_changes_nothing() -> None:
    machine, _, _ = simple()
    before = machine.shared[0].read(0, 16 * PAGE)
    machine.vcpu[S.CPL] = 3
    assert machine("translate_debug", 0x5123) == 0x5123
    assert machine("translate_debug", 0x7123) == 0x1_0000_0123
    assert machine("translate_debug", 0x9000) == -1
    assert machine.shared[0].read(0, 16 * PAGE) == before
    assert machine.dirty_pages(0) == set()
    assert machine.vcpu[S.LEAVE] == machine.vcpu[S.EXC_VECTOR] == 0
