"""GSI routing: what KVM_SET_GSI_ROUTING accepts, the default, and the table that compiled code reads.

virt/kvm/irqchip.c, arch/x86/kvm/irq_comm.c.
"""

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
from kvmfs.irqchip.words import ROUTE_CHIP_PINS, ROUTE_CHIPS, ROUTE_FIRST, ROUTE_GSIS, Route
from kvmfs.kvm.block import Block
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


def check_routes(entries: list[IrqRoutingEntry], *, split: bool, x2apic_format: bool) -> None:
    """kvm_set_irq_routing. `split`: there are no pins to lead to. OSError(EINVAL)."""
    if any(entry.gsi >= KVM_MAX_IRQ_ROUTES for entry in entries):
        fail(errno.EINVAL)
    by_gsi: dict[int, list[IrqRoutingEntry]] = {}
    for entry in entries:
        # Device ids are accepted, and ignored.
        if entry.flags & ~(KVM_MSI_VALID_DEVID if entry.type == KVM_IRQ_ROUTING_MSI else 0):
            fail(errno.EINVAL)
        others = by_gsi.setdefault(entry.gsi, [])
        _check(entry, others)
        if split and entry.type == KVM_IRQ_ROUTING_IRQCHIP:
            fail(errno.EINVAL)
        if x2apic_format and entry.type == KVM_IRQ_ROUTING_MSI and entry.u.msi.address_hi & 0xFF:
            fail(errno.EINVAL)
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


def build_table(entries: list[IrqRoutingEntry]) -> Block:
    """What compiled code follows (words.py)."""
    gsis = max((entry.gsi + 1 for entry in entries), default=1)
    records = ROUTE_FIRST + 8 * gsis
    table = Block(records + Route.SIZE * len(entries))
    table[ROUTE_GSIS] = gsis
    for number, entry in enumerate(entries):
        at, first = records + Route.SIZE * number, ROUTE_FIRST + 8 * entry.gsi
        table[at + Route.TYPE], table[at + Route.GSI] = entry.type, entry.gsi
        table[at + Route.NEXT], table[first] = table[first], number + 1
        if entry.type == KVM_IRQ_ROUTING_MSI:
            msi = entry.u.msi
            table[at + Route.CHIP], table[at + Route.PIN] = msi.address_hi << 32 | msi.address_lo, msi.data
            continue
        chip, pin = entry.u.irqchip.irqchip, entry.u.irqchip.pin
        pin += PIC_PINS if chip == KVM_IRQCHIP_PIC_SLAVE else 0
        table[at + Route.CHIP], table[at + Route.PIN] = chip, pin
        table[ROUTE_CHIPS + 8 * (chip * ROUTE_CHIP_PINS + pin)] = entry.gsi + 1
    return table
