"""The fault log: a record for each access that left the fast path, and for no other."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import KVM_NMI
from kvmfs.abi.memory import MemoryAttributes
from kvmfs.kvm import faults, inspection
from kvmfs.kvm.faults import Record
from kvmfs.kvm.inject.ioctls import Fired
from kvmfs.kvm.inject.rules import parse
from kvmfs.kvm.inspection import Fault, Header
from tests.unit.kvm.inprocess import CODE, DATA, MMIO, PAGE, Machine

LOAD, STORE, HLT = "488b03", "488903", "f4"  # mov rax, [rbx]; mov [rbx], rax


def records(machine: Machine, gpa: int = DATA) -> list[Record]:
    return [record for record in faults.read(machine.vm.block) if record.gpa & -PAGE == gpa]


def test_first_touches_are_logged_once_for_reading_and_once_for_writing() -> None:
    machine = Machine((LOAD + STORE) * 3 + HLT)
    machine.set_regs(rbx=DATA + 8)
    machine.run()
    read, written = records(machine)
    assert (read.outcome, read.access, read.gva, read.gpa, read.slot) == ("page", "read", DATA + 8, DATA, 0)
    assert (written.outcome, written.access, written.rip) == ("page", "write", CODE + 3)
    assert read.number < written.number
    assert read.end - read.start > 0
    assert read.start < written.start
    assert (read.private, read.vcpu, read.rule, read.ordinal) == (False, 0, None, None)


def test_the_guests_page_tables_and_code_are_in_it() -> None:
    machine = Machine(HLT)
    machine.run()
    assert [record.access for record in records(machine, CODE)] == ["read"]  # a first touch is for reading or writing
    assert {record.gva for record in records(machine, 0x10000)} == {CODE}


def test_what_goes_wrong_says_how() -> None:
    machine = Machine(LOAD + HLT, kind=1)
    machine.set_regs(rbx=DATA)
    private = MemoryAttributes(address=DATA, size=PAGE, attributes=8)
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, private)
    assert machine.run() == -errno.EFAULT
    machine.set_slot(1, MMIO, 0x10000, PAGE)  # nothing can be there
    machine.set_regs(rbx=MMIO + 4)
    assert machine.run() == -errno.EFAULT
    machine.set_slot(1, 0, 0, 0)
    machine.run()
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, MemoryAttributes(address=MMIO, size=PAGE, attributes=8))
    machine.page.immediate_exit = 0
    machine.set_regs(rip=CODE)
    (first,) = records(machine)
    assert (first.outcome, first.private, first.slot, first.is_memory_fault) == (
        "memory fault: no guest_memfd", True, 0, True,
    )  # fmt: skip
    missing, mmio = records(machine, MMIO)
    assert (missing.outcome, missing.gva, missing.is_memory_fault) == ("EFAULT", MMIO + 4, False)
    assert (mmio.outcome, mmio.gpa, mmio.gva, mmio.slot) == ("MMIO", MMIO + 4, MMIO + 4, None)


def test_memory_that_is_copied_is_logged_each_time() -> None:
    machine = Machine(LOAD * 3 + HLT, shared=False)
    machine.set_regs(rbx=DATA)
    machine.run()
    assert [record.outcome for record in records(machine)] == ["copied"] * 3


def test_ioctls_that_rules_befell() -> None:
    machine = Machine(HLT)
    rule = parse("KVM_NMI=EIO")
    machine.vm.note_injection(Fired(4, 2, rule, KVM_NMI.number, 0))
    *_, record = faults.read(machine.vm.block)
    assert (record.outcome, record.rule, record.ordinal, record.detail) == ("ioctl", 4, 2, KVM_NMI.number)


def test_the_log_is_lossless_up_to_its_bound_and_numbers_tell_what_was_lost() -> None:
    machine = Machine(LOAD * 100 + HLT, shared=False)  # each load is a record
    machine.set_regs(rbx=DATA)
    block, made = machine.vm.block, 0
    while made < inspection.FAULT_ROOM + 500:
        machine.set_regs(rip=CODE)
        machine.run()
        made = faults.count(block)
    numbers = [record.number for record in faults.read(block)]
    assert numbers == list(range(made - inspection.FAULT_ROOM + 1, made + 1))
    assert [record.number for record in faults.read(block, after=made - 2)] == [made - 1, made]


def test_a_record_that_is_being_written_is_not_shown() -> None:
    made = inspection.Inspection(1, 1_000_000, 0)
    made.vm[Header.FAULT_COUNT] = 2
    made.vm[inspection.FAULTS + Fault.SIZE + Fault.COUNT] = 2
    (record,) = faults.read(made.vm)
    assert record == replace(record, number=2, outcome="page")
    assert os.fstat(made.fd).st_size == inspection.SIZE
