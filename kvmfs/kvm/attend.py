"""What a vCPU looks at before it enters the guest, and sleeps for: compiled into enter.py's group.

Interrupts come as in kvm_check_and_inject_events: when the processor can take one it is acknowledged and put into
INTR_INJECTED, with which the run loop begins; when it cannot, the run loop is to come back as soon as it can.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import errno
from typing import Final

from kvmfs.abi.layout import offset_of
from kvmfs.abi.run import Run
from kvmfs.abi.vcpu import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE
from kvmfs.irqchip.bus import group as bus
from kvmfs.irqchip.chips import group as chips
from kvmfs.irqchip.delivery import takes_pic_interrupts
from kvmfs.irqchip.lapic import group as lapic
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import (
    atomic_and,
    atomic_xchg,
    call2,
    load8,
    load64,
    rdtsc,
    store8,
    store64,
    syscall,
)
from kvmfs.kvm import words as W
from kvmfs.kvm.counting import count_wait
from kvmfs.kvm.exits import AGAIN, EXIT_IOAPIC_EOI, LEAVE, leave, service
from kvmfs.kvm.platform import call
from kvmfs.kvm.words import Cpu, Vm

SYS_FUTEX: Final = 202
FUTEX_WAIT_BITSET_PRIVATE: Final = 137  # its timeout is a time of CLOCK_MONOTONIC
ANY: Final = 0xFFFF_FFFF  # FUTEX_BITSET_MATCH_ANY
ETIMEDOUT, NSEC = errno.ETIMEDOUT, 1_000_000_000

APIC_REQUESTED, APIC_ACKNOWLEDGE = lapic.slot("apic_requested"), lapic.slot("apic_acknowledge")
TIMER_SLEEP, TIMER_WAKE = bus.slot("timer_sleep"), bus.slot("timer_wake")
PROCESS_NMI = lapic.slot("process_nmi")
PIC_OUTPUT, PIC_READ_VECTOR = chips.slot("pic_output"), chips.slot("pic_read_vector")

RUN_PAGE, RESULT, MP_STATE, APIC, APIC_EVENTS = Cpu.RUN, Cpu.RESULT, Cpu.MP_STATE, Cpu.APIC, Cpu.APIC_EVENTS
NMI_QUEUED, UNHALTED, WAITING, EXTERNAL = Cpu.NMI_QUEUED, Cpu.UNHALTED, Cpu.WAITING, Cpu.EXTERNAL
IOAPIC_EOI, IRQCHIP = Cpu.IOAPIC_EOI, Vm.IRQCHIP
EOI_VECTOR, REQUEST_WINDOW = offset_of(Run, "eoi.vector"), offset_of(Run, "request_interrupt_window")
RUNNABLE, HALTED = KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_HALTED


@compiled
def call_with(s, slot, value):
    return call2(load64(load64(s + S.FUNCTIONS) + 8 * slot), s, value)


@compiled
def attend(s):
    """What other threads and the last exit left: AGAIN to go on, or LEAVE with RESULT."""
    if load64(s + NMI_QUEUED) != 0:
        call(s, PROCESS_NMI)
    if load64(s + APIC_EVENTS) != 0:
        store64(s + RESULT, service(s, W.NEEDS_APIC_EVENTS))
        return LEAVE
    if load64(s + IOAPIC_EOI) != 0:
        store8(load64(s + RUN_PAGE) + EOI_VECTOR, load64(s + IOAPIC_EOI) - 1)
        store64(s + IOAPIC_EOI, 0)
        return leave(s, EXIT_IOAPIC_EOI, 0)
    return AGAIN


# Interrupts -----


@compiled
def pic_in_kernel(s):
    return load64(load64(s + S.VM) + IRQCHIP) == W.IRQCHIP_KERNEL


@compiled
def has_external(s):
    """kvm_cpu_has_extint of a vCPU with an APIC: the PIC, ours or the client's, has an interrupt."""
    if pic_in_kernel(s):
        return call(s, PIC_OUTPUT)
    return 1 if load64(s + EXTERNAL) != 0 and takes_pic_interrupts(s) else 0


@compiled
def accepts_interrupt(s):
    """kvm_cpu_accept_dm_intr: the client may give us an interrupt."""
    if load64(s + APIC) == 0:
        return 1
    return 1 if not pic_in_kernel(s) and load64(s + EXTERNAL) == 0 and takes_pic_interrupts(s) else 0


@compiled
def interrupts_allowed(s):
    """Between instructions, with interrupts enabled, and nothing else on its way."""
    blocked = load64(s + S.INTR_SHADOW) | load64(s + S.INTR_INJECTED) | load64(s + S.NMI_INJECTED)
    blocked |= load64(s + S.EXC_INJECTED) | load64(s + S.EXC_PENDING)
    return 1 if load64(s + S.RFLAGS) & S.IF and blocked == 0 else 0


@compiled
def interruptible(s):
    """kvm_vcpu_ready_for_interrupt_injection."""
    return 1 if interrupts_allowed(s) and accepts_interrupt(s) else 0


@compiled
def inject_interrupt(s):
    """Take an interrupt from PIC or APIC for the run loop to deliver: 1 when one has to wait, else 0."""
    if load64(s + APIC) == 0:
        return 0
    external, vector = has_external(s), call(s, APIC_REQUESTED)
    if (external == 0 and vector == -1) or load64(s + S.DEBUGGER) & S.DEBUG_BLOCK_IRQS:
        return 0
    nmi_first = load64(s + S.NMI_PENDING) != 0 and load64(s + S.NMI_MASKED) == 0
    if nmi_first or interrupts_allowed(s) == 0:
        return 1
    if external == 0:
        call_with(s, APIC_ACKNOWLEDGE, vector)
    elif pic_in_kernel(s):
        vector = call(s, PIC_READ_VECTOR)
    else:
        vector = load64(s + EXTERNAL) - 1
        store64(s + EXTERNAL, 0)
    store64(s + S.INTR_VECTOR, vector)
    store64(s + S.INTR_SOFT, 0)
    store64(s + S.INTR_INJECTED, 1)
    return 1 if has_external(s) or call(s, APIC_REQUESTED) != -1 else 0


# Sleeping -----


@compiled
def wants_window(s):
    """dm_request_for_irq_injection: the client has an interrupt for us, and waits until we can take it."""
    return 1 if load8(load64(s + RUN_PAGE) + REQUEST_WINDOW) and accepts_interrupt(s) else 0


@compiled
def wait(s):
    """Sleep until REQUEST has a reason not to, which the vCPU's own timer may be: its bits."""
    atomic_xchg(s + WAITING, 1)
    deadline, until = call(s, TIMER_SLEEP), 0
    if deadline != 0:
        until = s + S.T0
        store64(until, deadline // NSEC)
        store64(until + 8, deadline % NSEC)
    while True:
        requests = load64(s + S.REQUEST)
        if requests & (S.REQ_STOP | S.REQ_EVENT | S.REQ_KICK):
            break
        if syscall(SYS_FUTEX, s + S.REQUEST, FUTEX_WAIT_BITSET_PRIVATE, requests, until, 0, ANY) == -ETIMEDOUT:
            break
    call(s, TIMER_WAKE)
    atomic_xchg(s + WAITING, 0)
    return load64(s + S.REQUEST)


@compiled
def has_event(s):
    """Whether something ends a HLT: kvm_vcpu_has_events."""
    injected = load64(s + S.EXC_INJECTED) | load64(s + S.NMI_INJECTED) | load64(s + S.INTR_INJECTED)
    if load64(s + S.EXC_PENDING) | load64(s + S.DEBUG_DUE) | load64(s + UNHALTED) | injected:
        return 1
    if wants_window(s) and interruptible(s):
        return 1
    if load64(s + NMI_QUEUED) != 0:
        call(s, PROCESS_NMI)
    if load64(s + S.NMI_PENDING) != 0 and load64(s + S.NMI_MASKED) == 0:
        return 1
    if load64(s + APIC) == 0 or interrupts_allowed(s) == 0:
        return 0
    return 1 if has_external(s) or call(s, APIC_REQUESTED) != -1 else 0


@compiled
def block(s):
    """vcpu_block: 0 when a signal is to be served, else 1 and the vCPU may run, or not."""
    since, halted = 0, load64(s + MP_STATE) == HALTED
    while load64(s + APIC_EVENTS) == 0 and (load64(s + MP_STATE) != HALTED or has_event(s) == 0):
        since = since if since != 0 else rdtsc()
        if wait(s) & S.REQ_STOP:
            atomic_and(s + S.REQUEST, ~S.REQ_STOP)
            if halted:
                count_wait(s, since, 0)
            return 0
        atomic_and(s + S.REQUEST, ~(S.REQ_EVENT | S.REQ_KICK))
    if halted and since != 0:
        count_wait(s, since, 1)
    if load64(s + MP_STATE) == HALTED and load64(s + APIC_EVENTS) == 0:
        store64(s + UNHALTED, 0)
        store64(s + MP_STATE, RUNNABLE)
    return 1
