"""A vCPU's TSC frequency and offset."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import u64
from kvmfs.abi.vcpu import KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
from kvmfs.abi.vm import DeviceAttr
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_struct
from kvmfs.kvm.tsc import max_khz

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)


@table.ioctl(ioctls.KVM_SET_TSC_KHZ)
def set_tsc_khz(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    host_khz = vcpu.vm.native.host_khz
    khz = arg & 0xFFFF_FFFF
    if khz >= max_khz(host_khz):
        fail(errno.EINVAL)
    vcpu.tsc.set_khz(khz or host_khz)


@table.ioctl(ioctls.KVM_GET_TSC_KHZ)
def get_tsc_khz(vcpu: Vcpu, caller: Caller, arg: int) -> int:
    return vcpu.tsc.khz


def _check(arg: DeviceAttr) -> None:
    if arg.group != KVM_VCPU_TSC_CTRL or arg.attr != KVM_VCPU_TSC_OFFSET:
        fail(errno.ENXIO)


@table.ioctl(ioctls.KVM_HAS_DEVICE_ATTR)
def has_attr(vcpu: Vcpu, caller: Caller, arg: DeviceAttr) -> None:
    _check(arg)


@table.ioctl(ioctls.KVM_GET_DEVICE_ATTR)
def get_attr(vcpu: Vcpu, caller: Caller, arg: DeviceAttr) -> None:
    _check(arg)
    caller.write(arg.addr, bytes(u64(vcpu.tsc.offset)))


@table.ioctl(ioctls.KVM_SET_DEVICE_ATTR)
def set_attr(vcpu: Vcpu, caller: Caller, arg: DeviceAttr) -> None:
    _check(arg)
    vcpu.tsc.set_offset(read_struct(caller, arg.addr, u64).value)
