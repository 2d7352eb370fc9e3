"""The I/O APIC (arch/x86/kvm/ioapic.c, the 82093AA's data sheet). All with the board's lock held."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.irqchip import KVM_IOAPIC_NUM_PINS, KVM_IRQCHIP_IOAPIC, IoapicState
from kvmfs.abi.layout import offset_of
from kvmfs.irqchip.delivery import deliver, matches, pending_eoi, set_bit
from kvmfs.irqchip.routing import change_source, gsi_of, is_resampled, notify_resamplers
from kvmfs.irqchip.words import Apic, Board
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import atomic_add, load32, load64, lshr, shl, store32, store64
from kvmfs.kvm.words import Cpu, Vm

PINS: Final = KVM_IOAPIC_NUM_PINS
RTC_GSI: Final = 8
VERSION: Final = 0x11 | (PINS - 1) << 16
STORM: Final = 10_000  # IOAPIC_SUCCESSIVE_IRQ_MAX_COUNT
SELECT, WINDOW = 0x00, 0x10
LENGTH: Final = 0x100

# Fields of a redirection entry
DELIVERY, LOGICAL, STATUS, REMOTE_IRR, LEVEL, MASKED = 0x700, 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16

VM, SCAN, ROUTES = Board.VM, Board.SCAN, Board.ROUTES
BASE = Board.IOAPIC + offset_of(IoapicState, "base_address")
SELECTED, IDENTITY, IRR, TABLE = (
    Board.IOAPIC + offset_of(IoapicState, f) for f in ("ioregsel", "id", "irr", "redirtbl")
)
DELIVERED, STATES, EOIS = Board.IOAPIC_DELIVERED, Board.IOAPIC_STATES, Board.IOAPIC_EOIS
RTC_PENDING, PIT, PIT_REINJECT = Board.RTC_PENDING, Board.PIT, Board.PIT_REINJECT
RTC_VECTOR, HANDLED = Apic.RTC_VECTOR, Apic.HANDLED
APIC, VCPUS, VCPU_COUNT = Cpu.APIC, Vm.VCPUS, Vm.VCPU_COUNT


@compiled
def entry_of(board, pin):
    return load64(board + TABLE + 8 * pin)


@compiled
def service(board, pin, line_status):
    """ioapic_service: as delivery, and -1 when the entry lets nothing through."""
    entry = entry_of(board, pin)
    if entry & MASKED or (entry & LEVEL and entry & REMOTE_IRR):
        return -1
    if entry & LEVEL == 0:
        store64(board + DELIVERED, load64(board + DELIVERED) | shl(1, pin))
    track = 1 if pin == RTC_GSI and line_status else 0
    reached = deliver(
        board, 0, entry & DELIVERY, entry & 0xFF, lshr(entry, 56), entry & LOGICAL, 1, entry & LEVEL, 0, 0, track
    )
    if track:
        store64(board + RTC_PENDING, max(reached, 0))
    if reached != 0 and entry & LEVEL:
        store64(board + TABLE + 8 * pin, entry_of(board, pin) | REMOTE_IRR)
    return reached


@compiled
def set_line(board, pin, level, line_status):
    """ioapic_set_irq: 0 when coalesced."""
    bit, irr = shl(1, pin), load32(board + IRR)
    if level == 0:
        store32(board + IRR, irr & ~bit)
        return 1
    if pin == RTC_GSI and line_status and load64(board + RTC_PENDING) > 0:
        return 0
    store32(board + IRR, irr | bit)
    if entry_of(board, pin) & LEVEL == 0:
        store64(board + DELIVERED, load64(board + DELIVERED) & ~bit)
        if irr & bit:
            return 0
    return service(board, pin, line_status)


@compiled
def set_pin(board, pin, source, level, line_status):
    """kvm_ioapic_set_irq."""
    return set_line(board, pin, change_source(board + STATES + 8 * pin, source, level), line_status)


# EOI -----


@compiled
def rtc_eoi(board, apic, vector):
    if load64(apic + RTC_VECTOR) == vector + 1:
        store64(apic + RTC_VECTOR, 0)
        store64(board + RTC_PENDING, max(load64(board + RTC_PENDING) - 1, 0))


@compiled
def end_level(board, pin):
    """The EOI of a level interrupt: it comes again if the line is still up. 1 when that has to wait (a storm)."""
    store64(board + TABLE + 8 * pin, entry_of(board, pin) & ~REMOTE_IRR)
    count = board + EOIS + 8 * pin
    if entry_of(board, pin) & MASKED or load32(board + IRR) & shl(1, pin) == 0:
        store64(count, 0)
        return 0
    store64(count, load64(count) + 1)
    if load64(count) == STORM:
        store64(count, 0)
        return 1
    service(board, pin, 0)
    return 0


@compiled
def retry(board):
    """kvm_ioapic_eoi_inject_work."""
    for pin in range(PINS):
        entry = entry_of(board, pin)
        if entry & LEVEL and entry & REMOTE_IRR == 0 and load32(board + IRR) & shl(1, pin):
            service(board, pin, 0)


@compiled
def has_notifier(board, pin):
    """kvm_irq_has_notifier: the PIT's, or an irqfd's."""
    gsi = gsi_of(load64(board + ROUTES), KVM_IRQCHIP_IOAPIC, pin)
    if gsi < 0:
        return 0
    if gsi == 0 and load64(board + PIT) and load64(board + PIT_REINJECT):
        return 1
    return is_resampled(board, gsi)


@compiled
def scan_entries(board, apic):
    """kvm_ioapic_scan_entry: vectors whose EOI must come here."""
    if load64(apic + RTC_VECTOR) != 0:
        set_bit(apic + HANDLED, load64(apic + RTC_VECTOR) - 1)
    for pin in range(PINS):
        entry = entry_of(board, pin)
        if entry & LEVEL or pin == RTC_GSI or has_notifier(board, pin):
            vector = entry & 0xFF
            if matches(apic, 0, 0, lshr(entry, 56), entry & LOGICAL) or pending_eoi(apic, vector):
                set_bit(apic + HANDLED, vector)


# State -----


@compiled
def restore_rtc(board):
    """kvm_rtc_eoi_tracking_restore_all."""
    entry, vm, waiting = entry_of(board, RTC_GSI), load64(board + VM), 0
    for index in range(load64(vm + VCPU_COUNT)):
        apic = load64(load64(load64(vm + VCPUS) + 8 * index) + APIC)
        if apic == 0:
            continue
        store64(apic + RTC_VECTOR, 0)
        if matches(apic, 0, 0, lshr(entry, 56), entry & LOGICAL) and pending_eoi(apic, entry & 0xFF):
            store64(apic + RTC_VECTOR, (entry & 0xFF) + 1)
            waiting += 1
    store64(board + RTC_PENDING, waiting)


@compiled
def restored(board):
    """kvm_set_ioapic: the state has been replaced; what was requested is requested again."""
    irr = load32(board + IRR)
    store32(board + IRR, 0)
    store64(board + DELIVERED, 0)
    store64(board + RTC_PENDING, 0)
    atomic_add(board + SCAN, 1)
    for pin in range(PINS):
        if lshr(irr, pin) & 1:
            set_line(board, pin, 1, 1)
    restore_rtc(board)


# Registers -----


@compiled
def read_window(board):
    select = load32(board + SELECTED)
    if select == 1:
        return VERSION
    if select == 0 or select == 2:
        return (load32(board + IDENTITY) & 0xF) << 24
    pin = (select - 0x10) >> 1
    if pin < 0 or pin >= PINS:
        return 0xFFFFFFFF
    return lshr(entry_of(board, pin), 32 * (select & 1)) & 0xFFFFFFFF


@compiled
def write_entry(board, select, value, scratch):
    """A half of a redirection entry: 1 when that unmasks it, else 0."""
    pin = (select - 0x10) >> 1
    if pin < 0 or pin >= PINS:
        return 0
    old = entry_of(board, pin)
    entry = old & 0xFFFFFFFF | shl(value, 32) if select & 1 else old & ~0xFFFFFFFF | value
    entry = entry & ~(REMOTE_IRR | STATUS) | old & (REMOTE_IRR | STATUS)
    if entry & LEVEL == 0:
        entry &= ~REMOTE_IRR  # how software makes do without an EOI register
    store64(board + TABLE + 8 * pin, entry)
    bit = shl(1, pin)
    if entry & LEVEL and load32(board + IRR) & bit and entry & (MASKED | REMOTE_IRR) == 0:
        # The line may have gone down while the pin was masked: an irqfd can be asked, others get an interrupt.
        gsi = gsi_of(load64(board + ROUTES), KVM_IRQCHIP_IOAPIC, pin)
        if gsi >= 0 and notify_resamplers(board, gsi, scratch):
            store32(board + IRR, load32(board + IRR) & ~bit)
        else:
            service(board, pin, 0)
    atomic_add(board + SCAN, 1)
    return 1 if old & MASKED and entry & MASKED == 0 else 0


@compiled
def write_window(board, value, scratch):
    """The pin plus one that has been unmasked, else 0."""
    select = load32(board + SELECTED)
    if select == 0:
        store32(board + IDENTITY, value >> 24 & 0xF)
    elif select > 2:
        return (select - 0x10 >> 1) + 1 if write_entry(board, select, value, scratch) else 0
    return 0
