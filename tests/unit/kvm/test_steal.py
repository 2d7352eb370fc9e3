"""Steal time: what the scheduler's accounts say of the two threads of a KVM_RUN gets into the guest's structure."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi import para as P
from kvmfs.abi.caps import Cap
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.accounts import Account, Accounts, Table
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.inprocess import DATA, Machine, ThisProcess, run_in_thread
from tests.unit.kvm.test_clock import msrs, wrmsr

WRMSR, HLT = "0f30", "f4"
NOBODY = 1 << 22  # no thread has this tid: PID_MAX_LIMIT


class Scheduled(ThisProcess):
    """A client whose threads have the accounts that a test gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[bool] = []
        self.files = {own: os.memfd_create("schedstat") for own in (False, True)}
        for own in self.files:
            self.delay(own, 0)

    def delay(self, own: bool, nanoseconds: int) -> None:
        os.pwrite(self.files[own], b"123456789 %d 7\n" % nanoseconds, 0)

    def schedstat(self, *, own: bool) -> int:
        self.opened.append(own)
        return os.dup(self.files[own])


class Stolen(Machine):
    """KVM_RUN is called by a thread that does not exist."""

    def __init__(self, code: str) -> None:
        self.threads = Scheduled()
        super().__init__(code, client=self.threads)
        self.become(NOBODY)

    def become(self, tid: int) -> None:
        self.client.tid = tid
        self.vcpu.state[Cpu.CALLER] = tid

    @property
    def time(self) -> P.StealTime:
        return P.StealTime.from_buffer_copy(self.at(DATA, 64))


@pytest.fixture
def machine() -> Stolen:
    machine = Stolen(WRMSR + HLT * 8)
    machine.threads.delay(False, 1_000_000)
    machine.threads.delay(True, 2_000_000)
    wrmsr(machine, P.MSR_KVM_STEAL_TIME, DATA | P.KVM_MSR_ENABLED)
    return machine


def test_both_threads_count(machine: Stolen) -> None:
    assert (machine.time.steal, machine.time.version) == (0, 2)  # what was before is not this guest's
    machine.threads.delay(False, 1_000_700)
    machine.run()
    assert (machine.time.steal, machine.time.version) == (700, 4)
    machine.threads.delay(True, 2_030_000)
    machine.run()
    assert (machine.time.steal, machine.time.version) == (30_700, 6)
    assert machine.threads.opened == [False, True]


def test_another_thread_of_ours_loses_nothing(machine: Stolen) -> None:
    machine.threads.delay(False, 1_000_300)
    thread, results = run_in_thread(machine)
    thread.join()
    assert (results, machine.time.steal) == ([0], 300)


def test_another_thread_has_its_own_account(machine: Stolen) -> None:
    machine.become(NOBODY + 1)
    machine.threads.delay(False, 5_000_000)
    machine.run()
    assert machine.time.steal == 0
    machine.threads.delay(False, 5_000_900)
    machine.run()
    assert machine.time.steal == 900


def test_the_guest_may_reset_it(machine: Stolen) -> None:
    machine.threads.delay(False, 1_000_400)
    machine.put(DATA, bytes(P.StealTime(version=7, preempted=1, steal=50)))
    machine.run()
    assert (machine.time.steal, machine.time.version, machine.time.preempted) == (450, 10, 0)


def test_without_accounts_nothing_is_stolen(machine: Stolen) -> None:
    def fail(*, own: bool) -> int:
        raise OSError(errno.EIO, "no broker")

    machine.threads.schedstat = fail  # type: ignore[method-assign]
    machine.become(NOBODY + 1)
    machine.threads.delay(True, 2_000_060)
    machine.run()
    machine.run()
    assert (machine.time.steal, machine.time.version) == (60, 6)


def test_what_is_not_enabled_is_not_written(machine: Stolen) -> None:
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_STEAL_TIME, DATA)[0] == 1
    machine.run()
    assert machine.time.version == 2
    assert msrs(machine, ioctls.KVM_GET_MSRS, P.MSR_KVM_STEAL_TIME) == (1, DATA)


def test_reserved_bits_are_refused(machine: Stolen) -> None:
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_STEAL_TIME, DATA | 1 << 5 | 1)[0] == 0


def test_init_ends_it(machine: Stolen) -> None:
    machine.vcpu.reset(init=True)
    assert msrs(machine, ioctls.KVM_GET_MSRS, P.MSR_KVM_STEAL_TIME) == (1, 0)


def test_a_guest_that_is_not_told_of_it_has_no_such_msr(machine: Stolen) -> None:
    for entry in machine.vcpu.cpuid.entries:
        if entry.function == P.KVM_CPUID_FEATURES:
            entry.eax &= ~(1 << P.KVM_FEATURE_STEAL_TIME)
    machine.call(machine.vcpu, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.ENFORCE_PV_FEATURE_CPUID, args=(1,)))
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_STEAL_TIME, DATA | 1)[0] == 0


class Child(ThisProcess):
    """A client that calls once and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.tid = self.process.pid

    def schedstat(self, *, own: bool) -> int:
        return super().schedstat(own=own) if own else os.open(f"/proc/{self.tid}/schedstat", os.O_RDONLY)


def test_the_accounts_of_threads_that_have_ended_go() -> None:
    accounts = Accounts()
    table = (ctypes.c_uint64 * (Table.SIZE // 8)).from_address(accounts.address)
    clients = [Child() for _ in range(3)]
    for client in clients:
        accounts.provide(client)
        client.process.communicate()
    assert table[Table.COUNT // 8] == 2
    places = {table[(Table.FIRST + at + Account.TID) // 8] for at in (0, Account.SIZE)}
    assert places == {clients[-1].tid, threading.get_native_id()}
