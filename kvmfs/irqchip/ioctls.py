"""The VM's ioctls on its interrupt controllers and its PIT."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.irqchip import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
    Irqchip,
    PitConfig,
    PitState,
    PitState2,
    ReinjectControl,
)
from kvmfs.abi.limits import KVM_MAX_IRQ_ROUTES
from kvmfs.abi.routing import IrqRouting, IrqRoutingEntry
from kvmfs.irqchip.ioapic import Ioapic
from kvmfs.irqchip.pic import Pic
from kvmfs.irqchip.pit import Pit
from kvmfs.irqchip.routing import check_routes, default_routes
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_array, read_struct

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)


class Chips:
    """The controllers of one VM, once KVM_CREATE_IRQCHIP has made them."""

    def __init__(self) -> None:
        self.pic, self.ioapic = Pic(), Ioapic()
        self.routes = default_routes()
        self.pit: Pit | None = None


@table.ioctl(ioctls.KVM_CREATE_IRQCHIP)
def create_irqchip(vm: Vm, caller: Caller, arg: int) -> None:
    with vm.lock:
        if vm.chips:
            fail(errno.EEXIST)
        if vm.created_vcpus:
            fail(errno.EINVAL)
        vm.set_chips(Chips())


@table.ioctl(ioctls.KVM_GET_IRQCHIP)
def get_irqchip(vm: Vm, caller: Caller, arg: Irqchip) -> None:
    if not vm.chips:
        fail(errno.ENXIO)
    if arg.chip_id in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        arg.chip.pic = vm.chips.pic.get(arg.chip_id)
    elif arg.chip_id == KVM_IRQCHIP_IOAPIC:
        arg.chip.ioapic = vm.chips.ioapic.get()
    else:
        fail(errno.EINVAL)


@table.ioctl(ioctls.KVM_SET_IRQCHIP)
def set_irqchip(vm: Vm, caller: Caller, arg: Irqchip) -> None:
    if not vm.chips:
        fail(errno.ENXIO)
    if arg.chip_id in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        vm.chips.pic.set(arg.chip_id, arg.chip.pic)
    elif arg.chip_id == KVM_IRQCHIP_IOAPIC:
        vm.chips.ioapic.set(arg.chip.ioapic)
    else:
        fail(errno.EINVAL)


@table.ioctl(ioctls.KVM_SET_GSI_ROUTING, raw=True)
def set_gsi_routing(vm: Vm, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, IrqRouting)
    if not vm.chips or header.nr > KVM_MAX_IRQ_ROUTES or header.flags:
        fail(errno.EINVAL)
    entries = read_array(caller, arg + sizeof(IrqRouting), IrqRoutingEntry, header.nr)
    check_routes(entries)
    vm.chips.routes = entries


def _create_pit(vm: Vm, flags: int) -> None:
    with vm.lock:
        if vm.chips and vm.chips.pit:
            fail(errno.EEXIST)
        if not vm.chips:
            fail(errno.ENOENT)
        vm.chips.pit = Pit(flags)


@table.ioctl(ioctls.KVM_CREATE_PIT)
def create_pit(vm: Vm, caller: Caller, arg: int) -> None:
    _create_pit(vm, KVM_PIT_SPEAKER_DUMMY)


@table.ioctl(ioctls.KVM_CREATE_PIT2)
def create_pit2(vm: Vm, caller: Caller, arg: PitConfig) -> None:
    _create_pit(vm, arg.flags)


def _pit(vm: Vm) -> Pit:
    if not vm.chips or not vm.chips.pit:
        fail(errno.ENXIO)
    return vm.chips.pit


@table.ioctl(ioctls.KVM_GET_PIT)
def get_pit(vm: Vm, caller: Caller, arg: PitState) -> None:
    arg.channels = _pit(vm).get().channels


@table.ioctl(ioctls.KVM_SET_PIT)
def set_pit(vm: Vm, caller: Caller, arg: PitState) -> None:
    _pit(vm).set(arg)


@table.ioctl(ioctls.KVM_GET_PIT2)
def get_pit2(vm: Vm, caller: Caller, arg: int) -> PitState2:
    return _pit(vm).get2()


@table.ioctl(ioctls.KVM_SET_PIT2)
def set_pit2(vm: Vm, caller: Caller, arg: PitState2) -> None:
    _pit(vm).set2(arg)


@table.ioctl(ioctls.KVM_REINJECT_CONTROL)
def reinject_control(vm: Vm, caller: Caller, arg: ReinjectControl) -> None:
    _pit(vm).reinject = bool(arg.pit_reinject)
