"""The local APIC, compiled (arch/x86/kvm/lapic.c; SDM vol. 3, ch. 11): what its vCPU and its ioctls call.

delivery    messages: who is meant, what an APIC makes of one
timer       the APIC timer, and the timerfd behind all timers
registers   reads, writes, priorities, EOI
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.abi.msr_bits import MSR_IA32_APICBASE_ENABLE, X2APIC_ENABLE
from kvmfs.abi.msr_index import MSR_IA32_TSC_DEADLINE
from kvmfs.abi.vm import KVM_X86_QUIRK_LAPIC_MMIO_HOLE
from kvmfs.irqchip import registers, timer
from kvmfs.irqchip.delivery import highest_vector, in_x2apic_mode, is_x2apic_register, kick, local_deliver
from kvmfs.irqchip.words import Apic
from kvmfs.jit import state as S
from kvmfs.jit.build import Group
from kvmfs.jit.raw import (
    atomic_and,
    atomic_or,
    atomic_xchg,
    load32,
    load64,
    lshr,
    memset,
    store8,
    store16,
    store32,
    store64,
)
from kvmfs.kvm.words import Cpu, Vm

group = Group("lapic", __name__)

APIC, APIC_EVENTS, NMI_QUEUED, QUIRKS_OFF = Cpu.APIC, Cpu.APIC_EVENTS, Cpu.NMI_QUEUED, Vm.DISABLED_QUIRKS
TIMER_MODE, TSC_DEADLINE = Apic.TIMER_MODE, Apic.TSC_DEADLINE
BASE_MASK: Final = 0xF_FFFF_FFFF_F000
OURS, NOT_OURS, FAULT = 1, -1, 0


# The page -----


@group.add
def apic_holds(s, gpa):
    """Whether the address is in the APIC's page: its offset plus one, 0: no; -1: there, but nothing answers."""
    base = load64(s + S.APIC_BASE)
    if load64(s + APIC) == 0 or gpa & BASE_MASK != base & BASE_MASK:
        return 0
    if base & (X2APIC_ENABLE | MSR_IA32_APICBASE_ENABLE) == MSR_IA32_APICBASE_ENABLE:
        return (gpa & 0xFFF) + 1
    return 0 if load64(load64(s + S.VM) + QUIRKS_OFF) & KVM_X86_QUIRK_LAPIC_MMIO_HOLE else -1


@group.add
def apic_mmio_read(s, gpa, size, buffer):
    """apic_mmio_read: 1, or 0 when the address is not ours."""
    at = apic_holds(s, gpa)
    if at == 0:
        return 0
    if at < 0:
        memset(buffer, 0xFF, size)
        return 1
    offset = at - 1
    if (offset & 15) + size > 4 or offset > 0x3F0:
        return 1
    value = registers.read_register(load64(s + APIC), offset & ~15)
    if value != -1:
        value = lshr(value, 8 * (offset & 15))
        if size == 4:
            store32(buffer, value)
        elif size == 2:
            store16(buffer, value)
        elif size == 1:
            store8(buffer, value)
    return 1


@group.add
def apic_mmio_write(s, gpa, size, buffer):
    """apic_mmio_write: 1, or 0 when the address is not ours."""
    at = apic_holds(s, gpa)
    if at == 0:
        return 0
    offset = at - 1
    if at > 0 and size == 4 and offset & 15 == 0:  # other accesses do nothing (SDM vol. 3, 11.4.1)
        registers.write_register(load64(s + APIC), offset & 0xFF0, load32(buffer))
    return 1


# MSRs -----


@group.add
def apic_rdmsr(s, number, target):
    """OURS with the value at `target`, FAULT, or NOT_OURS."""
    apic = load64(s + APIC)
    if number == MSR_IA32_TSC_DEADLINE:
        store64(target, 0)
        if apic != 0 and load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE:
            store64(target, load64(apic + TSC_DEADLINE))
        return OURS
    if is_x2apic_register(number) == 0:
        return NOT_OURS
    if apic == 0 or not in_x2apic_mode(apic):
        return FAULT
    return registers.read_msr(apic, (number - A.APIC_BASE_MSR) << 4, target)


@group.add
def apic_wrmsr(s, number, value):
    """OURS, FAULT or NOT_OURS."""
    apic = load64(s + APIC)
    if number == MSR_IA32_TSC_DEADLINE:
        if apic != 0 and load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE:
            timer.set_tsc_deadline(apic, value)
        return OURS
    if is_x2apic_register(number) == 0:
        return NOT_OURS
    if apic == 0 or not in_x2apic_mode(apic):
        return FAULT
    return registers.write_msr(apic, (number - A.APIC_BASE_MSR) << 4, value)


# Interrupts -----


@group.add
def apic_requested(s):
    """The vector that the APIC has for the processor now, or -1."""
    apic = load64(s + APIC)
    registers.take_cr8(apic)
    return registers.requested(apic)


@group.add
def apic_acknowledge(s, vector):
    registers.acknowledge(load64(s + APIC), vector)
    return 0


@group.add
def apic_eoi(s):
    """The EOI that a guest gave without writing the register."""
    registers.end_of_interrupt(load64(s + APIC))
    return 0


@group.add
def apic_scan(s):
    """Whether the EOI of the highest vector in service has to be told to anybody: -1 no vector, else 0 or 1."""
    apic = load64(s + APIC)
    registers.scan(apic)
    vector = highest_vector(apic + A.APIC_ISR)
    return -1 if vector == -1 else registers.is_handled(apic, vector)


@group.add
def apic_fire(s, now):
    """Look at the vCPU's timer, for the board's thread or its own: when it fires next, 0: not at all."""
    apic = load64(s + APIC)
    if apic == 0:
        return 0
    timer.fire(apic, now)
    return load64(apic + timer.DEADLINE)


@group.add
def take_apic_events(s):
    """INIT and SIPI that came, APIC_EVENT_*; they are the caller's now."""
    return atomic_xchg(s + APIC_EVENTS, 0)


@group.add
def post_apic_event(s, event):
    return atomic_or(s + APIC_EVENTS, event)


@group.add
def drop_apic_event(s, event):
    return atomic_and(s + APIC_EVENTS, ~event)


@group.add
def process_nmi(s):
    """Move NMIs that other threads sent to those that are pending: one, and a second while none is handled."""
    limit = 1 if load64(s + S.NMI_MASKED) | load64(s + S.NMI_INJECTED) else 2
    pending = load64(s + S.NMI_PENDING) + atomic_xchg(s + NMI_QUEUED, 0)
    store64(s + S.NMI_PENDING, min(pending, limit))
    return 0


# For ioctls -----


@group.add
def apic_local_deliver(s, lvt):
    return local_deliver(load64(s + APIC), lvt)


@group.add
def apic_changed(s):
    """An ID, LDR, DFR or mode was set from outside."""
    registers.changed(load64(s + APIC))
    return 0


@group.add
def apic_set_tpr(s, value):
    registers.set_tpr(load64(s + APIC), value)
    return 0


@group.add
def apic_priority(s):
    """PROCPRI."""
    apic = load64(s + APIC)
    registers.take_cr8(apic)
    return registers.update_ppr(apic)


@group.add
def apic_current_count(s):
    apic = load64(s + APIC)
    if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE:
        return 0
    return timer.current_count(apic)


@group.add
def apic_stop_timer(s):
    timer.cancel(load64(s + APIC))
    return 0


@group.add
def apic_restored(s):
    """kvm_apic_set_state: the registers have been replaced."""
    apic = load64(s + APIC)
    registers.set_tpr(apic, load32(apic + A.APIC_TASKPRI))
    timer.cancel(apic)
    timer.update_mode(apic)
    timer.read_divider(apic)
    timer.start(apic, A.APIC_TMCCT)
    store32(apic + A.APIC_TMCCT, 0)
    registers.changed(apic)
    kick(s)
    return 0
