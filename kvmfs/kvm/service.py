"""What compiled KVM_RUN comes back to Python for: see words.NEEDS_*.

After each the worker calls enter() again, which goes on where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi.exits import Exit
from kvmfs.abi.run import KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS
from kvmfs.abi.vcpu import Sregs, VcpuEvents
from kvmfs.jit import state as S
from kvmfs.kvm import events, hypercalls, msr_access, regs
from kvmfs.kvm import words as W
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.caller import Caller
    from kvmfs.kvm.vcpu import Vcpu

EINVAL: Final = -22
EFAULT: Final = -14
EINTR: Final = -4


def serve(vcpu: Vcpu, caller: Caller) -> int | None:
    """Do what is needed. None: enter() goes on."""
    needs = vcpu.state[Cpu.NEEDS]
    if needs == W.NEEDS_ACCOUNTS:
        vcpu.state[Cpu.CALLER] = caller.tid
        vcpu.vm.accounts.provide(caller)
    elif needs == W.NEEDS_POISON:
        poison(vcpu, caller)
    else:
        SERVICES[needs](vcpu)
    return None


# Synchronized registers -----


def _sync_in(vcpu: Vcpu) -> None:
    """sync_regs. The client may change the page at any time: what is checked is a copy."""
    run = vcpu.run
    try:
        if run.kvm_dirty_regs & KVM_SYNC_X86_REGS:
            regs.set_regs(vcpu, run.s.regs.regs)
            run.kvm_dirty_regs &= ~KVM_SYNC_X86_REGS
        if run.kvm_dirty_regs & KVM_SYNC_X86_SREGS:
            regs.set_sregs(vcpu, Sregs.from_buffer_copy(run.s.regs.sregs))
            run.kvm_dirty_regs &= ~KVM_SYNC_X86_SREGS
        if run.kvm_dirty_regs & KVM_SYNC_X86_EVENTS:
            events.set_events(vcpu, VcpuEvents.from_buffer_copy(run.s.regs.events))
            run.kvm_dirty_regs &= ~KVM_SYNC_X86_EVENTS
    except OSError:
        vcpu.end_run(EINVAL)
    else:
        vcpu.state[Cpu.PHASE] = W.PHASE_SYNCED


def _sync_out(vcpu: Vcpu) -> None:
    """store_regs."""
    run = vcpu.run
    wanted = run.kvm_valid_regs
    if wanted & KVM_SYNC_X86_REGS:
        run.s.regs.regs = regs.get_regs(vcpu)
    if wanted & KVM_SYNC_X86_SREGS:
        run.s.regs.sregs = regs.get_sregs(vcpu)
    if wanted & KVM_SYNC_X86_EVENTS:
        run.s.regs.events = events.get_events(vcpu)
    vcpu.state[Cpu.PHASE] = W.PHASE_STORED


# The client's memory -----


def _new_mappings(vcpu: Vcpu) -> None:
    with vcpu.vm.slots_lock:
        vcpu.vm.changes.revalidate()


def _repair(vcpu: Vcpu) -> None:
    """The guest's access has found nothing: EFAULT, as when KVM cannot fault a page in."""
    address, vcpu.state[Cpu.BUS_ERROR] = vcpu.state[Cpu.BUS_ERROR], 0
    with vcpu.vm.slots_lock:
        vcpu.vm.changes.repair(address)
    vcpu.end_run(EFAULT)


def _event_log(vcpu: Vcpu) -> None:
    """What is new in the fault log, whichever vCPU's it is."""
    vcpu.vm.log_faults()
    vcpu.state[Cpu.PHASE] = W.PHASE_LOGGED


def poison(vcpu: Vcpu, caller: Caller) -> None:
    """kvm_handle_error_pfn: SIGBUS for the client's thread, whose KVM_RUN it interrupts."""
    result = poisoned(vcpu, caller)
    if result == EINTR:
        vcpu.run.exit_reason = Exit.INTR
    vcpu.end_run(result)


def poisoned(vcpu: Vcpu, caller: Caller) -> int:
    """The signal for FAULT_GPA, and the result of the ioctl that ran into it."""
    address = vcpu.vm.memory.client_address(vcpu.state[S.FAULT_GPA])
    if address is None:
        return EFAULT  # no memory, nothing to be poisoned
    try:
        caller.poison(address)
    except OSError:
        return EFAULT
    return EINTR


def _clock(vcpu: Vcpu) -> None:
    vcpu.clock.write()


SERVICES: Final = {
    W.NEEDS_SYNC_IN: _sync_in,
    W.NEEDS_SYNC_OUT: _sync_out,
    W.NEEDS_RDMSR: msr_access.rdmsr,
    W.NEEDS_WRMSR: msr_access.wrmsr,
    W.NEEDS_HYPERCALL: hypercalls.hypercall,
    W.NEEDS_EVENT_LOG: _event_log,
    W.NEEDS_NEW_MAPPINGS: _new_mappings,
    W.NEEDS_REPAIR: _repair,
    W.NEEDS_APIC_EVENTS: events.accept_apic_events,
    W.NEEDS_CLOCK: _clock,
}
