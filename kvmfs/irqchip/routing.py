"""From a GSI to pins and messages, and from a pin's EOI back (irq_comm.c, virt/kvm/irqchip.c, virt/kvm/eventfd.c).

None of this is called with the board's lock held, but for notify_resamplers().
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.irqchip.delivery import deliver
from kvmfs.irqchip.lock import begin_read, end_read
from kvmfs.irqchip.words import ROUTE_CHIP_PINS, ROUTE_CHIPS, ROUTE_FIRST, ROUTE_GSIS, Board, Resampler, Route
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import load64, lshr, shl, store64, syscall, ult

ROUTES, RESAMPLERS, X2APIC_FORMAT, SCRATCH = Board.ROUTES, Board.RESAMPLERS, Board.X2APIC_FORMAT, Board.SCRATCH
ROUTE_SIZE, TYPE, CHIP, PIN, NEXT = Route.SIZE, Route.TYPE, Route.CHIP, Route.PIN, Route.NEXT
RESAMPLER_SIZE, RESAMPLER_GSI, RESAMPLER_FD = Resampler.SIZE, Resampler.GSI, Resampler.FD
MSI_LEVEL, MSI_HINT, MSI_LOGICAL = 1 << 15, 1 << 3, 1 << 2
SYS_WRITE: Final = 1
EINVAL: Final = 22


@compiled
def first_route(table, gsi):
    """Address of the GSI's first record, or 0."""
    if table == 0 or ult(gsi, load64(table + ROUTE_GSIS)) == 0:
        return 0
    return route_at(table, load64(table + ROUTE_FIRST + 8 * gsi))


@compiled
def route_at(table, number):
    """Of an index plus one."""
    if number == 0:
        return 0
    return table + ROUTE_FIRST + 8 * load64(table + ROUTE_GSIS) + ROUTE_SIZE * (number - 1)


@compiled
def next_route(table, route):
    return route_at(table, load64(route + NEXT))


@compiled
def gsi_of(table, chip, pin):
    """kvm_irq_map_chip_pin: -1 when nothing leads to the pin."""
    if table == 0:
        return -1
    return load64(table + ROUTE_CHIPS + 8 * (chip * ROUTE_CHIP_PINS + pin)) - 1


@compiled
def message_destination(board, address):
    """x86_msi_msg_get_destid."""
    dest = lshr(address, 12) & 0xFF
    return dest | lshr(address, 32) & 0xFFFFFF00 if load64(board + X2APIC_FORMAT) else dest


@compiled
def send_message(board, address, data):
    """kvm_set_msi: how many took it, -1: nobody; -EINVAL."""
    if load64(board + X2APIC_FORMAT) and lshr(address, 32) & 0xFF:
        return -EINVAL
    dest = message_destination(board, address)
    logical, hint = address & MSI_LOGICAL, address & MSI_HINT
    return deliver(board, 0, data & 0x700, data & 0xFF, dest, logical, 1, data & MSI_LEVEL, 0, hint, 0)


# Eventfds -----


@compiled
def signal(fd, scratch):
    """eventfd_signal."""
    store64(scratch, 1)
    syscall(SYS_WRITE, fd, scratch, 8, 0, 0, 0)


@compiled
def is_resampled(board, gsi):
    """Whether an eventfd waits for the GSI's EOI."""
    table = load64(board + RESAMPLERS)
    if table == 0:
        return 0
    for index in range(load64(table)):
        if load64(table + 8 + RESAMPLER_SIZE * index + RESAMPLER_GSI) == gsi:
            return 1
    return 0


@compiled
def notify_resamplers(board, gsi, scratch):
    """Tell those who wait for it of the GSI's EOI: 1, or 0 when there are none."""
    which = begin_read(board)
    table, found = load64(board + RESAMPLERS), 0
    if table != 0:
        for index in range(load64(table)):
            record = table + 8 + RESAMPLER_SIZE * index
            if load64(record + RESAMPLER_GSI) == gsi:
                signal(load64(record + RESAMPLER_FD), scratch)
                found = 1
    end_read(board, which)
    return found


@compiled
def change_source(word, source, level):
    """__kvm_irq_line_state: a pin is up while one of its sources holds it up."""
    states = load64(word) & ~shl(1, source) | shl(1 if level else 0, source)
    store64(word, states)
    return 1 if states != 0 else 0
