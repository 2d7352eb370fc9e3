"""Rules about memory accesses, with compiled code behind: what KVM_RUN does, what is logged, what it costs others."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.mmu.layout import EHWPOISON

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import CreateGuestMemfd, MemoryAttributes, PreFaultMemory
from kvmfs.kvm import faults
from kvmfs.kvm.block import Block
from kvmfs.kvm.faults import Record
from kvmfs.kvm.inject import records
from kvmfs.kvm.inject.rules import parse
from kvmfs.kvm.inject.when import When
from tests.unit.kvm.inprocess import CODE, DATA, MMIO, PAGE, Machine, run_in_thread

LOAD, STORE, HLT = "488b03", "488903", "f4"  # mov rax, [rbx]; mov [rbx], rax
AGAIN = "ebfb"  # back over a three-byte instruction
PRIVATE = 8

numbers = itertools.count(1)


def inject(machine: Machine, *lines: str) -> None:
    machine.vm.inject([(next(numbers), parse(line)) for line in lines])


def log(machine: Machine) -> list[Record]:
    return [record for record in faults.read(machine.vm.block) if record.rule]


def loads(count: int = 1, code: str = LOAD, **more: Any) -> Machine:
    machine = Machine(code * count + HLT, **more)
    machine.set_regs(rbx=DATA)
    return machine


def test_a_memory_fault_where_none_is_due() -> None:
    machine = loads()
    inject(machine, f"memory-fault:gpa={DATA}")
    assert machine.run() == -errno.EFAULT
    fault = machine.page.memory_fault
    assert (machine.page.exit_reason, fault.gpa, fault.size, fault.flags) == (Exit.MEMORY_FAULT, DATA, PAGE, 0)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT
    (record,) = log(machine)
    assert (record.outcome, record.gva, record.gpa, record.access) == ("memory fault: injected", DATA, DATA, "read")
    assert (record.slot, record.vcpu, record.ordinal, record.rip) == (0, 0, 1, CODE)


def private_data(machine: Machine) -> None:
    """DATA in a slot with guest_memfd, private."""
    gmem = machine.call(machine.vm, ioctls.KVM_CREATE_GUEST_MEMFD, CreateGuestMemfd(size=PAGE))
    machine.set_slot(1, MMIO, machine.client.memory(PAGE), PAGE, flags=4, guest_memfd=gmem)
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, MemoryAttributes(address=MMIO, size=PAGE, attributes=8))
    machine.set_regs(rbx=MMIO)


def test_the_guest_wants_the_other_kind() -> None:
    machine = loads(2, kind=1)
    inject(machine, f"other-kind:gpa={DATA}", f"other-kind:gpa={MMIO}")
    assert machine.run() == -errno.EFAULT
    assert machine.page.memory_fault.flags == PRIVATE
    private_data(machine)
    assert machine.run() == -errno.EFAULT
    assert (machine.page.memory_fault.gpa, machine.page.memory_fault.flags) == (MMIO, 0)


def test_efault_says_nothing_of_a_memory_fault() -> None:
    machine = loads()
    inject(machine, "efault:access=read,gpa=0x9000")
    assert machine.run() == -errno.EFAULT
    assert machine.page.exit_reason == Exit.UNKNOWN


def test_poisoned_private_memory_is_a_memory_fault_with_ehwpoison() -> None:
    machine = loads(kind=1)
    private_data(machine)
    inject(machine, "hwpoison:memory=private")
    assert machine.run() == -EHWPOISON
    assert (machine.page.exit_reason, machine.page.memory_fault.gpa) == (Exit.MEMORY_FAULT, MMIO)
    assert machine.page.memory_fault.flags == PRIVATE


def test_poisoned_shared_memory_is_a_signal_to_the_clients_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = loads()
    poisoned: list[int] = []
    monkeypatch.setattr(machine.client, "poison", poisoned.append, raising=False)
    inject(machine, f"hwpoison:gpa={DATA}", f"hwpoison:gpa={DATA},access=write")
    assert machine.run() == -errno.EINTR
    assert machine.page.exit_reason == Exit.INTR
    assert poisoned == [machine.memory + DATA]
    assert machine.run() == 0
    assert [record.outcome for record in log(machine)] == ["EHWPOISON"]


def test_pre_fault_meets_the_rules_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = loads()
    monkeypatch.setattr(machine.client, "poison", lambda address: None, raising=False)
    inject(machine, f"efault:gpa={DATA}", f"hwpoison:gpa={DATA}", f"memory-fault:gpa={DATA}")
    for expected in (errno.EFAULT, errno.EINTR, errno.EFAULT):
        with pytest.raises(OSError, match=r".") as caught:
            machine.call(machine.vcpu, ioctls.KVM_PRE_FAULT_MEMORY, PreFaultMemory(gpa=DATA, size=PAGE))
        assert caught.value.errno == expected
    assert [record.gva for record in log(machine)] == [None] * 3


@pytest.mark.parametrize(
    ("rule", "ordinals"),
    [
        ("memory-fault:gpa=0x9000", [1]),
        ("memory-fault:gpa=0x9000,after=2,times=2", [3, 4]),
        ("memory-fault:gpa=0x9000,every=3", [3, 6, 9]),
        ("memory-fault:gpa=0x8000+0x1001,times=2", [1, 2]),
        ("memory-fault:gpa=0x9000,access=write", []),
        ("memory-fault:gpa=0x9000,vcpu=1", []),
        ("memory-fault:gpa=0x9000,memory=private", []),
        ("memory-fault:gpa=0xa000", []),
    ],
)
def test_each_access_is_counted_though_translations_are_cached(rule: str, ordinals: list[int]) -> None:
    machine = loads(8)
    machine.run()  # the page is in the TLB
    machine.set_regs(rip=CODE)
    inject(machine, rule)
    failed = 0
    while (result := machine.run()) == -errno.EFAULT:
        failed += 1
    assert (result, machine.page.exit_reason) == (0, Exit.HLT)
    assert [record.ordinal for record in log(machine)] == ordinals
    assert failed == len(ordinals)


def test_only_pages_under_rules_leave_the_fast_path() -> None:
    machine = loads(100)
    machine.run()
    machine.set_regs(rip=CODE)
    inject(machine, "memory-fault:gpa=0xa000", "memory-fault:vcpu=3")
    machine.run()
    machine.set_regs(rip=CODE)
    before = machine.vcpu.state[S.TLB_MISSES]
    machine.run()
    assert machine.vcpu.state[S.TLB_MISSES] == before
    inject(machine, f"memory-fault:gpa={DATA},after=50")
    machine.set_regs(rip=CODE)
    assert machine.run() == -errno.EFAULT
    assert 50 < machine.vcpu.state[S.TLB_MISSES] - before < 60
    machine.run()  # it is spent
    machine.set_regs(rip=CODE)
    before = machine.vcpu.state[S.TLB_MISSES]
    machine.run()
    assert machine.vcpu.state[S.TLB_MISSES] - before < 5


def test_a_rule_holds_at_once_for_a_guest_that_runs_and_is_gone_at_once() -> None:
    machine = Machine(LOAD + AGAIN)
    machine.set_regs(rbx=DATA)
    thread, results = run_in_thread(machine)
    while not machine.vcpu.state[S.MODE]:
        pass
    inject(machine, f"memory-fault:gpa={DATA},times=all")
    thread.join()
    assert results == [-errno.EFAULT]
    assert machine.run() == -errno.EFAULT
    machine.vm.stop_injecting()
    assert machine.vm.injected() == {}
    thread, results = run_in_thread(machine)
    while not machine.vcpu.state[S.MODE]:
        pass
    machine.vm.native.request(machine.vcpu.context, S.REQ_STOP)
    thread.join()
    assert results == [-errno.EINTR]


def test_code_and_page_tables_are_memory_too() -> None:
    machine = loads()
    inject(machine, "memory-fault:access=fetch", "memory-fault:gpa=0x12000,access=write")  # the page directory's A bit
    for gpa in (0x12000, CODE):  # the walk comes first
        assert machine.run() == -errno.EFAULT
        assert machine.page.memory_fault.gpa == gpa
    assert machine.run() == 0
    assert [(record.access, record.gva) for record in log(machine)] == [("write", CODE), ("fetch", CODE)]


def test_a_delay_is_waited_and_logged() -> None:
    machine = loads(3)
    inject(machine, f"delay:gpa={DATA},for=3ms,times=2")
    assert machine.run() == 0
    found = log(machine)
    assert [(record.outcome, record.ordinal) for record in found] == [("delayed", 1), ("delayed", 2)]
    khz = machine.vm.native.host_khz
    assert all(3 * khz <= record.end - record.start < 2000 * khz for record in found)


def test_a_signal_ends_a_delay() -> None:
    machine = loads()
    inject(machine, f"delay:gpa={DATA},for=60s")
    thread, results = run_in_thread(machine)
    while not log_of_matches(machine):
        os.sched_yield()
    machine.vm.native.request(machine.vcpu.context, S.REQ_STOP)
    thread.join(30)
    assert results == [-errno.EINTR]
    assert machine.run() == 0


def log_of_matches(machine: Machine) -> int:
    return sum(matched for matched, _ in machine.vm.injected().values())


def test_a_delay_and_what_comes_after_it() -> None:
    machine = loads()
    inject(machine, f"delay:gpa={DATA},for=1us", f"efault:gpa={DATA}")
    assert machine.run() == -errno.EFAULT
    assert [record.outcome for record in log(machine)] == ["delayed", "EFAULT"]


def test_slots_can_change_during_a_delay() -> None:
    machine = Machine(LOAD + HLT)
    machine.set_slot(1, MMIO, machine.client.memory(PAGE), PAGE)
    machine.set_regs(rbx=MMIO)
    inject(machine, f"delay:gpa={MMIO},for=60s")
    thread, _ = run_in_thread(machine)
    while not log_of_matches(machine):
        os.sched_yield()
    machine.set_slot(1, 0, 0, 0)  # returns while the vCPU waits
    machine.vm.native.request(machine.vcpu.context, S.REQ_STOP)
    thread.join(30)
    machine.run()
    assert (machine.page.exit_reason, machine.page.mmio.phys_addr) == (Exit.MMIO, MMIO)


def test_two_vcpus_share_a_rules_count() -> None:
    machine = Machine(LOAD + AGAIN)
    machine.set_regs(rbx=DATA)
    number = machine.call(machine.vm, ioctls.KVM_CREATE_VCPU, 1)
    other: Any = machine.client.nodes[number]
    machine.set_cpuid(other)
    other.ioctl(machine.client, ioctls.KVM_SET_SREGS.number, ctypes.addressof(machine._long_mode()))
    regs = machine.regs
    regs.rbx = DATA
    other.ioctl(machine.client, ioctls.KVM_SET_REGS.number, ctypes.addressof(regs))
    inject(machine, f"memory-fault:gpa={DATA},every=100,times=40")
    failures: list[int] = []

    def run(vcpu: Any) -> None:
        while vcpu.vm.native.call("enter", vcpu.context) == -errno.EFAULT:
            failures.append(vcpu.id)

    threads = [threading.Thread(target=run, args=(vcpu,)) for vcpu in (machine.vcpu, other)]
    for thread in threads:
        thread.start()
    while len(failures) < 40:
        os.sched_yield()
    for vcpu in (machine.vcpu, other):
        machine.vm.native.request(vcpu.context, S.REQ_STOP)
    for thread in threads:
        thread.join()
    assert len(failures) == 40
    assert sorted(record.ordinal or 0 for record in log(machine)) == list(range(100, 4001, 100))


def test_compiled_code_decides_as_python_does() -> None:
    rule = Block(records.Rule.SIZE)
    fires = build.function("rule_fires", 2)
    at = records.Rule
    for timing in (When(), When(5, 3), When(0, 1, 0, 1 << 50, 7), When(9, 2, 4, (1 << 53) // 3, (1 << 62) - 5)):
        for offset, value in ((at.AFTER, timing.after), (at.EVERY, timing.every), (at.CHANCE, timing.chance)):
            rule[offset] = value
        rule[at.SEED] = timing.seed
        ordinals = [*range(1, 200), 1 << 40, (1 << 40) + 1]
        assert [bool(fires(rule.address, n)) for n in ordinals] == [timing.fires(n) for n in ordinals]


def test_what_rules_did_is_in_the_event_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    monkeypatch.setenv("KVMFS_EVENT_LOG", str(path))
    machine = loads()
    inject(machine, f"memory-fault:gpa={DATA}", f"efault:gpa={DATA}")
    assert machine.run() == machine.run() == -errno.EFAULT
    events = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(event["event"], event["vcpu"], event["gpa"]) for event in events if "gpa" in event and "vcpu" in event]
    assert found == [("injected", 0, DATA), ("memory_fault", 0, DATA), ("injected", 0, DATA)]
