"""kvmclock, as a guest reads it from its page and a client through KVM_GET_CLOCK and KVM_SET_CLOCK."""

from __future__ import annotations

import ctypes
import errno
import time

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi import para as P
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.msrs import MsrEntry, Msrs
from kvmfs.abi.vm import KVM_CLOCK_REALTIME, ClockData, EnableCap
from kvmfs.kvm.clock import CLOCK_FLAGS, scale, time_scale
from tests.unit.kvm.inprocess import DATA, Machine

WRMSR, HLT = "0f30", "f4"
SECOND = 1_000_000_000


def msrs(machine: Machine, row: ioctls.Ioctl, number: int, value: int = 0) -> tuple[int, int]:
    """KVM_SET_MSRS or KVM_GET_MSRS of one: (result, value)."""
    argument = ctypes.create_string_buffer(bytes(Msrs(nmsrs=1)) + bytes(MsrEntry(index=number, data=value)))
    result = machine.vcpu.ioctl(machine.client, row.number, ctypes.addressof(argument))
    return result, MsrEntry.from_buffer_copy(argument, ctypes.sizeof(Msrs)).data


def wrmsr(machine: Machine, number: int, value: int) -> None:
    """By the guest, which then halts."""
    machine.set_regs(rcx=number, rax=value & 0xFFFF_FFFF, rdx=value >> 32)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT


def clock(machine: Machine) -> ClockData:
    data = ClockData()
    machine.call(machine.vm, ioctls.KVM_GET_CLOCK, data)
    return data


def page(machine: Machine) -> P.PvclockVcpuTimeInfo:
    return P.PvclockVcpuTimeInfo.from_buffer_copy(machine.at(DATA, 32))


def guest_time(machine: Machine) -> int:
    """What a guest would make of its page now."""
    read = page(machine)
    assert read.version % 2 == 0
    ticks = machine.vcpu.tsc.now() - read.tsc_timestamp
    return int(read.system_time) + scale(ticks, read.tsc_shift, read.tsc_to_system_mul)


@pytest.mark.parametrize("hertz", [1_000_000, 999_999_000, 2_445_406_000, 5_000_000_000])
def test_ticks_are_scaled_to_nanoseconds(hertz: int) -> None:
    shift, multiplier = time_scale(SECOND, hertz)
    assert multiplier < 1 << 32
    assert scale(hertz * 10, shift, multiplier) == pytest.approx(10 * SECOND, rel=1e-8)


def test_the_guests_page_tells_the_clients_time() -> None:
    machine = Machine(WRMSR + HLT)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME_NEW, DATA | 1)
    assert page(machine).flags == P.PVCLOCK_TSC_STABLE_BIT
    before, now, after = clock(machine).clock, guest_time(machine), clock(machine).clock
    assert before <= now <= after


def test_the_clock_is_set_for_running_guests_too() -> None:
    machine = Machine(WRMSR + HLT + HLT)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME_NEW, DATA | 1)
    version = page(machine).version
    machine.call(machine.vm, ioctls.KVM_SET_CLOCK, ClockData(clock=100 * SECOND, realtime=time.time_ns()))
    assert 100 * SECOND <= clock(machine).clock < 101 * SECOND
    machine.run()
    assert page(machine).version == version + 2
    assert 100 * SECOND <= guest_time(machine) < 101 * SECOND


def test_time_that_a_migration_took_is_added() -> None:
    machine = Machine(HLT)
    then = time.time_ns() - 50 * SECOND
    machine.call(machine.vm, ioctls.KVM_SET_CLOCK, ClockData(clock=SECOND, flags=KVM_CLOCK_REALTIME, realtime=then))
    assert 51 * SECOND <= clock(machine).clock < 52 * SECOND


def test_flags() -> None:
    machine = Machine(HLT)
    assert clock(machine).flags == CLOCK_FLAGS
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}"):
        machine.call(machine.vm, ioctls.KVM_SET_CLOCK, ClockData(flags=1))


def test_a_boot_cpu_with_the_old_clock_has_no_stable_one() -> None:
    machine = Machine(WRMSR + HLT)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME, DATA | 1)
    assert (page(machine).flags, clock(machine).flags) == (0, 0)
    before, now, after = clock(machine).clock, guest_time(machine), clock(machine).clock
    assert before - 100_000 < now < after + 100_000


def test_a_tsc_of_its_own_shows_in_the_page() -> None:
    machine = Machine(WRMSR + HLT + HLT)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME_NEW, DATA | 1)
    machine.vcpu.tsc.adjust(1 << 40)
    machine.run()
    before, now, after = clock(machine).clock, guest_time(machine), clock(machine).clock
    assert before <= now <= after


def test_a_guest_that_was_paused_is_told() -> None:
    machine = Machine(WRMSR + HLT + HLT)
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}"):
        machine.call(machine.vcpu, ioctls.KVM_KVMCLOCK_CTRL)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME_NEW, DATA | 1)
    machine.call(machine.vcpu, ioctls.KVM_KVMCLOCK_CTRL)
    machine.run()
    assert page(machine).flags & P.PVCLOCK_GUEST_STOPPED


def test_wall_clock() -> None:
    machine = Machine(WRMSR + HLT)
    wrmsr(machine, P.MSR_KVM_WALL_CLOCK_NEW, DATA)
    wall = P.PvclockWallClock.from_buffer_copy(machine.at(DATA, 12))
    assert wall.version % 2 == 0
    assert wall.sec * SECOND + wall.nsec + clock(machine).clock == pytest.approx(time.time_ns(), abs=SECOND // 100)
    assert msrs(machine, ioctls.KVM_GET_MSRS, P.MSR_KVM_WALL_CLOCK) == (1, DATA)


def test_msrs_are_the_clients_to_save_and_restore() -> None:
    machine = Machine(HLT)
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_SYSTEM_TIME, DATA | 1)[0] == 1
    assert msrs(machine, ioctls.KVM_GET_MSRS, P.MSR_KVM_SYSTEM_TIME_NEW) == (1, DATA | 1)
    machine.run()
    assert page(machine).flags == P.PVCLOCK_TSC_STABLE_BIT  # it was not the guest who wrote the old one


def test_features_that_the_guest_is_not_told_of_can_be_hidden() -> None:
    machine = Machine(HLT)
    for entry in machine.vcpu.cpuid.entries:
        if entry.function == P.KVM_CPUID_FEATURES:
            entry.eax &= ~(1 << P.KVM_FEATURE_CLOCKSOURCE)
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_SYSTEM_TIME, DATA | 1)[0] == 1
    machine.call(machine.vcpu, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.ENFORCE_PV_FEATURE_CPUID, args=(1,)))
    assert msrs(machine, ioctls.KVM_GET_MSRS, P.MSR_KVM_SYSTEM_TIME) == (1, 0)  # listed MSRs read as 0 for the client
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_SYSTEM_TIME, DATA | 1)[0] == 0
    assert msrs(machine, ioctls.KVM_SET_MSRS, P.MSR_KVM_SYSTEM_TIME_NEW, DATA | 1)[0] == 1


def test_an_address_without_memory_is_not_written() -> None:
    machine = Machine(WRMSR + HLT)
    wrmsr(machine, P.MSR_KVM_SYSTEM_TIME_NEW, 1 << 40 | 1)  # nor does the guest find out
