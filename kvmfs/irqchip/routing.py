"""GSI routing: what KVM_SET_GSI_ROUTING accepts, and the default (virt/kvm/irqchip.c, arch/x86/kvm/irq_comm.c)."""

from __future__ import annotations

import errno
from typing import Final

from kvmfs.abi.irqchip import KVM_IOAPIC_NUM_PINS, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from kvmfs.abi.limits import KVM_MAX_IRQ_ROUTES
from kvmfs.abi.routing import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_MSI_VALID_DEVID,
    IrqRoutingEntry,
    IrqRoutingIrqchip,
    IrqRoutingTarget,
)
from kvmfs.kvm.dispatch import fail

PIC_PINS: Final = 8


def _route(gsi: int, chip: int, pin: int) -> IrqRoutingEntry:
    target = IrqRoutingTarget(irqchip=IrqRoutingIrqchip(irqchip=chip, pin=pin))
    return IrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_IRQCHIP, u=target)


def default_routes() -> list[IrqRoutingEntry]:
    """The first 16 GSIs go to the I/O APIC and a PIC, the others to the I/O APIC alone."""
    routes = []
    for gsi in range(KVM_IOAPIC_NUM_PINS):
        routes.append(_route(gsi, KVM_IRQCHIP_IOAPIC, gsi))
        if gsi < 2 * PIC_PINS:
            chip = KVM_IRQCHIP_PIC_MASTER if gsi < PIC_PINS else KVM_IRQCHIP_PIC_SLAVE
            routes.append(_route(gsi, chip, gsi % PIC_PINS))
    return routes


def check_routes(entries: list[IrqRoutingEntry]) -> None:
    """kvm_set_irq_routing for an in-kernel irqchip. OSError(EINVAL)."""
    if any(entry.gsi >= KVM_MAX_IRQ_ROUTES for entry in entries):
        fail(errno.EINVAL)
    by_gsi: dict[int, list[IrqRoutingEntry]] = {}
    for entry in entries:
        # Device ids are accepted, and ignored.
        if entry.flags & ~(KVM_MSI_VALID_DEVID if entry.type == KVM_IRQ_ROUTING_MSI else 0):
            fail(errno.EINVAL)
        others = by_gsi.setdefault(entry.gsi, [])
        _check(entry, others)
        others.append(entry)


def _check(entry: IrqRoutingEntry, others: list[IrqRoutingEntry]) -> None:
    """setup_routing_entry, kvm_set_routing_entry."""
    for other in others:
        # A GSI may lead to several chips, but to each once, and to nothing else.
        same_chip = entry.type == KVM_IRQ_ROUTING_IRQCHIP and other.u.irqchip.irqchip == entry.u.irqchip.irqchip
        if other.type != KVM_IRQ_ROUTING_IRQCHIP or entry.type != KVM_IRQ_ROUTING_IRQCHIP or same_chip:
            fail(errno.EINVAL)
    if entry.type == KVM_IRQ_ROUTING_IRQCHIP:
        if entry.u.irqchip.pin >= _PINS.get(entry.u.irqchip.irqchip, 0):
            fail(errno.EINVAL)
    elif entry.type != KVM_IRQ_ROUTING_MSI:
        fail(errno.EINVAL)


_PINS: Final = {
    KVM_IRQCHIP_PIC_MASTER: PIC_PINS,
    KVM_IRQCHIP_PIC_SLAVE: PIC_PINS,
    KVM_IRQCHIP_IOAPIC: KVM_IOAPIC_NUM_PINS,
}
