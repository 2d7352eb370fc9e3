"""PIC, I/O APIC, PIT and GSI routing, compiled: what raises and ends interrupts outside of the APICs.

    routing     from a GSI to pins and messages, eventfds that wait for an EOI
    ioapic, pic, pit

Here are their entry points, which take the board's lock. `word` arguments carry two numbers where there are many.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.abi.irqchip import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from kvmfs.abi.routing import KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI
from kvmfs.irqchip import ioapic, pic, pit
from kvmfs.irqchip.delivery import kick, local_deliver, matches, pending_eoi, set_bit, takes_pic_interrupts
from kvmfs.irqchip.lock import begin_read, end_read, spin_lock, spin_unlock, wait_for_readers
from kvmfs.irqchip.routing import (
    MSI_LEVEL,
    MSI_LOGICAL,
    first_route,
    gsi_of,
    is_resampled,
    message_destination,
    next_route,
    notify_resamplers,
    send_message,
)
from kvmfs.irqchip.timer import NSEC, arm, clock
from kvmfs.irqchip.words import ROUTE_GSIS, SOURCE_PIT, SOURCE_RESAMPLE, Apic, Board, Route
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.raw import atomic_add, call4, load8, load32, load64, lshr, store8, store32, store64
from kvmfs.kvm.words import IRQCHIP_SPLIT, Cpu, Vm

group = Group("chips", __name__)

BOARD_OF, VM, FUNCTIONS, LOCK, SCAN, SPLIT_PINS = (
    Vm.BOARD, Board.VM, Board.FUNCTIONS, Board.LOCK, Board.SCAN, Board.SPLIT_PINS,
)  # fmt: skip
ROUTES, PIC_OUTPUT, PIC_WAKE, RETRY, SCRATCH = (
    Board.ROUTES, Board.PIC_OUTPUT, Board.PIC_WAKE, Board.IOAPIC_RETRY, Board.SCRATCH,
)  # fmt: skip
PIT, SPEAKER, REINJECT, PENDING, ACKED = (
    Board.PIT, Board.SPEAKER, Board.PIT_REINJECT, Board.PIT_PENDING, Board.PIT_ACKED,
)  # fmt: skip
APIC_BOARD, APIC_VCPU, HANDLED = Apic.BOARD, Apic.VCPU, Apic.HANDLED
APIC, IOAPIC_EOI, IRQCHIP, VCPUS, VCPU_COUNT = Cpu.APIC, Cpu.IOAPIC_EOI, Vm.IRQCHIP, Vm.VCPUS, Vm.VCPU_COUNT
TYPE, CHIP, PIN = Route.TYPE, Route.CHIP, Route.PIN
LEVEL, STATUS = 1, 2  # set_gsi's level: the line is up; the caller wants to know of coalesced RTC interrupts
STORM_DELAY: Final = NSEC // 100


@compiled
def unlock_pic(board):
    """pic_unlock: wake the processor that the PIC's line leads to."""
    wake = load64(board + PIC_WAKE)
    store64(board + PIC_WAKE, 0)
    spin_unlock(board + LOCK)
    if wake == 0:
        return
    vm = load64(board + VM)
    for index in range(load64(vm + VCPU_COUNT)):
        s = load64(load64(vm + VCPUS) + 8 * index)
        if takes_pic_interrupts(s):
            kick(s)
            return


# Raising -----


@compiled
def set_route(board, route, source, level):
    kind = load64(route + TYPE)
    if kind == KVM_IRQ_ROUTING_MSI:
        if level & LEVEL == 0:
            return -1
        return send_message(board, load64(route + CHIP), load64(route + PIN))
    if kind != KVM_IRQ_ROUTING_IRQCHIP:
        return -1
    spin_lock(board + LOCK)
    if load64(route + CHIP) == KVM_IRQCHIP_IOAPIC:
        result = ioapic.set_pin(board, load64(route + PIN), source, level & LEVEL, level & STATUS)
        spin_unlock(board + LOCK)
    else:
        result = pic.set_pin(board, load64(route + PIN), source, level & LEVEL)
        unlock_pic(board)
    return result


@group.add
def set_gsi(board, source, gsi, level):
    """kvm_set_irq: negative: ignored, 0: coalesced, else how many vCPUs it went to."""
    which = begin_read(board)
    table, result = load64(board + ROUTES), -1
    route = first_route(table, gsi)
    while route != 0:
        reached = set_route(board, route, source, level)
        if reached >= 0:
            result = reached + max(result, 0)
        route = next_route(table, route)
    end_read(board, which)
    return result


@group.add
def set_message(board, address, data):
    """kvm_send_userspace_msi."""
    return send_message(board, address, data)


@compiled
def raise_gsi(board, source, gsi, level):
    """set_gsi through the table, where it calls this."""
    return call4(load64(load64(board + FUNCTIONS) + 8 * SET_GSI), board, source, gsi, level)


SET_GSI: Final = group.slot("set_gsi")


# Ending -----


@compiled
def tick(board):
    """pit_do_work: a pulse on GSI 0, and an NMI for those whose LINT0 makes one of it (watchdogs)."""
    if load64(board + REINJECT):
        if load64(board + ACKED) == 0:
            return
        store64(board + ACKED, 0)
    raise_gsi(board, SOURCE_PIT, 0, LEVEL)
    raise_gsi(board, SOURCE_PIT, 0, 0)
    vm = load64(board + VM)
    for index in range(load64(vm + VCPU_COUNT)):
        apic = load64(load64(load64(vm + VCPUS) + 8 * index) + APIC)
        if apic != 0 and load32(apic + A.APIC_LVT0) & (A.APIC_MODE_MASK | A.APIC_LVT_MASKED) == A.APIC_DM_NMI:
            local_deliver(apic, A.APIC_LVT0)


@group.add
def notify_ack(board, chip, pin, scratch):
    """kvm_notify_acked_irq: the PIT makes up for ticks, level irqfds go down and are told."""
    gsi = gsi_of(load64(board + ROUTES), chip, pin)
    if gsi < 0:
        return 0
    if gsi == 0 and load64(board + PIT) and load64(board + REINJECT):
        spin_lock(board + LOCK)
        store64(board + ACKED, 1)
        owed = max(load64(board + PENDING) - 1, 0)
        store64(board + PENDING, owed)
        spin_unlock(board + LOCK)
        if owed > 0:
            tick(board)
    if is_resampled(board, gsi):
        raise_gsi(board, SOURCE_RESAMPLE, gsi, 0)
        notify_resamplers(board, gsi, scratch)
    return 0


NOTIFY_ACK: Final = group.slot("notify_ack")


@compiled
def acknowledged(board, chip, pin, scratch):
    return call4(load64(load64(board + FUNCTIONS) + 8 * NOTIFY_ACK), board, chip, pin, scratch)


@compiled
def acknowledged_pins(board, pins, scratch):
    """Of the PICs, as a bitmap."""
    for pin in range(16):
        if pins >> pin & 1:
            acknowledged(board, KVM_IRQCHIP_PIC_MASTER if pin < 8 else KVM_IRQCHIP_PIC_SLAVE, pin, scratch)


@group.add
def chips_eoi(apic, vector, is_level):
    """Board.ON_EOI: kvm_ioapic_update_eoi; with a split irqchip the client is told."""
    board, s = load64(apic + APIC_BOARD), load64(apic + APIC_VCPU)
    if load64(load64(board + VM) + IRQCHIP) == IRQCHIP_SPLIT:
        store64(s + IOAPIC_EOI, vector + 1)
        return 0
    spin_lock(board + LOCK)
    ioapic.rtc_eoi(board, apic, vector)
    spin_unlock(board + LOCK)
    directed = load32(apic + A.APIC_SPIV) & A.APIC_SPIV_DIRECTED_EOI
    for pin in range(ioapic.PINS):
        if ioapic.entry_of(board, pin) & 0xFF != vector:
            continue
        acknowledged(board, KVM_IRQCHIP_IOAPIC, pin, s + S.T3)
        if is_level == 0 or directed:
            continue
        spin_lock(board + LOCK)
        if ioapic.end_level(board, pin):
            deadline = clock(s + S.T3) + STORM_DELAY
            store64(board + RETRY, deadline)
            arm(board, deadline)
        spin_unlock(board + LOCK)
    return 0


@group.add
def chips_scan(apic):
    """Board.ON_SCAN: vcpu_scan_ioapic."""
    board = load64(apic + APIC_BOARD)
    for index in range(4):
        store64(apic + HANDLED + 8 * index, 0)
    if load64(load64(board + VM) + IRQCHIP) != IRQCHIP_SPLIT:
        spin_lock(board + LOCK)
        ioapic.scan_entries(board, apic)
        spin_unlock(board + LOCK)
        return 0
    which = begin_read(board)
    table = load64(board + ROUTES)
    if table != 0:
        for gsi in range(min(load64(board + SPLIT_PINS), load64(table + ROUTE_GSIS))):
            route = first_route(table, gsi)
            while route != 0:
                scan_message(board, apic, route)
                route = next_route(table, route)
    end_read(board, which)
    return 0


@compiled
def scan_message(board, apic, route):
    """kvm_scan_ioapic_routes, one."""
    address, data = load64(route + CHIP), load64(route + PIN)
    if load64(route + TYPE) != KVM_IRQ_ROUTING_MSI or data & MSI_LEVEL == 0:
        return
    if matches(apic, 0, 0, message_destination(board, address), address & MSI_LOGICAL) or pending_eoi(
        apic, data & 0xFF
    ):
        set_bit(apic + HANDLED, data & 0xFF)


# The processor -----


@group.add
def pic_output(s):
    """Whether the PIC has an interrupt for this processor."""
    return load64(load64(load64(s + S.VM) + BOARD_OF) + PIC_OUTPUT) if takes_pic_interrupts(s) else 0


@group.add
def pic_read_vector(s):
    """kvm_pic_read_irq."""
    board = load64(load64(s + S.VM) + BOARD_OF)
    spin_lock(board + LOCK)
    answer = pic.read_vector(board)
    unlock_pic(board)
    ended = answer >> 8
    if ended & 0xFF:
        acknowledged(board, KVM_IRQCHIP_PIC_MASTER, (ended & 0xFF) - 1, s + S.T3)
    if ended >> 8:
        acknowledged(board, KVM_IRQCHIP_PIC_SLAVE, (ended >> 8) - 1, s + S.T3)
    return answer & 0xFF


# Ports and pages: 1, or 0 when the address is not ours -----


@compiled
def pic_at(board, port):
    return board + pic.SLAVE if port & 0x80 else board + pic.MASTER


@compiled
def is_pic_port(port, size):
    """The bus finds a device whose range holds all of the access."""
    base = port & ~1
    return 1 if (base == 0x20 or base == 0xA0 or base == 0x4D0) and (port & 1) + size <= 2 else 0


@compiled
def write_pic(s, board, port, value):
    spin_lock(board + LOCK)
    if port & ~1 == 0x4D0:
        chip = board + pic.MASTER + 16 * (port & 1)
        store8(chip + pic.ELCR, value & load8(chip + pic.ELCR_MASK))
        ended = 0
    elif port & 1 == 0:
        ended = pic.write_command(board, pic_at(board, port), value, takes_pic_interrupts(s))
    else:
        chip = pic_at(board, port)
        in_service = load8(chip + pic.INIT_STATE) == 0
        unmasked = pic.write_data(chip, value)
        ended = pic.UPDATE if in_service else 0
        if unmasked & 1 and port == 0x21 and gsi_of(load64(board + ROUTES), KVM_IRQCHIP_PIC_MASTER, 0) == 0:
            pit.reset_reinject(board)
    if ended & 0xFFFF:
        unlock_pic(board)
        acknowledged_pins(board, ended, s + S.T3)
        spin_lock(board + LOCK)
    if ended & pic.UPDATE:
        pic.update(board)
    unlock_pic(board)


@group.add
def chips_port_write(s, port, size, buffer):
    board = load64(load64(s + S.VM) + BOARD_OF)
    if is_pic_port(port, size):
        if size == 1:
            write_pic(s, board, port, load8(buffer))
        return 1
    if load64(board + PIT) == 0:
        return 0
    if port >= 0x40 and port + size <= 0x44:
        spin_lock(board + LOCK)
        pit.write_port(board, port & 3, load8(buffer), s + S.T3)
        spin_unlock(board + LOCK)
        return 1
    if port == 0x61 and load64(board + SPEAKER):
        spin_lock(board + LOCK)
        pit.write_speaker(board, load8(buffer), s + S.T3)
        spin_unlock(board + LOCK)
        return 1
    return 0


@compiled
def read_pic(s, board, port):
    spin_lock(board + LOCK)
    if port & ~1 == 0x4D0:
        answer = load8(board + pic.MASTER + 16 * (port & 1) + pic.ELCR)
    else:
        answer = pic.read_port(board, pic_at(board, port), port & 1)
    ended = answer >> 8
    if ended & 0xFFFF:
        unlock_pic(board)
        acknowledged_pins(board, ended, s + S.T3)
        spin_lock(board + LOCK)
    if ended & pic.UPDATE:
        pic.update(board)
    unlock_pic(board)
    return answer & 0xFF


@group.add
def chips_port_read(s, port, size, buffer):
    board = load64(load64(s + S.VM) + BOARD_OF)
    value = 0
    if is_pic_port(port, size):
        value = read_pic(s, board, port) if size == 1 else 0
    elif load64(board + PIT) == 0:
        return 0
    elif port >= 0x40 and port + size <= 0x44:
        if port == 0x43:
            return 1
        spin_lock(board + LOCK)
        value = pit.read_port(board, port & 3, s + S.T3)
        spin_unlock(board + LOCK)
    elif port == 0x61 and load64(board + SPEAKER):
        spin_lock(board + LOCK)
        value = pit.read_speaker(board, s + S.T3)
        spin_unlock(board + LOCK)
    else:
        return 0
    store8(buffer, value)
    for index in range(1, size):
        store8(buffer + index, 0)
    return 1


@group.add
def ioapic_mmio_read(s, gpa, size, buffer):
    board = load64(load64(s + S.VM) + BOARD_OF)
    offset = gpa - load64(board + ioapic.BASE)
    if offset < 0 or offset + size > ioapic.LENGTH:
        return 0
    spin_lock(board + LOCK)
    value = 0
    if offset == ioapic.SELECT:
        value = load32(board + ioapic.SELECTED)
    elif offset == ioapic.WINDOW:
        value = ioapic.read_window(board)
    spin_unlock(board + LOCK)
    for index in range(size):
        store8(buffer + index, lshr(value, 8 * index))
    return 1


@group.add
def ioapic_mmio_write(s, gpa, size, buffer):
    board = load64(load64(s + S.VM) + BOARD_OF)
    offset = gpa - load64(board + ioapic.BASE)
    if offset < 0 or offset + size > ioapic.LENGTH:
        return 0
    value = 0
    for index in range(min(size, 4)):
        value |= load8(buffer + index) << 8 * index
    if size != 1 and size != 2 and size != 4 and size != 8:
        return 1
    spin_lock(board + LOCK)
    if offset == ioapic.SELECT:
        store32(board + ioapic.SELECTED, value & 0xFF)
    elif offset == ioapic.WINDOW:
        unmasked = ioapic.write_window(board, value, s + S.T3)
        if unmasked != 0 and gsi_of(load64(board + ROUTES), KVM_IRQCHIP_IOAPIC, unmasked - 1) == 0:
            pit.reset_reinject(board)
    spin_unlock(board + LOCK)
    return 1


# The board's thread -----


@compiled
def next_deadline(board):
    """With LOCK held: when the next timer of the chips fires, 0: none does."""
    following, storm = load64(board + pit.DEADLINE), load64(board + RETRY)
    if following == 0 or (storm != 0 and storm < following):
        return storm
    return following


@group.add
def chips_next(board):
    """When the next timer of the chips fires, 0: none does."""
    spin_lock(board + LOCK)
    following = next_deadline(board)
    spin_unlock(board + LOCK)
    return following


@group.add
def chips_fire(board, now):
    """Timers of the chips: when the next one fires, 0: none."""
    spin_lock(board + LOCK)
    fired = pit.due(board, now)
    if fired and load64(board + REINJECT):
        store64(board + PENDING, load64(board + PENDING) + fired)
    if load64(board + RETRY) != 0 and load64(board + RETRY) <= now:
        store64(board + RETRY, 0)
        ioapic.retry(board)
    following = next_deadline(board)
    spin_unlock(board + LOCK)
    if fired:
        tick(board)
    return following


# For ioctls -----


@group.add
def board_lock(board):
    spin_lock(board + LOCK)
    return 0


@group.add
def board_unlock(board):
    unlock_pic(board)
    return 0


@group.add
def board_synchronize(board):
    wait_for_readers(board)
    atomic_add(board + SCAN, 1)
    return 0


@group.add
def pic_restored(board):
    """With the lock."""
    pic.update(board)
    return 0


@group.add
def ioapic_restored(board):
    """With the lock."""
    ioapic.restored(board)
    return 0


@group.add
def pit_load(board, number, count):
    """With the lock. kvm_pit_load_count."""
    pit.load(board, number, count, board + SCRATCH)
    return 0


@group.add
def pit_reset_reinject(board):
    pit.reset_reinject(board)
    return 0
