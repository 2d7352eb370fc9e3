"""kvmclock: KVM_GET_CLOCK and KVM_SET_CLOCK, and the pages from which a guest reads the time (arch/x86/kvm/x86.c).

The clock counts nanoseconds of CLOCK_MONOTONIC_RAW since the VM was made, shifted by KVM_SET_CLOCK. While all vCPUs
have the same TSC (the "master clock"), it is read off the host's TSC from one common snapshot, the same to the
nanosecond for all of them; else each vCPU has a snapshot of its own.

A vCPU's page is written by the thread that runs it: others say that it is due (Cpu.CLOCK_DUE) and kick it.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi import para as P
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.vm import (
    KVM_CLOCK_HOST_TSC,
    KVM_CLOCK_REALTIME,
    KVM_CLOCK_TSC_STABLE,
    ClockData,
)
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.msr_rules import Unsupported, reads, writes
from kvmfs.kvm.tsc import sample
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)
vcpu_table: Table[Vcpu] = Table(Fd.VCPU)

CLOCK_FLAGS: Final = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC
"""KVM_CLOCK_VALID_FLAGS."""
NSEC_PER_SEC: Final = 1_000_000_000
MASK64: Final = (1 << 64) - 1
MASK32: Final = 0xFFFF_FFFF
ADDRESS: Final = MASK64 ^ P.KVM_MSR_ENABLED


def time_scale(scaled_hz: int, base_hz: int) -> tuple[int, int]:
    """kvm_get_time_scale: (shift, multiplier) that turn ticks of base_hz into ticks of scaled_hz."""
    shift = 0
    while base_hz > scaled_hz * 2 or base_hz >> 32:
        base_hz >>= 1
        shift -= 1
    while base_hz <= scaled_hz or scaled_hz >> 32:
        if scaled_hz >> 32 or base_hz >> 31:
            scaled_hz >>= 1
        else:
            base_hz <<= 1
        shift += 1
    return shift, (scaled_hz << 32) // base_hz


def scale(ticks: int, shift: int, multiplier: int) -> int:
    """pvclock_scale_delta."""
    ticks = ticks >> -shift if shift < 0 else ticks << shift & MASK64
    return ticks * multiplier >> 32


def raw_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


class Clock:
    """A VM's."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._tsc, self._ns = sample(vm.native.rdtsc)
        self._offset = -self._ns
        self._scale = time_scale(NSEC_PER_SEC, vm.native.host_khz * 1000)
        self._is_master = False
        self.boot_vcpu_has_old_msr = False
        self.wall_clock = 0  # MSR_KVM_WALL_CLOCK

    def _take(self) -> None:
        """pvclock_update_vm_gtod_copy."""
        self._tsc, self._ns = sample(self._vm.native.rdtsc)
        tscs = {(vcpu.state[S.TSC_OFFSET], vcpu.state[S.TSC_RATIO]) for vcpu in list(self._vm.vcpus.values())}
        self._is_master = len(tscs) == 1 and not self.boot_vcpu_has_old_msr

    def renew(self) -> None:
        """A new common snapshot, for all vCPUs (KVM_REQ_MASTERCLOCK_UPDATE)."""
        with self._lock:
            self._take()
        self.announce()

    def announce(self) -> None:
        """Have every vCPU write its page anew (KVM_REQ_GLOBAL_CLOCK_UPDATE)."""
        for vcpu in list(self._vm.vcpus.values()):
            vcpu.clock.due()

    def snapshot(self) -> tuple[int, int, bool]:
        """For a vCPU's page: (host TSC, nanoseconds at it, whether it is the same for all vCPUs)."""
        with self._lock:
            tsc, ns = (self._tsc, self._ns) if self._is_master else sample(self._vm.native.rdtsc)
            return tsc, ns + self._offset, self._is_master

    def _at(self, host_tsc: int) -> int:
        return self._ns + self._offset + scale(host_tsc - self._tsc, *self._scale)

    def get(self) -> ClockData:
        """__get_kvmclock."""
        with self._lock:
            if not self._is_master:
                return ClockData(clock=raw_ns() + self._offset)
            tsc, realtime = sample(self._vm.native.rdtsc, time.CLOCK_REALTIME)
            return ClockData(clock=self._at(tsc), flags=CLOCK_FLAGS, realtime=realtime, host_tsc=tsc)

    def set(self, data: ClockData) -> None:
        """kvm_vm_ioctl_set_clock."""
        with self._lock:
            self._take()
            value = data.clock
            if data.flags & KVM_CLOCK_REALTIME:
                value += max(0, time.time_ns() - data.realtime)
            self._offset = value - (self._ns if self._is_master else raw_ns())
        self.announce()

    def epoch(self) -> int:
        """Nanoseconds since 1970 at the clock's zero (kvm_get_wall_clock_epoch)."""
        with self._lock:
            if not self._is_master:
                return time.time_ns() - raw_ns() - self._offset
            tsc, realtime = sample(self._vm.native.rdtsc, time.CLOCK_REALTIME)
            return realtime - self._at(tsc)


class VcpuClock:
    """A vCPU's page: `msr` is MSR_KVM_SYSTEM_TIME."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self._stopped = False
        self.msr = 0

    @property
    def is_active(self) -> bool:
        return bool(self.msr & P.KVM_MSR_ENABLED)

    def due(self) -> None:
        """Have the page written before the guest goes on."""
        if self.is_active:
            self._vcpu.state[Cpu.CLOCK_DUE] = 1
            self._vcpu.vm.native.request(self._vcpu.context, S.REQ_KICK)

    def pause(self) -> None:
        """The guest was stopped, as it will find in its page: its watchdogs have no reason to bark. OSError(EINVAL)."""
        if not self.is_active:
            fail(errno.EINVAL)
        self._stopped = True
        self.due()

    def write(self) -> None:
        """kvm_guest_time_update, in the vCPU's own thread or with it at rest."""
        vcpu, state = self._vcpu, self._vcpu.state
        state[Cpu.CLOCK_DUE] = 0
        page = P.PvclockVcpuTimeInfo()
        if not self.is_active or not vcpu.read_guest(self.msr & ADDRESS, page):
            return
        host_tsc, now, is_master = vcpu.vm.clock.snapshot()
        page.version = (page.version + 1 | 1) & MASK32
        page.tsc_timestamp = vcpu.tsc.at(host_tsc)
        page.system_time = now & MASK64
        hertz = (vcpu.vm.native.host_khz * state[S.TSC_RATIO] >> 32) * 1000
        page.tsc_shift, page.tsc_to_system_mul = time_scale(NSEC_PER_SEC, hertz)
        page.flags &= P.PVCLOCK_GUEST_STOPPED
        if is_master:
            page.flags |= P.PVCLOCK_TSC_STABLE_BIT
        if self._stopped:
            page.flags |= P.PVCLOCK_GUEST_STOPPED
            self._stopped = False
        _write_versioned(vcpu, self.msr & ADDRESS, page)


def _write_versioned(vcpu: Vcpu, gpa: int, data: P.PvclockVcpuTimeInfo | P.PvclockWallClock) -> None:
    """Write a struct that begins with an odd version; then the version again, even: now it is whole."""
    version = ctypes.c_uint32(data.version)
    if vcpu.write_guest(gpa, version):
        vcpu.write_guest(gpa, data)
        vcpu.write_guest(gpa, ctypes.c_uint32(version.value + 1))


# MSRs -----

_FEATURE: Final = {
    P.MSR_KVM_WALL_CLOCK: P.KVM_FEATURE_CLOCKSOURCE,
    P.MSR_KVM_SYSTEM_TIME: P.KVM_FEATURE_CLOCKSOURCE,
    P.MSR_KVM_WALL_CLOCK_NEW: P.KVM_FEATURE_CLOCKSOURCE2,
    P.MSR_KVM_SYSTEM_TIME_NEW: P.KVM_FEATURE_CLOCKSOURCE2,
}


def _require_feature(vcpu: Vcpu, number: int) -> None:
    if not vcpu.pv_has(_FEATURE[number]):
        raise Unsupported


@reads(P.MSR_KVM_SYSTEM_TIME, P.MSR_KVM_SYSTEM_TIME_NEW)
def _read_system_time(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_feature(vcpu, number)
    return vcpu.clock.msr


@writes(P.MSR_KVM_SYSTEM_TIME, P.MSR_KVM_SYSTEM_TIME_NEW)
def _write_system_time(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """kvm_write_system_time."""
    _require_feature(vcpu, number)
    clock, is_old = vcpu.vm.clock, number == P.MSR_KVM_SYSTEM_TIME
    vcpu.clock.msr = value
    if vcpu.id == 0 and not host and clock.boot_vcpu_has_old_msr != is_old:
        clock.boot_vcpu_has_old_msr = is_old
        clock.renew()
    else:
        clock.announce()


@reads(P.MSR_KVM_WALL_CLOCK, P.MSR_KVM_WALL_CLOCK_NEW)
def _read_wall_clock(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_feature(vcpu, number)
    return vcpu.vm.clock.wall_clock


@writes(P.MSR_KVM_WALL_CLOCK, P.MSR_KVM_WALL_CLOCK_NEW)
def _write_wall_clock(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """kvm_write_wall_clock: the page is written once, now."""
    _require_feature(vcpu, number)
    vcpu.vm.clock.wall_clock = value
    page = P.PvclockWallClock()
    if value and vcpu.read_guest(value, page):
        seconds, page.nsec = divmod(vcpu.vm.clock.epoch(), NSEC_PER_SEC)
        page.sec = seconds & MASK32
        page.version = (page.version + 1 | 1) & MASK32
        _write_versioned(vcpu, value, page)


# ioctls -----


@table.ioctl(ioctls.KVM_GET_CLOCK)
def get_clock(vm: Vm, caller: Caller, arg: int) -> ClockData:
    return vm.clock.get()


@table.ioctl(ioctls.KVM_SET_CLOCK)
def set_clock(vm: Vm, caller: Caller, arg: ClockData) -> None:
    if arg.flags & ~CLOCK_FLAGS:
        fail(errno.EINVAL)
    vm.clock.set(arg)


@vcpu_table.ioctl(ioctls.KVM_KVMCLOCK_CTRL)
def kvmclock_ctrl(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    vcpu.clock.pause()
