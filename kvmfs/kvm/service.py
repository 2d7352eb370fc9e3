"""What compiled KVM_RUN comes back to Python for: see words.NEEDS_*.

After each the worker calls enter() again, which goes on where it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi import para
from kvmfs.abi.exits import Exit
from kvmfs.abi.run import KVM_EXIT_HYPERCALL_LONG_MODE, KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS
from kvmfs.abi.vcpu import Sregs, VcpuEvents
from kvmfs.jit import state as S
from kvmfs.kvm import events, regs
from kvmfs.kvm import words as W
from kvmfs.kvm.msr_rules import Invalid, Unsupported
from kvmfs.kvm.msrs import read_msr, write_msr
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

GP: Final = 13
EINVAL: Final = -22
MASK32: Final = 0xFFFF_FFFF


def serve(vcpu: Vcpu) -> int | None:
    """Do what is needed. None: enter() goes on."""
    SERVICES[vcpu.state[Cpu.NEEDS]](vcpu)
    return None


def skip_instruction(vcpu: Vcpu) -> None:
    """kvm_skip_emulated_instruction."""
    state = vcpu.state
    rip = state[S.RIP] + state[S.INSN_LENGTH]
    state[S.RIP] = rip if state.is_64_bit else rip & MASK32
    state[S.INTR_SHADOW] = 0
    state[S.RFLAGS] &= ~S.RF


def end_run(vcpu: Vcpu, result: int) -> None:
    """Have enter() return `result` to the client."""
    vcpu.state[Cpu.RESULT] = result
    vcpu.state[Cpu.PHASE] = W.PHASE_ENDING


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
        end_run(vcpu, EINVAL)
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


# Instructions -----


def _rdmsr(vcpu: Vcpu) -> None:
    state = vcpu.state
    try:
        value = read_msr(vcpu, state[S.EXIT_ARGS], host=False)
    except (Invalid, Unsupported):
        vcpu.queue_exception(GP, 0)
        return
    state[S.RAX], state[S.RDX] = value & MASK32, value >> 32
    skip_instruction(vcpu)


def _wrmsr(vcpu: Vcpu) -> None:
    state = vcpu.state
    try:
        write_msr(vcpu, state[S.EXIT_ARGS], state[S.EXIT_ARGS + 8], host=False)
    except (Invalid, Unsupported):
        vcpu.queue_exception(GP, 0)
        return
    skip_instruction(vcpu)


def _hypercall(vcpu: Vcpu) -> None:
    """kvm_emulate_hypercall: KVM_HC_MAP_GPA_RANGE is the client's to answer, if it wants; there is no other."""
    state = vcpu.state
    long_mode = state.is_64_bit
    number, *arguments = (state[at] if long_mode else state[at] & MASK32 for at in (S.RAX, S.RBX, S.RCX, S.RDX, S.RSI))
    if state[S.CPL]:
        result = -para.KVM_EPERM
    elif number == para.KVM_HC_VAPIC_POLL_IRQ:
        result = 0
    elif number == para.KVM_HC_MAP_GPA_RANGE and vcpu.vm.hypercall_exits >> number & 1:
        gpa, pages, attributes = arguments[:3]
        if pages == 0 or gpa & 4095 or (gpa >> 12) + pages >= 1 << 64:
            result = -para.KVM_EINVAL
        else:
            _ask(vcpu, number, (gpa, pages, attributes), long_mode)
            return
    else:
        result = -para.KVM_ENOSYS
    state[S.RAX] = result if long_mode else result & MASK32
    skip_instruction(vcpu)


def _ask(vcpu: Vcpu, number: int, arguments: tuple[int, int, int], long_mode: bool) -> None:
    """KVM_EXIT_HYPERCALL; enter() completes it."""
    hypercall = vcpu.run.hypercall
    vcpu.run.exit_reason = Exit.HYPERCALL
    hypercall.nr = number
    hypercall.args[:3] = arguments
    hypercall.flags = KVM_EXIT_HYPERCALL_LONG_MODE if long_mode else 0
    vcpu.state[Cpu.COMPLETION] = W.COMPLETE_HYPERCALL
    gpa, pages, attributes = arguments
    vcpu.vm.log.write("hypercall", vcpu=vcpu.id, nr=number, gpa=gpa, pages=pages, attributes=attributes)
    end_run(vcpu, 0)


def _event_log(vcpu: Vcpu) -> None:
    fault = vcpu.run.memory_fault
    vcpu.vm.log.write("memory_fault", vcpu=vcpu.id, gpa=fault.gpa, size=fault.size, flags=fault.flags)
    vcpu.state[Cpu.PHASE] = W.PHASE_LOGGED


def _clock(vcpu: Vcpu) -> None:
    vcpu.clock.write()


SERVICES: Final = {
    W.NEEDS_SYNC_IN: _sync_in,
    W.NEEDS_SYNC_OUT: _sync_out,
    W.NEEDS_RDMSR: _rdmsr,
    W.NEEDS_WRMSR: _wrmsr,
    W.NEEDS_HYPERCALL: _hypercall,
    W.NEEDS_EVENT_LOG: _event_log,
    W.NEEDS_APIC_EVENTS: events.accept_apic_events,
    W.NEEDS_CLOCK: _clock,
}
