"""Slow accesses: page crossings, MMIO fragments and their replay, remote memory, read-modify-write; KVM's own."""

from __future__ import annotations

import ctypes
from errno import EFAULT

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.raw import u64

from . import naive
from .machine import PAGE, Machine

MMIO = 0x1_0000_0000
RAM, RAM2, ROM, REMOTE, DEVICE, DEVICE2, READ_ONLY, ABSENT = (n * PAGE for n in (16, 17, 18, 20, 21, 22, 23, 24))


@pytest.fixture
def machine() -> Machine:
    """Linear pages as named above; of 32 pages of memory at 0, a ROM, a remote slot, and MMIO."""
    data = bytearray(32 * PAGE)
    rom, remote = bytearray(b"rom " * 1024), bytearray(b"far " * 1024)
    leaves = {
        16: 0x10007,
        17: 0x9007,
        18: 0x100_0007,
        20: 0x200_0007,
        21: MMIO | 7,
        22: MMIO | 0x5007,
        23: 0x11005,
        15: 0xF007,
    }
    for table, content in {0x1000: {0: 0x2007}, 0x2000: {0: 0x3007}, 0x3000: {0: 0x4007}, 0x4000: leaves}.items():
        for index, value in content.items():
            data[table + 8 * index : table + 8 * index + 8] = value.to_bytes(8, "little")
    slots = [
        naive.Slot(0, 32, data),
        naive.Slot(0x1000, 1, rom, readonly=True),
        naive.Slot(0x2000, 1, remote, remote=True),
    ]
    made = Machine(naive.Memory(slots))
    made.set_cpu(naive.Cpu(cr3=0x1000))
    return made


def read(machine: Machine, la: int, size: int, flags: int = 0) -> bytes | None:
    """What read_slow brings, None if it leaves; the destination is then untouched."""
    buffer = ctypes.create_string_buffer(b"\xee" * size, size)
    machine.vcpu[S.MMIO_USED] = 0
    machine.vcpu[S.LEAVE] = S.LEAVE_NEXT
    if machine("read_slow", la, size | flags << M.ACCESS_SHIFT, ctypes.addressof(buffer)):
        return buffer.raw
    assert buffer.raw == b"\xee" * size
    return None


def write(machine: Machine, la: int, data: bytes, name: str = "write_slow") -> bool:
    buffer = ctypes.create_string_buffer(data, len(data))
    machine.vcpu[S.LEAVE] = S.LEAVE_NEXT
    return bool(machine(name, la, len(data), ctypes.addressof(buffer)))


def answer(machine: Machine, data: bytes) -> tuple[int, int]:
    """Complete the MMIO read that the run ended with; returns its gpa and size."""
    v = machine.vcpu
    assert (v[S.LEAVE], v[S.EXIT], v[S.MMIO_STATE]) == (S.LEAVE_EXIT, S.EXIT_MMIO_READ, S.IO_PENDING)
    gpa, size, fragment = v[S.MMIO_GPA], v[S.MMIO_SIZE], S.MMIO_CACHE + 24 * v[S.MMIO_READS]
    assert len(data) == size
    v[fragment], v[fragment + 8], v[fragment + 16] = gpa, size, int.from_bytes(data, "little")
    v[S.MMIO_READS] += 1
    return gpa, size


def queue(machine: Machine) -> list[tuple[int, bytes]]:
    """The MMIO writes that wait for the instruction to retire."""
    v, result = machine.vcpu, []
    for i in range(v[S.MMIO_WRITES]):
        gpa, size, data = (v[S.MMIO_QUEUE + 24 * i + 8 * k] for k in range(3))
        result.append((gpa, u64(data).to_bytes(8, "little")[:size]))
    return result


@pytest.mark.parametrize("size", [1, 2, 4, 8, 10, 16, 64, 512])
def test_round_trip_within_a_page(machine: Machine, size: int) -> None:
    data = bytes(range(256)) * 2
    assert write(machine, RAM + 64, data[:size])
    assert machine.shared[0].read(0x10000 + 64, size + 1) == data[:size] + b"\0"
    assert read(machine, RAM + 64, size) == data[:size]


@pytest.mark.parametrize("size", [2, 8, 64, 512])
def test_crossing_into_a_page_elsewhere(machine: Machine, size: int) -> None:
    data = bytes(range(1, 129)) * 4
    la = RAM2 - size // 2
    assert write(machine, la, data[:size])
    ram = machine.shared[0]
    assert ram.read(0x11000 - size // 2, size // 2) + ram.read(0x9000, size - size // 2) == data[:size]
    assert read(machine, la, size) == data[:size]
    assert {9, 16} <= machine.dirty_pages(0)


def test_nothing_is_written_when_the_second_page_faults(machine: Machine) -> None:
    assert not write(machine, ABSENT - 4, bytes(8))
    v = machine.vcpu
    assert (v[S.LEAVE], v[S.EXC_VECTOR], v[S.EXC_ERROR]) == (S.LEAVE_EXCEPTION, 14, 3)
    assert v[S.EXC_PAYLOAD] == ABSENT - 4
    assert read(machine, ABSENT - 4, 8) is None
    assert (v[S.EXC_ERROR], v[S.EXC_PAYLOAD]) == (0, ABSENT)
    machine.shared[0].write(0x10000, b"before")
    assert not write(machine, ROM + PAGE - 4, b"overwrit")
    assert machine.vcpu[S.EXC_PAYLOAD] == ROM + PAGE
    assert queue(machine) == []


def test_canonical_is_checked_for_both_ends_before_any_page(machine: Machine) -> None:
    edge = (1 << 47) - 4
    for flags, vector in ((0, S.GP), (M.STACK, S.SS_FAULT)):
        assert read(machine, edge, 8, flags) is None
        assert (machine.vcpu[S.EXC_VECTOR], machine.vcpu[S.EXC_ERROR]) == (vector, 0)
    assert read(machine, edge, 4) is None
    assert machine.vcpu[S.EXC_VECTOR] == S.PF_FAULT


def test_addresses_wrap_outside_64_bit_mode() -> None:
    machine = Machine(naive.Memory([naive.Slot(0, 1, bytearray(PAGE)), naive.Slot(0xFFFFF, 1, bytearray(PAGE))]))
    machine.set_cpu(naive.Cpu(paging=False, long=False))
    assert write(machine, 0xFFFF_FFFE, b"wrap")
    assert machine.shared[1].read(PAGE - 2, 2) + machine.shared[0].read(0, 2) == b"wrap"


def test_implicit_supervisor_access_at_cpl_3(machine: Machine) -> None:
    machine.shared[0][0x4000 + 8 * 16] = 0x10003
    machine.vcpu[S.CPL] = 3
    assert read(machine, RAM, 8) is None
    assert machine.vcpu[S.EXC_ERROR] == 5
    assert read(machine, RAM, 8, M.IMPLICIT_SUPERVISOR) == bytes(8)


# MMIO ----------


def test_mmio_read_leaves_once_for_each_fragment_and_then_has_the_value(machine: Machine) -> None:
    assert read(machine, DEVICE + 16, 20) is None
    assert answer(machine, b"01234567") == (MMIO + 16, 8)
    assert read(machine, DEVICE + 16, 20) is None
    assert answer(machine, b"89abcdef") == (MMIO + 24, 8)
    assert read(machine, DEVICE + 16, 20) is None
    assert answer(machine, b"ghij") == (MMIO + 32, 4)
    assert read(machine, DEVICE + 16, 20) == b"0123456789abcdefghij"
    assert machine.vcpu[S.MMIO_USED] == 3


def test_mmio_read_that_crosses_pages_is_cut_there_first(machine: Machine) -> None:
    assert read(machine, DEVICE2 - 2, 8) is None
    assert answer(machine, b"ab") == (MMIO + 0xFFE, 2)
    assert read(machine, DEVICE2 - 2, 8) is None
    assert answer(machine, b"cdefgh") == (MMIO + 0x5000, 6)
    assert read(machine, DEVICE2 - 2, 8) == b"abcdefgh"


def test_second_read_of_the_instruction_is_another_fragment(machine: Machine) -> None:
    read(machine, DEVICE, 4)
    answer(machine, b"once")
    for expected in (b"once", None):
        buffer = ctypes.create_string_buffer(4)
        done = machine("read_slow", DEVICE, 4, ctypes.addressof(buffer))
        assert (buffer.raw if done else None) == expected
    answer(machine, b"more")
    assert read(machine, DEVICE, 4) == b"once"


def test_answer_to_another_question_is_dropped(machine: Machine) -> None:
    read(machine, DEVICE, 4)
    answer(machine, b"old ")
    assert read(machine, DEVICE + 8, 4) is None
    assert machine.vcpu[S.MMIO_READS] == 0
    assert answer(machine, b"new ") == (MMIO + 8, 4)
    assert read(machine, DEVICE + 8, 4) == b"new "


def test_mmio_writes_are_queued_in_order(machine: Machine) -> None:
    assert write(machine, DEVICE + 8, b"0123456789")
    assert write(machine, DEVICE2 - 1, b"xyz")
    assert queue(machine) == [
        (MMIO + 8, b"01234567"),
        (MMIO + 16, b"89"),
        (MMIO + 0xFFF, b"x"),
        (MMIO + 0x5000, b"yz"),
    ]


def test_overfull_queue_is_unimplemented(machine: Machine) -> None:
    assert write(machine, DEVICE, bytes(512 - 8))
    assert not write(machine, DEVICE2 - 8, bytes(16))
    assert (machine.vcpu[S.LEAVE], machine.vcpu[S.EXIT]) == (S.LEAVE_EXIT, S.EXIT_EMULATION_FAILURE)


@pytest.mark.parametrize("la", [ABSENT, DEVICE2])
def test_queue_is_emptied_when_the_instruction_does_not_retire(machine: Machine, la: int) -> None:
    assert write(machine, DEVICE, b"once")
    assert read(machine, la, 4) is None
    assert queue(machine) == []


def test_too_many_reads_are_unimplemented(machine: Machine) -> None:
    while read(machine, DEVICE, 520) is None and machine.vcpu[S.EXIT] == S.EXIT_MMIO_READ:
        answer(machine, bytes(8))
    assert machine.vcpu[S.EXIT] == S.EXIT_EMULATION_FAILURE
    assert machine.vcpu[S.MMIO_READS] == S.MMIO_LIMIT


def test_memory_and_mmio_in_one_access(machine: Machine) -> None:
    machine.shared[2].write(PAGE - 4, b"near")
    assert read(machine, DEVICE - 4, 8) is None
    assert answer(machine, b"devc") == (MMIO, 4)
    assert read(machine, DEVICE - 4, 8) == b"neardevc"
    assert write(machine, DEVICE - 4, b"REMODEVC")
    assert machine.shared[2].read(PAGE - 4, 4) == b"REMO"
    assert queue(machine) == [(MMIO, b"DEVC")]


def test_rom_reads_as_memory_and_writes_as_mmio(machine: Machine) -> None:
    assert read(machine, ROM + 4, 4) == b"rom "
    assert write(machine, ROM + 4, b"flsh")
    assert queue(machine) == [(0x100_0004, b"flsh")]
    assert machine.shared[1].read(4, 4) == b"rom "


# Remote memory ----------


def test_remote_memory_goes_through_the_client(machine: Machine) -> None:
    assert read(machine, REMOTE + 4, 8) == b"far far "
    assert write(machine, REMOTE + 4, b"near")
    assert machine.shared[2].read(0, 12) == b"far nearfar "
    assert machine.dirty_pages(2) == {0}
    machine.memory.slots[2].missing.add(0)
    assert read(machine, REMOTE, 8) is None
    assert (machine.vcpu[S.EXIT], machine.vcpu[S.FAULT_ERRNO]) == (S.EXIT_EFAULT, EFAULT)


def test_remote_read_is_repeated_and_remote_write_is_not_when_translations_change(machine: Machine) -> None:
    read(machine, REMOTE, 8)
    machine.hook = lambda: machine.vm.__setitem__(M.GENERATION, machine.vm[M.GENERATION] + 1)
    assert read(machine, REMOTE, 8) is None
    assert machine.vcpu[S.LEAVE] == S.LEAVE_RETRY
    assert write(machine, REMOTE, b"done")
    assert machine.shared[2].read(0, 4) == b"done"


# Read-modify-write ----------


def test_rmw_names_the_host_address_when_there_is_one(machine: Machine) -> None:
    machine.shared[0].write(0x10010, b"operand!")
    buffer = ctypes.create_string_buffer(8)
    assert machine("rmw_read_slow", RAM + 16, 8, ctypes.addressof(buffer)) == 1
    assert buffer.raw == b"operand!"
    assert u64(machine.vcpu[S.RMW_HOST]) == machine.shared[0].address + 0x10010
    assert u64(machine("probe_write", RAM + 16, 8)) == machine.shared[0].address + 0x10010


@pytest.mark.parametrize("la", [RAM2 - 4, REMOTE + 8])
def test_rmw_without_one_host_address(machine: Machine, la: int) -> None:
    write(machine, la, b"operand!")
    buffer = ctypes.create_string_buffer(8)
    machine.vcpu[S.RMW_HOST] = 1
    assert machine("rmw_read_slow", la, 8, ctypes.addressof(buffer)) == 1
    assert buffer.raw == b"operand!"
    assert (machine.vcpu[S.RMW_HOST], machine.vcpu[S.RMW_LINEAR]) == (0, la)
    assert write(machine, la, b"modified", "rmw_write_slow")
    assert read(machine, la, 8) == b"modified"


def test_rmw_checks_for_writing_before_it_reads(machine: Machine) -> None:
    assert machine("rmw_read_slow", READ_ONLY, 8, 0) == 0
    assert (machine.vcpu[S.EXC_VECTOR], machine.vcpu[S.EXC_ERROR]) == (14, 3)
    assert machine("probe_write", READ_ONLY - 4, 8) == 0
    assert machine("probe_write", DEVICE, 8) == 1


def test_rmw_of_rom_reads_memory_and_writes_mmio(machine: Machine) -> None:
    buffer = ctypes.create_string_buffer(4)
    assert machine("rmw_read_slow", ROM, 4, ctypes.addressof(buffer)) == 1
    assert buffer.raw == b"rom "
    assert write(machine, ROM, b"RAM ", "rmw_write_slow")
    assert queue(machine) == [(0x100_0000, b"RAM ")]


# KVM's own accesses ----------


def physical(machine: Machine, name: str, gpa: int, data: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(data, len(data))
    return machine(name, gpa, len(data), ctypes.addressof(buffer)), buffer.raw


def test_physical_accesses_see_the_shared_side() -> None:
    memory = naive.Memory([naive.Slot(0, 2, bytearray(b"s" * 2 * PAGE), bytearray(b"p" * 2 * PAGE))])
    memory.attributes = {0: naive.PRIVATE}
    machine = Machine(memory)
    assert physical(machine, "read_phys", 0x100, bytes(4)) == (0, b"ssss")
    assert physical(machine, "write_phys", 0xFFE, b"wxyz")[0] == 0
    assert machine.shared[0].read(0xFFE, 4) == b"wxyz"
    assert machine.dirty_pages(0) == {0, 1}
    assert physical(machine, "read_phys", 2 * PAGE - 2, bytes(4))[0] == -EFAULT


def test_physical_write_to_a_read_only_slot_and_remote_memory(machine: Machine) -> None:
    assert physical(machine, "write_phys", 0x100_0000, b"no")[0] == -EFAULT
    assert physical(machine, "write_phys", 0x200_0000, b"yes")[0] == 0
    assert physical(machine, "read_phys", 0x200_0000, bytes(4)) == (0, b"yes ")


def test_physical_access_outside_the_guest_survives_a_pending_flush(machine: Machine) -> None:
    machine.vcpu[S.MODE], machine.vcpu[S.REQUEST] = 0, S.REQ_TLB_FLUSH
    machine.shared[0].write(0x8000, b"data")
    assert physical(machine, "read_phys", 0x8000, bytes(4)) == (0, b"data")
    assert machine.vcpu[S.MODE] == 0
    machine.memory.slots[0].missing.add(7)
    assert physical(machine, "read_phys", 0x7000, bytes(4))[0] == -EFAULT
    assert machine.vcpu[S.LEAVE] == S.LEAVE_NEXT
