"""KVM_GET_LAPIC and KVM_SET_LAPIC."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.apic import LapicState
from kvmfs.abi.ioctls import Fd
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_struct

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)


@table.ioctl(ioctls.KVM_GET_LAPIC)
def get_lapic(vcpu: Vcpu, caller: Caller, arg: int) -> LapicState:
    if vcpu.lapic is None:
        fail(errno.EINVAL)
    vcpu.lapic.cr8 = vcpu.state[S.CR8]  # the guest's own copy
    return vcpu.lapic.get_state()


@table.ioctl(ioctls.KVM_SET_LAPIC, raw=True)
def set_lapic(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    if vcpu.lapic is None:  # looked at before the argument is read
        fail(errno.EINVAL)
    vcpu.lapic.set_state(read_struct(caller, arg, LapicState))
    vcpu.state[S.CR8] = vcpu.lapic.cr8
