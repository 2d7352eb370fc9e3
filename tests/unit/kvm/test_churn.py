"""Memory that changes under two vCPUs that use it all the time: when the ioctl has returned nothing of the old is left.

Each vCPU goes round a loop on the same page and counts its rounds. A round that was under way when the ioctl returned
may still have read the old page before it, so it is the round after the next that counts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import CreateGuestMemfd, DirtyLog, MemoryAttributes
from kvmfs.kvm.fallocate import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from kvmfs.kvm.words import SERVICE
from tests.unit.kvm.inprocess import CODE, DATA, MMIO, PAGE, STACK, Machine

VCPUS = 2
ROUNDS = 24
PRIVATE = 8
READONLY, LOG = 2, 1
READ = "488b03488907" + "48ff4708" + "ebf4"  # 1: mov rax, [rbx]; mov [rdi], rax; inc qword [rdi+8]; jmp 1b
COUNT = "f048ff03" + "48ff4708" + "ebf6"  # 1: lock inc qword [rbx]; inc qword [rdi+8]; jmp 1b
WRITE = "48890348ff4708" + "ebf7"  # 1: mov [rbx], rax; inc qword [rdi+8]; jmp 1b
ABSENT = 0xABAB_ABAB_ABAB_ABAB  # what reads of MMIO find


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class Guests:
    """The vCPUs of a machine, each in a thread, until the end of `with`. A fault or MMIO exit is answered at once."""

    def __init__(self, code: str, kind: int = 0) -> None:
        self.machine = Machine(code, kind=kind)
        machine = self.machine
        self.vcpus: list[Any] = [machine.vcpu]
        for number in range(1, VCPUS):
            self.vcpus.append(machine.client.nodes[machine.call(machine.vm, ioctls.KVM_CREATE_VCPU, number)])
        for index, vcpu in enumerate(self.vcpus):
            if index:
                machine.set_cpuid(vcpu)
                machine.call(vcpu, ioctls.KVM_SET_SREGS, machine._long_mode())
            regs = machine.regs
            regs.rip, regs.rsp, regs.rflags, regs.rbx, regs.rdi = CODE, STACK, 2, MMIO, DATA + 64 * index
            regs.rax = 0x77
            machine.call(vcpu, ioctls.KVM_SET_REGS, regs)
        self.faults: list[tuple[int, int]] = []  # gpa, flags
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(vcpu,)) for vcpu in self.vcpus]

    def _run(self, vcpu: Any) -> None:
        enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(vcpu.enter)
        while not self._stop.is_set():
            result = enter(vcpu.context)
            if result == SERVICE:
                vcpu.service(self.machine.client)
            elif result == -errno.EFAULT:
                assert vcpu.run.exit_reason == Exit.MEMORY_FAULT
                self.faults.append((vcpu.run.memory_fault.gpa, vcpu.run.memory_fault.flags))
            elif result == 0:
                assert vcpu.run.exit_reason == Exit.MMIO
                if not vcpu.run.mmio.is_write:
                    ctypes.memset(vcpu.run.mmio.data, 0xAB, 8)

    def __enter__(self) -> Guests:
        for thread in self._threads:
            thread.start()
        self.rounds()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for vcpu in self.vcpus:
            self.machine.vm.native.request(vcpu.context, S.REQ_STOP)
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def word(self, gpa: int) -> int:
        return int.from_bytes(self.machine.at(gpa, 8), "little")

    def rounds(self, count: int = 2) -> list[int]:
        """Wait until each vCPU has begun and ended a round, and return what each has read last."""
        counters = [DATA + 64 * index + 8 for index in range(VCPUS)]
        wanted = [self.word(at) + count for at in counters]
        while any(self.word(at) < target for at, target in zip(counters, wanted, strict=True)):
            os.sched_yield()
        return [self.word(DATA + 64 * index) for index in range(VCPUS)]

    def new_page(self, word: int) -> int:
        address = self.machine.client.memory(PAGE)
        ctypes.c_uint64.from_address(address).value = word
        return address

    def set_private(self, private: bool) -> None:
        request = MemoryAttributes(address=MMIO, size=PAGE, attributes=PRIVATE if private else 0)
        self.machine.call(self.machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, request)

    def gmem_slot(self, word: int) -> Any:
        """A slot with a guest_memfd and a shared page with `word`: the guest_memfd."""
        machine = self.machine
        number = machine.call(machine.vm, ioctls.KVM_CREATE_GUEST_MEMFD, CreateGuestMemfd(size=PAGE))
        machine.set_slot(1, MMIO, self.new_page(word), PAGE, flags=4, guest_memfd=number)
        return machine.client.nodes[number]


def test_slots_that_are_created_and_deleted() -> None:
    guests = Guests(READ)
    with guests:
        for number in range(1, ROUNDS):
            guests.machine.set_slot(1, MMIO, guests.new_page(number), PAGE)
            assert guests.rounds() == [number] * VCPUS
            guests.machine.set_slot(1, 0, 0, 0)
            assert guests.rounds() == [ABSENT] * VCPUS


def test_slots_that_move() -> None:
    guests = Guests(READ)
    page = guests.new_page(7)
    guests.machine.set_slot(1, MMIO, page, PAGE)
    with guests:
        for _ in range(ROUNDS):
            guests.machine.set_slot(1, MMIO + PAGE, page, PAGE)
            assert guests.rounds() == [ABSENT] * VCPUS
            guests.machine.set_slot(1, MMIO, page, PAGE)
            assert guests.rounds() == [7] * VCPUS


def test_a_slot_that_becomes_read_only_is_never_written_again() -> None:
    guests = Guests(COUNT)
    page = guests.new_page(0)
    guests.machine.set_slot(1, MMIO, page, PAGE)
    with guests:
        for _ in range(ROUNDS // 2):
            guests.machine.set_slot(1, 0, 0, 0)  # KVM changes READONLY by making the slot anew
            guests.machine.set_slot(1, MMIO, page, PAGE, flags=READONLY)
            before = ctypes.c_uint64.from_address(page).value
            guests.rounds()
            assert ctypes.c_uint64.from_address(page).value == before
            guests.machine.set_slot(1, 0, 0, 0)
            guests.machine.set_slot(1, MMIO, page, PAGE)
            guests.rounds()
            assert ctypes.c_uint64.from_address(page).value > before


def test_dirty_logging_that_is_switched_on_under_writes_misses_none() -> None:
    guests = Guests(WRITE)
    page = guests.new_page(0)
    guests.machine.set_slot(1, MMIO, page, PAGE)
    bitmap = ctypes.c_uint64()
    log = DirtyLog(slot=1, dirty_bitmap=ctypes.addressof(bitmap))
    with guests:
        for _ in range(ROUNDS):
            guests.machine.set_slot(1, MMIO, page, PAGE, flags=LOG)
            for _ in range(3):
                guests.rounds()
                guests.machine.call(guests.machine.vm, ioctls.KVM_GET_DIRTY_LOG, log)
                assert bitmap.value == 1
            guests.machine.set_slot(1, MMIO, page, PAGE)


def test_conversions_under_reads() -> None:
    guests = Guests(READ, kind=1)
    gmem = guests.gmem_slot(1111)
    with guests:
        for _ in range(ROUNDS):
            guests.set_private(True)
            assert guests.rounds() == [0] * VCPUS
            guests.set_private(False)
            assert guests.rounds() == [1111] * VCPUS
    assert gmem.allocated in (0, PAGE)
    assert guests.faults == []


def test_attributes_that_leave_nothing_behind_are_memory_faults_until_they_change() -> None:
    guests = Guests(READ, kind=1)
    guests.machine.set_slot(1, MMIO, guests.new_page(5), PAGE)
    with guests:
        for _ in range(ROUNDS // 2):
            guests.set_private(True)
            faults = len(guests.faults)
            while len(guests.faults) < faults + 4:
                os.sched_yield()
            guests.set_private(False)
            assert guests.rounds() == [5] * VCPUS
    assert set(guests.faults) == {(MMIO, PRIVATE)}


def test_holes_punched_into_private_memory_under_locked_increments() -> None:
    guests = Guests(COUNT, kind=1)
    gmem = guests.gmem_slot(0)
    guests.set_private(True)
    counters = [DATA + 64 * index + 8 for index in range(VCPUS)]
    with guests:
        for _ in range(ROUNDS):
            guests.rounds(50)
            before = sum(map(guests.word, counters))
            gmem.fallocate(None, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, PAGE)
            guests.rounds()
            value = int.from_bytes(read_private(gmem), "little")
            done = sum(map(guests.word, counters)) - before
            # Increments since the hole, and not one that was made before it: each vCPU may have counted one late.
            assert 0 < value <= done + VCPUS


def read_private(gmem: Any) -> bytes:
    return os.pread(gmem._memfd, 8, 0)


def test_slots_come_and_go_while_another_one_is_used() -> None:
    guests = Guests(COUNT)
    page = guests.new_page(0)
    guests.machine.set_slot(1, MMIO, page, PAGE)
    counters = [DATA + 64 * index + 8 for index in range(VCPUS)]
    with guests:
        for number in range(ROUNDS):
            guests.machine.set_slot(2 + number % 3, MMIO + (1 + number % 3) * PAGE, guests.new_page(1), PAGE)
            guests.rounds()
            guests.machine.set_slot(2 + number % 3, 0, 0, 0)
    # Nothing was lost: every increment is there.
    assert 0 <= ctypes.c_uint64.from_address(page).value - sum(map(guests.word, counters)) <= VCPUS
