"""The VM's ioctls on its interrupt controllers, its PIT and its interrupts."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.irqchip import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
    Irqchip,
    IrqLevel,
    PitConfig,
    PitState,
    PitState2,
    ReinjectControl,
)
from kvmfs.abi.limits import KVM_MAX_IRQ_ROUTES
from kvmfs.abi.routing import KVM_MSI_VALID_DEVID, IrqRouting, IrqRoutingEntry, Msi
from kvmfs.irqchip.chips_state import Chips
from kvmfs.irqchip.routes import build_table, check_routes
from kvmfs.irqchip.words import SOURCE_USERSPACE
from kvmfs.irqchip.words import Board as BoardWords
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_array, read_struct
from kvmfs.kvm.words import IRQCHIP_KERNEL, IRQCHIP_NONE, IRQCHIP_SPLIT
from kvmfs.kvm.words import Vm as Words

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

MAX_NR_RESERVED_IOAPIC_PINS: Final = 4096
LEVEL, STATUS = 1, 2  # chips.set_gsi


@table.ioctl(ioctls.KVM_CREATE_IRQCHIP)
def create_irqchip(vm: Vm, caller: Caller, arg: int) -> None:
    with vm.lock:
        if vm.block[Words.IRQCHIP] != IRQCHIP_NONE:
            fail(errno.EEXIST)
        if vm.created_vcpus:
            fail(errno.EINVAL)
        vm.set_irqchip(IRQCHIP_KERNEL, Chips(vm.native, vm.board))


def split_irqchip(vm: Vm, pins: int) -> None:
    """KVM_CAP_SPLIT_IRQCHIP: the APICs are ours, PIC and I/O APIC the client's."""
    with vm.lock:
        if pins > MAX_NR_RESERVED_IOAPIC_PINS:
            fail(errno.EINVAL)
        if vm.block[Words.IRQCHIP] != IRQCHIP_NONE or vm.created_vcpus:
            fail(errno.EEXIST)
        board = vm.board.block
        board[BoardWords.SPLIT_PINS] = pins
        board[BoardWords.ON_EOI] = vm.native.address("chips_eoi")
        board[BoardWords.ON_SCAN] = vm.native.address("chips_scan")
        vm.set_irqchip(IRQCHIP_SPLIT, None)


@table.ioctl(ioctls.KVM_GET_IRQCHIP)
def get_irqchip(vm: Vm, caller: Caller, arg: Irqchip) -> None:
    if not vm.chips:
        fail(errno.ENXIO)
    if arg.chip_id in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        arg.chip.pic = vm.chips.get_pic(arg.chip_id)
    elif arg.chip_id == KVM_IRQCHIP_IOAPIC:
        arg.chip.ioapic = vm.chips.get_ioapic()
    else:
        fail(errno.EINVAL)


@table.ioctl(ioctls.KVM_SET_IRQCHIP)
def set_irqchip(vm: Vm, caller: Caller, arg: Irqchip) -> None:
    if not vm.chips:
        fail(errno.ENXIO)
    if arg.chip_id in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        vm.chips.set_pic(arg.chip_id, arg.chip.pic)
    elif arg.chip_id == KVM_IRQCHIP_IOAPIC:
        vm.chips.set_ioapic(arg.chip.ioapic)
    else:
        fail(errno.EINVAL)


# Interrupts -----


@table.ioctl(ioctls.KVM_SET_GSI_ROUTING, raw=True)
def set_gsi_routing(vm: Vm, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, IrqRouting)
    kind = vm.block[Words.IRQCHIP]
    if kind == IRQCHIP_NONE or header.nr > KVM_MAX_IRQ_ROUTES or header.flags:
        fail(errno.EINVAL)
    entries = read_array(caller, arg + sizeof(IrqRouting), IrqRoutingEntry, header.nr)
    check_routes(entries, split=kind == IRQCHIP_SPLIT, x2apic_format=vm.x2apic_format)
    if vm.chips:
        vm.chips.route(entries)
    else:
        with vm.board.lock:
            vm.board.publish(BoardWords.ROUTES, build_table(entries))


def _set_line(vm: Vm, arg: IrqLevel, status: int) -> int:
    if vm.block[Words.IRQCHIP] == IRQCHIP_NONE:
        fail(errno.ENXIO)
    level = (LEVEL if arg.level else 0) | status
    return vm.native.call("set_gsi", vm.board.address, SOURCE_USERSPACE, arg.irq, level)


@table.ioctl(ioctls.KVM_IRQ_LINE)
def irq_line(vm: Vm, caller: Caller, arg: IrqLevel) -> None:
    _set_line(vm, arg, 0)


@table.ioctl(ioctls.KVM_IRQ_LINE_STATUS)
def irq_line_status(vm: Vm, caller: Caller, arg: IrqLevel) -> None:
    """Negative: ignored, 0: coalesced, else how many vCPUs it went to."""
    arg.status = _set_line(vm, arg, STATUS)


@table.ioctl(ioctls.KVM_SIGNAL_MSI)
def signal_msi(vm: Vm, caller: Caller, arg: Msi) -> int:
    """kvm_send_userspace_msi: how many vCPUs took it."""
    if vm.block[Words.IRQCHIP] == IRQCHIP_NONE or arg.flags & ~KVM_MSI_VALID_DEVID:
        fail(errno.EINVAL)
    address = arg.address_hi << 32 | arg.address_lo
    reached = vm.native.call("set_message", vm.board.address, address - (address >> 63 << 64), arg.data)
    if reached < 0:
        fail(-reached)
    return reached


# PIT -----


def _create_pit(vm: Vm, flags: int) -> None:
    with vm.lock:
        if vm.chips and vm.chips.has_pit:
            fail(errno.EEXIST)
        if not vm.chips:
            fail(errno.ENOENT)
        vm.chips.create_pit(flags)


@table.ioctl(ioctls.KVM_CREATE_PIT)
def create_pit(vm: Vm, caller: Caller, arg: int) -> None:
    _create_pit(vm, KVM_PIT_SPEAKER_DUMMY)


@table.ioctl(ioctls.KVM_CREATE_PIT2)
def create_pit2(vm: Vm, caller: Caller, arg: PitConfig) -> None:
    _create_pit(vm, arg.flags)


def _with_pit(vm: Vm) -> Chips:
    if not vm.chips or not vm.chips.has_pit:
        fail(errno.ENXIO)
    return vm.chips


@table.ioctl(ioctls.KVM_GET_PIT)
def get_pit(vm: Vm, caller: Caller, arg: PitState) -> None:
    arg.channels = _with_pit(vm).get_pit().channels


@table.ioctl(ioctls.KVM_SET_PIT)
def set_pit(vm: Vm, caller: Caller, arg: PitState) -> None:
    _with_pit(vm).set_pit(arg)


@table.ioctl(ioctls.KVM_GET_PIT2)
def get_pit2(vm: Vm, caller: Caller, arg: int) -> PitState2:
    return _with_pit(vm).get_pit2()


@table.ioctl(ioctls.KVM_SET_PIT2)
def set_pit2(vm: Vm, caller: Caller, arg: PitState2) -> None:
    _with_pit(vm).set_pit2(arg)


@table.ioctl(ioctls.KVM_REINJECT_CONTROL)
def reinject_control(vm: Vm, caller: Caller, arg: ReinjectControl) -> None:
    _with_pit(vm).set_reinject(bool(arg.pit_reinject))
