"""The local APIC's registers, as the page and as MSRs (kvm_lapic_reg_read, kvm_lapic_reg_write)."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.irqchip import timer
from kvmfs.irqchip.delivery import (
    clear_vector,
    hardware_enabled,
    highest_vector,
    in_x2apic_mode,
    kick,
    send,
    set_vector,
    software_enabled,
    test_vector,
)
from kvmfs.irqchip.words import Apic, Board
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import atomic_add, call1, call3, load32, load64, lshr, shl, store32, store64, zext32

VCPU, BOARD, ID, LVT_COUNT = Apic.VCPU, Apic.BOARD, Apic.ID, Apic.LVT_COUNT
TIMER_MODE, TIMER_MODES, TSC_DEADLINE = Apic.TIMER_MODE, Apic.TIMER_MODES, Apic.TSC_DEADLINE
HANDLED, SCANNED = Apic.HANDLED, Apic.SCANNED
SCAN, ON_SCAN, ON_EOI, IDS_CHANGED = Board.SCAN, Board.ON_SCAN, Board.ON_EOI, Board.IDS_CHANGED

LVT_MASK: Final = A.APIC_LVT_MASKED | 1 << 12 | A.APIC_VECTOR_MASK  # with the delivery status
LINT_MASK: Final = LVT_MASK | A.APIC_MODE_MASK | 1 << 13 | 1 << 14 | A.APIC_LVT_LEVEL_TRIGGER
X2APIC_ICR_RESERVED: Final = 0xFFF0_0000 | 3 << 16 | 1 << 13


def _register_mask(*offsets: int) -> int:
    return sum(1 << (offset >> 4) for offset in offsets)


READABLE: Final = _register_mask(
    A.APIC_ID, A.APIC_LVR, A.APIC_TASKPRI, A.APIC_PROCPRI, A.APIC_LDR, A.APIC_SPIV, A.APIC_ESR, A.APIC_ICR,
    *range(A.APIC_ISR, A.APIC_ESR, 16), A.APIC_LVTT, A.APIC_LVTTHMR, A.APIC_LVTPC, A.APIC_LVT0, A.APIC_LVT1,
    A.APIC_LVTERR, A.APIC_TMICT, A.APIC_TMCCT, A.APIC_TDCR,
)  # fmt: skip
READABLE_CMCI: Final = _register_mask(A.APIC_LVTCMCI)
READABLE_XAPIC: Final = _register_mask(A.APIC_ARBPRI, A.APIC_DFR, A.APIC_ICR2)


# Priorities -----


@compiled
def update_ppr(apic):
    """__apic_update_ppr: the processor priority."""
    task = load32(apic + A.APIC_TASKPRI)
    serviced = max(highest_vector(apic + A.APIC_ISR), 0) & 0xF0
    priority = task & 0xFF if task & 0xF0 >= serviced else serviced
    store32(apic + A.APIC_PROCPRI, priority)
    return priority


@compiled
def requested(apic):
    """kvm_apic_has_interrupt: the vector to deliver, -1: none."""
    if hardware_enabled(apic) == 0:
        return -1
    vector = highest_vector(apic + A.APIC_IRR)
    if vector == -1 or vector & 0xF0 <= update_ppr(apic):
        return -1
    return vector


@compiled
def acknowledge(apic, vector):
    """kvm_apic_ack_interrupt."""
    clear_vector(apic + A.APIC_IRR, vector)
    set_vector(apic + A.APIC_ISR, vector)
    update_ppr(apic)


@compiled
def set_tpr(apic, value):
    store32(apic + A.APIC_TASKPRI, value)
    store64(load64(apic + VCPU) + S.CR8, lshr(value, 4) & 0xF)
    update_ppr(apic)


@compiled
def take_cr8(apic):
    """The guest's own CR8 is the upper half of the TPR."""
    cr8 = load64(load64(apic + VCPU) + S.CR8)
    if lshr(load32(apic + A.APIC_TASKPRI), 4) & 0xF != cr8:
        store32(apic + A.APIC_TASKPRI, shl(cr8, 4))
        update_ppr(apic)


# EOI -----


@compiled
def scan(apic):
    """Bring HANDLED up to date (vcpu_scan_ioapic)."""
    board = load64(apic + BOARD)
    current = load64(board + SCAN)
    if load64(apic + SCANNED) != current and load64(board + ON_SCAN) != 0:
        store64(apic + SCANNED, current)
        call1(load64(board + ON_SCAN), apic)


@compiled
def is_handled(apic, vector):
    """kvm_ioapic_handles_vector."""
    return lshr(load64(apic + HANDLED + 8 * (vector >> 6)), vector & 63) & 1


@compiled
def end_of_interrupt(apic):
    """apic_set_eoi."""
    vector = highest_vector(apic + A.APIC_ISR)
    if vector == -1:
        return
    scan(apic)  # while the vector is still in service
    clear_vector(apic + A.APIC_ISR, vector)
    update_ppr(apic)
    function = load64(load64(apic + BOARD) + ON_EOI)
    if function != 0 and is_handled(apic, vector):
        call3(function, apic, vector, test_vector(apic + A.APIC_TMR, vector))


# Reading -----


@compiled
def read_register(apic, offset):
    """The word at a multiple of 16, or -1: it cannot be read."""
    at = offset >> 4
    readable = lshr(READABLE, at) & 1
    if in_x2apic_mode(apic) == 0:
        readable |= lshr(READABLE_XAPIC, at) & 1
    if load64(apic + LVT_COUNT) == 7:
        readable |= lshr(READABLE_CMCI, at) & 1
    if at > 0x3F or readable == 0:
        return -1
    if offset == A.APIC_ARBPRI:
        return 0
    if offset == A.APIC_TMCCT:
        return 0 if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE else timer.current_count(apic)
    if offset == A.APIC_PROCPRI:
        return update_ppr(apic)
    return load32(apic + offset)


# Writing -----


@compiled
def set_spiv(apic, value):
    """Disabling the APIC by software masks all LVTs."""
    allowed = 0x3FF
    if load32(apic + A.APIC_LVR) & A.APIC_LVR_DIRECTED_EOI:
        allowed |= A.APIC_SPIV_DIRECTED_EOI
    store32(apic + A.APIC_SPIV, value & allowed)
    changed(apic)
    if value & A.APIC_SPIV_APIC_ENABLED == 0:
        for lvt in range(A.APIC_LVTT, A.APIC_LVTERR + 1, 16):
            store32(apic + lvt, load32(apic + lvt) | A.APIC_LVT_MASKED)
        if load64(apic + LVT_COUNT) == 7:
            store32(apic + A.APIC_LVTCMCI, load32(apic + A.APIC_LVTCMCI) | A.APIC_LVT_MASKED)
        timer.update_mode(apic)


@compiled
def changed(apic):
    """What an ID, a mode or a destination register says has changed: look again whose EOIs matter."""
    board = load64(apic + BOARD)
    atomic_add(board + SCAN, 1)
    if in_x2apic_mode(apic) == 0 and load32(apic + A.APIC_ID) >> 24 != load64(apic + ID):
        store64(board + IDS_CHANGED, 1)


@compiled
def set_lvt(apic, offset, value):
    """1, or 0: there is no such LVT."""
    if offset == A.APIC_LVTCMCI and load64(apic + LVT_COUNT) < 7:
        return 0
    if software_enabled(apic) == 0:
        value |= A.APIC_LVT_MASKED
    if offset == A.APIC_LVTT:
        value &= LVT_MASK | load64(apic + TIMER_MODES)
    elif offset == A.APIC_LVT0 or offset == A.APIC_LVT1:
        value &= LINT_MASK
    elif offset == A.APIC_LVTERR:
        value &= LVT_MASK
    else:
        value &= LVT_MASK | A.APIC_MODE_MASK
    store32(apic + offset, value)
    if offset == A.APIC_LVTT:
        timer.update_mode(apic)
    if offset == A.APIC_LVT0:
        kick(load64(apic + VCPU))  # the PIC's line may lead here now
    return 1


@compiled
def write_register(apic, offset, value):
    """kvm_lapic_reg_write of a 32-bit register: 1, or 0 when an MSR access is to fault."""
    x2apic = in_x2apic_mode(apic)
    if offset == A.APIC_TASKPRI:
        set_tpr(apic, value & 0xFF)
    elif offset == A.APIC_EOI:
        end_of_interrupt(apic)
    elif offset == A.APIC_SPIV:
        set_spiv(apic, value)
    elif offset == A.APIC_TMICT:
        if load64(apic + TIMER_MODE) != A.APIC_LVT_TIMER_TSCDEADLINE:
            timer.cancel(apic)
            store32(apic + A.APIC_TMICT, value)
            timer.start(apic, A.APIC_TMICT)
    elif offset == A.APIC_TDCR:
        timer.set_divider(apic, value)
    elif offset == A.APIC_ESR:
        return 0 if x2apic and value != 0 else 1
    elif offset == A.APIC_LVTCMCI or (offset >= A.APIC_LVTT and offset <= A.APIC_LVTERR):
        return set_lvt(apic, offset, value)
    elif x2apic:
        if offset != A.APIC_SELF_IPI or value & ~A.APIC_VECTOR_MASK:
            return 0
        send(load64(apic + BOARD), apic, A.APIC_DEST_SELF | value, 0)
    else:
        return write_xapic_register(apic, offset, value)
    return 1


@compiled
def write_xapic_register(apic, offset, value):
    """Those that x2APIC mode has not, or has otherwise."""
    if offset == A.APIC_ID:
        store32(apic + A.APIC_ID, value & 0xFF000000)
        changed(apic)
    elif offset == A.APIC_LDR:
        store32(apic + A.APIC_LDR, value & 0xFF000000)
        changed(apic)
    elif offset == A.APIC_DFR:
        store32(apic + A.APIC_DFR, value | 0x0FFFFFFF)
        changed(apic)
    elif offset == A.APIC_ICR2:
        store32(apic + A.APIC_ICR2, value & 0xFF000000)
    elif offset == A.APIC_ICR:
        value &= ~A.APIC_ICR_BUSY
        send(load64(apic + BOARD), apic, value, load32(apic + A.APIC_ICR2) >> 24)
        store32(apic + A.APIC_ICR, value)
    else:
        return 0
    return 1


# MSRs -----


@compiled
def read_msr(apic, offset, target):
    """kvm_lapic_msr_read: the value at `target`, and 1, or 0."""
    if offset == A.APIC_ICR:
        store64(target, shl(load32(apic + A.APIC_ICR2), 32) | load32(apic + A.APIC_ICR))
        return 1
    value = read_register(apic, offset)
    if value == -1:
        return 0
    store64(target, value)
    return 1


@compiled
def write_msr(apic, offset, value):
    """kvm_lapic_msr_write: 1 or 0."""
    if offset == A.APIC_ICR:
        if value & X2APIC_ICR_RESERVED:
            return 0
        value &= ~A.APIC_ICR_BUSY
        send(load64(apic + BOARD), apic, zext32(value), lshr(value, 32))
        store32(apic + A.APIC_ICR, value)
        store32(apic + A.APIC_ICR2, lshr(value, 32))
        return 1
    if lshr(value, 32) != 0:
        return 0
    return write_register(apic, offset, value)
