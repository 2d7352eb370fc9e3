"""KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_SET_VAPIC_ADDR."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.apic import LapicState, VapicAddr
from kvmfs.abi.ioctls import Fd
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_struct

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)


@table.ioctl(ioctls.KVM_GET_LAPIC)
def get_lapic(vcpu: Vcpu, caller: Caller, arg: int) -> LapicState:
    if vcpu.lapic is None:
        fail(errno.EINVAL)
    return vcpu.lapic.get_state(x2apic_format=vcpu.vm.x2apic_format)


@table.ioctl(ioctls.KVM_SET_LAPIC, raw=True)
def set_lapic(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    if vcpu.lapic is None:  # looked at before the argument is read
        fail(errno.EINVAL)
    if not vcpu.lapic.set_state(read_struct(caller, arg, LapicState), x2apic_format=vcpu.vm.x2apic_format):
        fail(errno.EINVAL)


@table.ioctl(ioctls.KVM_SET_VAPIC_ADDR, raw=True)
def set_vapic_addr(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    """Where a patched guest keeps its task priority."""
    if vcpu.lapic is None:
        fail(errno.EINVAL)
    gpa = read_struct(caller, arg, VapicAddr).vapic_addr
    if gpa and not vcpu.vm.memory.overlaps(-1, gpa >> 12, (gpa >> 12) + 1):
        fail(errno.EINVAL)
    vcpu.lapic.vapic = gpa
