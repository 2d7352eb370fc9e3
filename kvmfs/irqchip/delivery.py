"""Interrupt messages: who is meant, and what an APIC makes of one (lapic.c, kvm_irq_delivery_to_apic)."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.abi.msr_bits import MSR_IA32_APICBASE_ENABLE, X2APIC_ENABLE
from kvmfs.irqchip.words import Apic, Board
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import (
    atomic_add,
    atomic_and,
    atomic_or,
    clz,
    load32,
    load64,
    lshr,
    shl,
    store64,
    syscall,
    urem,
)
from kvmfs.kvm.words import APIC_EVENT_INIT, APIC_EVENT_SIPI, Cpu, Vm

SYS_FUTEX: Final = 202
FUTEX_WAKE_PRIVATE: Final = 129

VCPU, BOARD, ID, SIPI_VECTOR, RTC_VECTOR = Apic.VCPU, Apic.BOARD, Apic.ID, Apic.SIPI_VECTOR, Apic.RTC_VECTOR
VM, BY_ID, IDS_CHANGED, BROADCAST_QUIRK_OFF = Board.VM, Board.BY_ID, Board.IDS_CHANGED, Board.BROADCAST_QUIRK_OFF
APIC, WAITING, NMI_QUEUED, UNHALTED, APIC_EVENTS = Cpu.APIC, Cpu.WAITING, Cpu.NMI_QUEUED, Cpu.UNHALTED, Cpu.APIC_EVENTS
VCPUS, VCPU_COUNT = Vm.VCPUS, Vm.VCPU_COUNT
BY_ID_SIZE: Final = 4096
X2APIC: Final = X2APIC_ENABLE | MSR_IA32_APICBASE_ENABLE


@compiled
def kick(s):
    """kvm_vcpu_kick: the vCPU looks at its events before it executes another block."""
    atomic_or(s + S.REQUEST, S.REQ_KICK)
    if load64(s + WAITING) != 0:
        syscall(SYS_FUTEX, s + S.REQUEST, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)


# State of an APIC -----


@compiled
def hardware_enabled(apic):
    """kvm_apic_hw_enabled."""
    return load64(load64(apic + VCPU) + S.APIC_BASE) & MSR_IA32_APICBASE_ENABLE


@compiled
def software_enabled(apic):
    return load32(apic + A.APIC_SPIV) & A.APIC_SPIV_APIC_ENABLED


@compiled
def in_x2apic_mode(apic):
    return load64(load64(apic + VCPU) + S.APIC_BASE) & X2APIC == X2APIC


@compiled
def vector_register(vector):
    """Offset of the 32 vectors among which this one is, from ISR, TMR or IRR."""
    return vector >> 5 << 4


@compiled
def test_vector(bitmap, vector):
    return load32(bitmap + vector_register(vector)) >> (vector & 31) & 1


@compiled
def set_vector(bitmap, vector):
    atomic_or(bitmap + vector_register(vector), 1 << (vector & 31))


@compiled
def clear_vector(bitmap, vector):
    atomic_and(bitmap + vector_register(vector), ~(1 << (vector & 31)))


@compiled
def highest_vector(bitmap):
    """-1: none."""
    for index in range(7, -1, -1):
        word = load32(bitmap + 16 * index)
        if word != 0:
            return 32 * index + 63 - clz(word)
    return -1


@compiled
def set_bit(words, number):
    """In a bitmap of 64-bit words."""
    word = words + 8 * (number >> 6)
    store64(word, load64(word) | shl(1, number & 63))


@compiled
def pending_eoi(apic, vector):
    """kvm_apic_pending_eoi."""
    return test_vector(apic + A.APIC_ISR, vector) | test_vector(apic + A.APIC_IRR, vector)


# Who is meant -----


@compiled
def matches_physical(apic, dest):
    if dest == (A.X2APIC_BROADCAST if in_x2apic_mode(apic) else A.APIC_BROADCAST):
        return 1
    if in_x2apic_mode(apic) or dest > 0xFF:  # an ID that no xAPIC has names the vCPU whatever its mode
        return 1 if dest == load64(apic + ID) else 0
    return 1 if dest == load32(apic + A.APIC_ID) >> 24 else 0


@compiled
def matches_logical(apic, dest):
    logical = load32(apic + A.APIC_LDR)
    if in_x2apic_mode(apic):
        if dest == A.X2APIC_BROADCAST:
            return 1
        return 1 if logical >> 16 == dest >> 16 and logical & dest & 0xFFFF else 0
    if dest == A.APIC_BROADCAST:
        return 1
    logical = logical >> 24
    model = load32(apic + A.APIC_DFR)
    if model == A.APIC_DFR_FLAT:
        return 1 if logical & dest else 0
    if model == A.APIC_DFR_CLUSTER:
        return 1 if logical >> 4 == dest >> 4 and logical & dest & 0xF else 0
    return 0


@compiled
def matches(apic, source, shorthand, dest, is_logical):
    """kvm_apic_match_dest; `source`: the APIC that sends, 0: a device does."""
    if shorthand == A.APIC_DEST_SELF:
        return 1 if apic == source else 0
    if shorthand == A.APIC_DEST_ALLINC:
        return 1
    if shorthand == A.APIC_DEST_ALLBUT:
        return 1 if apic != source else 0
    quirk = load64(load64(apic + BOARD) + BROADCAST_QUIRK_OFF) == 0
    if source == 0 and dest == A.APIC_BROADCAST and in_x2apic_mode(apic) and quirk:
        dest = A.X2APIC_BROADCAST
    return matches_logical(apic, dest) if is_logical else matches_physical(apic, dest)


# What becomes of it -----


@compiled
def accept(apic, mode, vector, level, is_level, track):
    """__apic_accept_irq: 1, or 0 when it is discarded. `track`: note whose EOI the RTC waits for."""
    s = load64(apic + VCPU)
    if mode == A.APIC_DM_FIXED or mode == A.APIC_DM_LOWEST:
        if (is_level and level == 0) or hardware_enabled(apic) == 0 or software_enabled(apic) == 0:
            return 0
        if track:
            store64(apic + RTC_VECTOR, vector + 1)
        if test_vector(apic + A.APIC_TMR, vector) != (1 if is_level else 0):
            if is_level:
                set_vector(apic + A.APIC_TMR, vector)
            else:
                clear_vector(apic + A.APIC_TMR, vector)
        set_vector(apic + A.APIC_IRR, vector)
    elif mode == A.APIC_DM_REMRD:
        store64(s + UNHALTED, 1)
    elif mode == A.APIC_DM_NMI:
        atomic_add(s + NMI_QUEUED, 1)
    elif mode == A.APIC_DM_INIT:
        if is_level and level == 0:  # INIT de-assert
            return 0
        before = atomic_or(s + APIC_EVENTS, APIC_EVENT_INIT)
        if before & APIC_EVENT_SIPI:
            atomic_and(s + APIC_EVENTS, ~APIC_EVENT_SIPI)
    elif mode == A.APIC_DM_STARTUP:
        store64(apic + SIPI_VECTOR, vector)
        atomic_or(s + APIC_EVENTS, APIC_EVENT_SIPI)
    else:  # SMI: there is no SMM; ExtINT comes from the PIC's line
        return 0
    kick(s)
    return 1


@compiled
def one_target(board, dest):
    """The only APIC that a physical destination can mean, or 0: it has to be looked for."""
    if load64(board + IDS_CHANGED) or dest == A.APIC_BROADCAST or dest >= BY_ID_SIZE:
        return 0
    s = load64(load64(board + BY_ID) + 8 * dest)
    return load64(s + APIC) if s != 0 else 0


@compiled
def candidate(vm, index, source, shorthand, dest, is_logical):
    """The vCPU's APIC if it is there and meant, else 0."""
    apic = load64(load64(load64(vm + VCPUS) + 8 * index) + APIC)
    if apic == 0 or hardware_enabled(apic) == 0:
        return 0
    return apic if matches(apic, source, shorthand, dest, is_logical) else 0


@compiled
def deliver_lowest(board, source, mode, vector, dest, is_logical, level, is_level, shorthand, track):
    """To one of those that are meant, by hashing the vector (kvm_vector_to_index)."""
    vm = load64(board + VM)
    count = load64(vm + VCPU_COUNT)
    meant = 0
    for index in range(count):
        apic = candidate(vm, index, source, shorthand, dest, is_logical)
        if apic != 0 and software_enabled(apic):
            meant += 1
    if meant == 0:
        return -1 if shorthand != A.APIC_DEST_NOSHORT else 0
    left = urem(vector, meant)
    for index in range(count):
        apic = candidate(vm, index, source, shorthand, dest, is_logical)
        if apic != 0 and software_enabled(apic):
            if left == 0:
                return accept(apic, mode, vector, level, is_level, track)
            left -= 1
    return -1


@compiled
def deliver(board, source, mode, vector, dest, is_logical, level, is_level, shorthand, hint, track):
    """kvm_irq_delivery_to_apic: how many accepted it, or -1 when a shorthand meant nobody. `hint`: one is enough."""
    if shorthand == A.APIC_DEST_SELF:
        return accept(source, mode, vector, level, is_level, track)
    if is_logical == 0 and shorthand == A.APIC_DEST_NOSHORT:
        apic = one_target(board, dest)
        if apic != 0:
            if hardware_enabled(apic) == 0 or matches_physical(apic, dest) == 0:
                return 0
            return accept(apic, mode, vector, level, is_level, track)
        if dest == A.APIC_BROADCAST and (mode == A.APIC_DM_LOWEST or hint):
            mode = A.APIC_DM_FIXED
    if mode == A.APIC_DM_LOWEST or hint:
        return deliver_lowest(board, source, mode, vector, dest, is_logical, level, is_level, shorthand, track)
    vm = load64(board + VM)
    reached = -1 if shorthand != A.APIC_DEST_NOSHORT else 0
    for index in range(load64(vm + VCPU_COUNT)):
        apic = candidate(vm, index, source, shorthand, dest, is_logical)
        if apic != 0:
            reached = max(reached, 0) + accept(apic, mode, vector, level, is_level, track)
    return reached


@compiled
def send(board, source, low, dest):
    """kvm_apic_send_ipi: an ICR's low half."""
    mode, is_level = low & A.APIC_MODE_MASK, low & A.APIC_INT_LEVELTRIG
    level = 1 if low & A.APIC_INT_ASSERT else 0
    logical = low & A.APIC_DEST_LOGICAL
    return deliver(board, source, mode, low & 0xFF, dest, logical, level, is_level, low & A.APIC_SHORT_MASK, 0, 0)


@compiled
def local_deliver(apic, lvt):
    """kvm_apic_local_deliver: an LVT's interrupt."""
    register = load32(apic + lvt)
    if hardware_enabled(apic) == 0 or register & A.APIC_LVT_MASKED:
        return 0
    mode, is_level = register & A.APIC_MODE_MASK, register & A.APIC_LVT_LEVEL_TRIGGER
    return accept(apic, mode, register & A.APIC_VECTOR_MASK, 1, is_level, 0)


@compiled
def takes_pic_interrupts(s):
    """kvm_apic_accept_pic_intr: the PIC's line gets to the processor, by LINT0 or past a disabled APIC."""
    apic = load64(s + APIC)
    if apic == 0:
        return 0
    if hardware_enabled(apic) == 0:
        return 1
    lint0 = load32(apic + A.APIC_LVT0)
    return 1 if lint0 & (A.APIC_LVT_MASKED | A.APIC_MODE_MASK) == A.APIC_DM_EXTINT else 0


@compiled
def is_x2apic_register(number):
    """Of an MSR."""
    return 1 if lshr(number - A.APIC_BASE_MSR, 8) == 0 else 0
