"""KVM_CREATE_DEVICE: the VFIO pseudo-device, the only one that x86 has (virt/kvm/vfio.c).

It tells KVM of the VFIO files that a VM uses. Which files are VFIO's only the module can say, and no process has that
function: so none is, as on a host where vfio is not loaded. That is EINVAL for every file, and a VMM without assigned
devices never gets further than having the device.
"""

from __future__ import annotations

import errno
import itertools
import os
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import s32
from kvmfs.abi.vm import (
    KVM_CREATE_DEVICE_TEST,
    KVM_DEV_TYPE_VFIO,
    KVM_DEV_VFIO_FILE,
    KVM_DEV_VFIO_FILE_ADD,
    KVM_DEV_VFIO_FILE_DEL,
    CreateDevice,
    DeviceAttr,
)
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_struct

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

vm_table: Table[Vm] = Table(Fd.VM)
table: Table[VfioDevice] = Table(Fd.DEVICE)

_numbers = itertools.count()


class VfioDevice:
    """A Node. One a VM at a time."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.name = f"device{next(_numbers)}"

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        if caller.tgid != self.vm.client:
            fail(errno.EIO)
        return table.call(self, caller, cmd, arg)

    def released(self) -> None:
        """kvm_device_release."""
        self.vm.vfio = None


@vm_table.ioctl(ioctls.KVM_CREATE_DEVICE)
def create_device(vm: Vm, caller: Caller, arg: CreateDevice) -> None:
    """kvm_ioctl_create_device."""
    if arg.type != KVM_DEV_TYPE_VFIO:
        fail(errno.ENODEV)
    if arg.flags & KVM_CREATE_DEVICE_TEST:
        return
    with vm.lock:
        if vm.vfio:
            fail(errno.EBUSY)
        vm.vfio = VfioDevice(vm)
        try:
            arg.fd = caller.install(vm.vfio)
        except BaseException:
            vm.vfio = None
            raise


@table.ioctl(ioctls.KVM_SET_DEVICE_ATTR)
def set_attr(device: VfioDevice, caller: Caller, arg: DeviceAttr) -> None:
    """kvm_vfio_set_file."""
    _check(arg)
    os.close(caller.getfd(read_struct(caller, arg.addr, s32).value))
    fail(errno.EINVAL if arg.attr == KVM_DEV_VFIO_FILE_ADD else errno.ENOENT)


@table.ioctl(ioctls.KVM_GET_DEVICE_ATTR, raw=True)
def get_attr(device: VfioDevice, caller: Caller, arg: int) -> None:
    """It has no get_attr."""
    fail(errno.EPERM)


@table.ioctl(ioctls.KVM_HAS_DEVICE_ATTR)
def has_attr(device: VfioDevice, caller: Caller, arg: DeviceAttr) -> None:
    _check(arg)


def _check(arg: DeviceAttr) -> None:
    if arg.group != KVM_DEV_VFIO_FILE or arg.attr not in (KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL):
        fail(errno.ENXIO)
