"""KVM_REGISTER_COALESCED_MMIO and its opposite; the writes themselves are compiled (coalesced_ring.py).

The ring is the VM's, and KVM shows the same page through every vCPU's mapping. Here each vCPU's file has memory of its
own, and the ring is the one that the mapping of the first vCPU shows: VMMs that look at one vCPU's only find it there.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import UNKNOWN, Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.memory import CoalescedMmioZone
from kvmfs.abi.run import KVM_COALESCED_MMIO_PAGE_OFFSET
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.coalesced_ring import Zones
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.words import Vm as Words

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)


class Coalesced:
    """A VM's zones and ring."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._zones = Block(Zones.SIZE)
        self._early = Block(PAGE_SIZE)  # stands for the ring until there is a vCPU; nobody writes then
        self._zones[Zones.RING] = self._early.address
        vm.block[Words.COALESCED] = self._zones.address

    def show_in(self, vcpu: Vcpu) -> None:
        """Put the ring where the first vCPU's client looks for it."""
        self._zones[Zones.RING] = vcpu.page + KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE_SIZE

    def register(self, zone: CoalescedMmioZone) -> None:
        if error := self._vm.native.add_zone(self._zones.address, zone.addr, zone.size, zone.pio):
            fail(-error)

    def unregister(self, zone: CoalescedMmioZone) -> None:
        self._vm.native.remove_zones(self._zones.address, zone.addr, zone.size, zone.pio)


def _check(vm: Vm, zone: CoalescedMmioZone) -> None:
    if not vm.shared_pages:
        fail(UNKNOWN[Fd.VM])
    if zone.pio > 1:
        fail(errno.EINVAL)


@table.ioctl(ioctls.KVM_REGISTER_COALESCED_MMIO)
def register_coalesced_mmio(vm: Vm, caller: Caller, arg: CoalescedMmioZone) -> None:
    _check(vm, arg)
    with vm.slots_lock:
        vm.coalesced.register(arg)


@table.ioctl(ioctls.KVM_UNREGISTER_COALESCED_MMIO)
def unregister_coalesced_mmio(vm: Vm, caller: Caller, arg: CoalescedMmioZone) -> None:
    _check(vm, arg)
    with vm.slots_lock:
        vm.coalesced.unregister(arg)
