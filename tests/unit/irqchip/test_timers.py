"""APIC timer and PIT: what they count, and what they raise."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import pytest

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid_basic import Leaf1Ecx
from kvmfs.abi.irqchip import ReinjectControl
from kvmfs.abi.vm import EnableCap
from kvmfs.irqchip.words import NEVER, Apic, Board
from tests.unit.irqchip.machine import APIC, WAIT, Guest

TSC_DEADLINE = 0x6E0


def write(offset: int, value: int) -> str:
    return f"mov ebx, {APIC + offset:#x}\nmov dword ptr [rbx], {value:#x}\n"


def start(mode: int, count: int, divider: int = 0xB) -> str:
    return write(A.APIC_TDCR, divider) + write(A.APIC_LVTT, 0x41 | mode) + write(A.APIC_TMICT, count)


def test_one_shot() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 2_000_000) + WAIT)  # 2 ms: a count is a ns
    before = time.monotonic_ns()
    assert guest.next_vector() == 0x41
    assert time.monotonic_ns() - before >= 2_000_000
    assert guest.cpus[0].register(A.APIC_TMCCT) == 0


def test_periodic() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_PERIODIC, 1_000_000) + WAIT)
    before = time.monotonic_ns()
    assert [guest.next_vector() for _ in range(4)] == [0x41] * 4
    assert time.monotonic_ns() - before >= 4_000_000
    assert guest.cpus[0].register(A.APIC_TMCCT) > 0


def test_it_interrupts_a_processor_that_is_busy() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 1_000_000) + "sti\n1: jmp 1b")
    assert guest.next_vector() == 0x41


def test_the_divider() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 100_000, divider=0xA) + WAIT)  # by 128
    before = time.monotonic_ns()
    assert guest.next_vector() == 0x41
    assert time.monotonic_ns() - before >= 12_800_000


class SlowBus(Guest):
    """Whose APIC bus has cycles of 10 ns."""

    def call(self, node: Any, row: ioctls.Ioctl, argument: Any = 0) -> int:
        if row is ioctls.KVM_CREATE_VCPU and not self.vm.created_vcpus:
            super().call(self.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X86_APIC_BUS_CYCLES_NS, args=(10,)))
        return super().call(node, row, argument)


def test_bus_cycles() -> None:
    guest = SlowBus(start(A.APIC_LVT_TIMER_ONESHOT, 500_000) + WAIT)
    before = time.monotonic_ns()
    assert guest.next_vector() == 0x41
    assert time.monotonic_ns() - before >= 5_000_000


def test_a_masked_timer_is_silent() -> None:
    guest = Guest(start(A.APIC_LVT_MASKED, 1) + write(A.APIC_TMICT, 1) + "sti\nnop\nout 0x77, al\n")
    guest.next_vector()
    assert guest.cpus[0].requested() == []


def test_a_count_of_0_stops_it() -> None:
    guest = Guest(start(0, 1 << 30) + write(A.APIC_TMICT, 0) + "out 0x77, al\n")
    guest.next_vector()
    assert guest.cpus[0].register(A.APIC_TMCCT) == 0


def deadline_guest(text: str) -> Guest:
    guest = Guest(text)
    cpu = guest.cpus[0].vcpu
    cpu.cpuid.change(Leaf1Ecx.TSC_DEADLINE_TIMER, True)
    cpu.set_cpuid(cpu.cpuid)
    return guest


def test_tsc_deadline() -> None:
    arm = "rdtsc\nshl rdx, 32\nor rax, rdx\nadd rax, 4000000\nmov rdx, rax\nshr rdx, 32\n"
    arm += f"mov ecx, {TSC_DEADLINE}\nwrmsr\n"
    guest = deadline_guest(write(A.APIC_LVTT, 0x42 | A.APIC_LVT_TIMER_TSCDEADLINE) + arm + WAIT)
    assert guest.next_vector() == 0x42
    assert guest.cpus[0].get_msr(TSC_DEADLINE) == 0


def test_a_deadline_that_has_passed() -> None:
    arm = f"mov eax, 1\nxor edx, edx\nmov ecx, {TSC_DEADLINE}\nwrmsr\n"
    guest = deadline_guest(write(A.APIC_LVTT, 0x42 | A.APIC_LVT_TIMER_TSCDEADLINE) + arm + WAIT)
    assert guest.next_vector() == 0x42


def test_the_deadline_is_ignored_in_other_modes() -> None:
    guest = deadline_guest("hlt")
    assert guest.cpus[0].set_msr(TSC_DEADLINE, 1 << 60) == 1
    assert guest.cpus[0].get_msr(TSC_DEADLINE) == 0


def test_a_snapshot_goes_on_counting() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 1 << 31) + "out 0x77, al\n" + WAIT)
    guest.next_vector()
    cpu = guest.cpus[0]
    assert 0 < cpu.register(A.APIC_TMCCT) < 1 << 31
    cpu.set_register(A.APIC_TMCCT, 1_000_000)
    assert guest.next_vector() == 0x41


# Who keeps the time of a processor that sleeps


def sleeping(guest: Guest) -> None:
    """Wait until the first processor's thread keeps its timer."""
    keeps = ctypes.c_uint64.from_address(guest.vcpu.lapic.address + Apic.SLEEPS)
    while not keeps.value:
        time.sleep(0)


def armed_for(guest: Guest) -> int:
    """What the board's timerfd is armed for, NEVER: it is not."""
    return guest.vm.board.block[Board.TIMER_NEXT]


def test_a_sleeper_needs_nobody_for_its_timer() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 1 << 31) + WAIT)
    runs = guest.cpus[0].in_thread(guest.cpus[0].run)
    sleeping(guest)
    while armed_for(guest) != NEVER:
        time.sleep(0)
    guest.cpus[0].stop()
    runs.join()
    assert armed_for(guest) != NEVER  # it sleeps no more


def test_a_sleeper_that_is_woken_gives_its_timer_back() -> None:
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 1 << 31) + "sti\nhlt\n1: jmp 1b")
    vectors: list[int] = []
    runs = guest.cpus[0].in_thread(lambda: vectors.append(guest.next_vector()))
    sleeping(guest)
    guest.message(APIC, 0x50)
    runs.join()
    assert vectors == [0x50]
    assert armed_for(guest) != NEVER
    guest.cpus[0].set_register(A.APIC_TMCCT, 1_000_000)
    assert guest.next_vector() == 0x41


def test_a_sleeper_leaves_the_timers_of_others_to_the_board() -> None:
    """The other processor is busy when its timer fires, after the sleeper's."""
    guest = Guest(start(A.APIC_LVT_TIMER_ONESHOT, 20_000_000) + WAIT, cpus=2)
    guest.cpus[1].start(start(A.APIC_LVT_TIMER_ONESHOT, 40_000_000) + "sti\n1: jmp 1b")
    vectors: list[int] = []
    other = guest.cpus[1].in_thread(lambda: vectors.append(guest.cpus[1].next_vector()))
    assert guest.next_vector() == 0x41
    other.join()
    assert vectors == [0x41]


# PIT


def program(mode: int, count: int, channel: int = 0) -> str:
    control = channel << 6 | 3 << 4 | mode << 1
    bytes_ = f"mov al, {count & 0xFF}\nout {0x40 + channel}, al\nmov al, {count >> 8}\nout {0x40 + channel}, al\n"
    return f"mov al, {control}\nout 0x43, al\n" + bytes_


def test_pit_ticks() -> None:
    guest = Guest(program(2, 1193) + WAIT, pit=0)  # 1 ms
    guest.redirect(0, 0x50)
    before = time.monotonic_ns()
    assert [guest.next_vector() for _ in range(4)] == [0x50] * 4
    assert time.monotonic_ns() - before >= 3_900_000


def test_pit_one_shot() -> None:
    guest = Guest(program(0, 1193) + WAIT, pit=0)
    guest.redirect(0, 0x50)
    assert guest.next_vector() == 0x50


def test_missed_ticks_are_made_up_for() -> None:
    guest = Guest(program(2, 1193) + "out 0x77, al\n" + WAIT, pit=0)
    guest.redirect(0, 0x50)
    guest.next_vector()
    start_ns = time.monotonic_ns()
    while time.monotonic_ns() - start_ns < 20_000_000:
        pass
    before = time.monotonic_ns()
    assert [guest.next_vector() for _ in range(15)] == [0x50] * 15
    assert time.monotonic_ns() - before < 15_000_000  # they were owed


def test_without_reinjection_they_are_not() -> None:
    guest = Guest(program(2, 11932) + "out 0x77, al\n" + WAIT, pit=0)  # 10 ms
    guest.call(guest.vm, ioctls.KVM_REINJECT_CONTROL, ReinjectControl(pit_reinject=0))
    guest.redirect(0, 0x50)
    guest.next_vector()
    start_ns = time.monotonic_ns()
    while time.monotonic_ns() - start_ns < 50_000_000:
        pass
    before = time.monotonic_ns()
    assert [guest.next_vector() for _ in range(3)] == [0x50] * 3
    assert time.monotonic_ns() - before >= 9_000_000


def test_pit_counts_down_and_latches() -> None:
    read = "mov al, 0x80\nout 0x43, al\nin al, 0x42\nmov ah, al\nin al, 0x42\nout 0x77, al\n"
    guest = Guest(program(2, 0xFFFF, channel=2) + read, pit=0)
    assert guest.next_vector() > 0xE0


@pytest.mark.parametrize("value", [0, 1, 2, 3])
def test_speaker_port(value: int) -> None:
    guest = Guest(f"mov al, {value}\nout 0x61, al\nin al, 0x61\nout 0x77, al\n", pit=1)
    assert guest.next_vector() & 3 == value
