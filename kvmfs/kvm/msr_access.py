"""RDMSR and WRMSR of a guest: the client's filter, the rules, and the client's answer where it wants to give one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi.debug import GP_VECTOR
from kvmfs.abi.exits import Exit
from kvmfs.abi.msrs import KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN
from kvmfs.jit import state as S
from kvmfs.kvm import words as W
from kvmfs.kvm.msr_filter import READ, WRITE
from kvmfs.kvm.msr_rules import Invalid, Unsupported
from kvmfs.kvm.msrs import read_msr, write_msr
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu


class Filtered(Exception):
    """The client's filter denies the access (KVM_MSR_RET_FILTERED)."""


_REASONS: Final = {
    Filtered: KVM_MSR_EXIT_REASON_FILTER,
    Unsupported: KVM_MSR_EXIT_REASON_UNKNOWN,
    Invalid: KVM_MSR_EXIT_REASON_INVAL,
}
_MASK32: Final = 0xFFFF_FFFF


def rdmsr(vcpu: Vcpu) -> None:
    """kvm_emulate_rdmsr, of EXIT_ARGS: index."""
    number = vcpu.state[S.EXIT_ARGS]
    try:
        if not vcpu.vm.msr_filter.allows(number, READ):
            raise Filtered
        value = read_msr(vcpu, number, host=False)
    except (Filtered, Unsupported, Invalid) as refusal:
        _refuse(vcpu, refusal, Exit.X86_RDMSR, W.COMPLETE_RDMSR, number, 0)
        return
    vcpu.state[S.RAX], vcpu.state[S.RDX] = value & _MASK32, value >> 32
    vcpu.retire()


def wrmsr(vcpu: Vcpu) -> None:
    """kvm_emulate_wrmsr, of EXIT_ARGS: index, value."""
    number, value = vcpu.state[S.EXIT_ARGS], vcpu.state[S.EXIT_ARGS + 8]
    try:
        if not vcpu.vm.msr_filter.allows(number, WRITE):
            raise Filtered
        write_msr(vcpu, number, value, host=False)
    except (Filtered, Unsupported, Invalid) as refusal:
        _refuse(vcpu, refusal, Exit.X86_WRMSR, W.COMPLETE_WRMSR, number, value)
        return
    vcpu.retire()


def _refuse(vcpu: Vcpu, refusal: Exception, reason: Exit, completion: int, number: int, value: int) -> None:
    """#GP, or the client's business (kvm_msr_user_space)."""
    why = _REASONS[type(refusal)]
    if not vcpu.vm.user_space_msrs & why:
        vcpu.queue_exception(GP_VECTOR, 0)
        return
    run = vcpu.run
    run.exit_reason = reason
    run.msr.error, run.msr.reason, run.msr.index, run.msr.data = 0, why, number, value
    for index in range(len(run.msr.pad)):
        run.msr.pad[index] = 0
    vcpu.state[Cpu.COMPLETION] = completion
    vcpu.end_run(0)
