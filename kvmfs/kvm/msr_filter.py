"""KVM_X86_SET_MSR_FILTER: which MSRs the guest may read and write as far as the client is concerned."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls, msrs
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.msrs import KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, MsrFilterRange
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

READ, WRITE = KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE
X2APIC: Final = range(0x800, 0x900)
"""x2APIC MSRs do not support filtering."""
LONG: Final = 8


@dataclass(frozen=True, slots=True)
class Range:
    numbers: range
    kinds: int
    bitmap: bytes

    def allows(self, number: int) -> bool:
        bit = number - self.numbers.start
        return bool(self.bitmap[bit // 8] >> bit % 8 & 1)


@dataclass(frozen=True, slots=True)
class MsrFilter:
    default_allow: bool = True
    ranges: tuple[Range, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it allows everything."""
        return self.default_allow and not self.ranges

    def allows(self, number: int, kind: int) -> bool:
        """kvm_msr_allowed: the first range that knows the MSR decides. `kind`: READ or WRITE."""
        if number in X2APIC:
            return True
        for entry in self.ranges:
            if number in entry.numbers and entry.kinds & kind:
                return entry.allows(number)
        return self.default_allow


def _read_range(caller: Caller, given: MsrFilterRange) -> Range:
    """kvm_add_msr_filter. OSError(EINVAL, EFAULT)."""
    if given.flags & ~msrs.KVM_MSR_FILTER_RANGE_VALID_MASK or not given.flags:
        fail(errno.EINVAL)
    size = (given.nmsrs + 63) // 64 * LONG
    if size > msrs.KVM_MSR_FILTER_MAX_BITMAP_SIZE:
        fail(errno.EINVAL)
    end = (given.base + given.nmsrs) & 0xFFFF_FFFF  # KVM computes in 32 bits, so one that wraps has nothing in it
    return Range(range(given.base, end), given.flags, caller.read(given.bitmap, size))


@table.ioctl(ioctls.KVM_X86_SET_MSR_FILTER)
def set_msr_filter(vm: Vm, caller: Caller, arg: msrs.MsrFilter) -> None:
    """kvm_vm_ioctl_set_msr_filter."""
    if arg.flags & ~msrs.KVM_MSR_FILTER_VALID_MASK:
        fail(errno.EINVAL)
    given = [entry for entry in arg.ranges if entry.nmsrs]
    default_allow = not arg.flags & msrs.KVM_MSR_FILTER_DEFAULT_DENY
    if not given and not default_allow:
        fail(errno.EINVAL)
    new = MsrFilter(default_allow, tuple(_read_range(caller, entry) for entry in given))
    with vm.lock:
        vm.msr_filter = new
        for vcpu in vm.vcpus.values():
            vcpu.state[S.MSR_EXITS] = not new.is_empty
