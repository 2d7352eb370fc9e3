"""VMCALL and VMMCALL: what KVM answers (kvm_emulate_hypercall of arch/x86/kvm/x86.c)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvmfs.abi import para
from kvmfs.abi.exits import Exit
from kvmfs.abi.run import KVM_EXIT_HYPERCALL_LONG_MODE
from kvmfs.jit import state as S
from kvmfs.kvm import words as W
from kvmfs.kvm.tsc import sample
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

_MASK32: Final = 0xFFFF_FFFF


def hypercall(vcpu: Vcpu) -> None:
    """Answer it, or have KVM_RUN return for the client to do so."""
    state = vcpu.state
    is_long = state.is_64_bit
    number, *arguments = (state[at] if is_long else state[at] & _MASK32 for at in (S.RAX, S.RBX, S.RCX, S.RDX, S.RSI))
    if state[S.CPL]:
        result: int | None = -para.KVM_EPERM
    else:
        result = HYPERCALLS.get(number, _unknown)(vcpu, arguments)
    if result is None:
        return
    state[S.RAX] = result if is_long else result & _MASK32
    vcpu.retire()


def _unknown(vcpu: Vcpu, arguments: list[int]) -> int:
    return -para.KVM_ENOSYS


def _poll_irq(vcpu: Vcpu, arguments: list[int]) -> int:
    return 0


def _clock_pairing(vcpu: Vcpu, arguments: list[int]) -> int:
    """kvm_pv_clock_pairing: the wall clock, and the guest's TSC at the same time."""
    gpa, clock = arguments[:2]
    if clock != para.KVM_CLOCK_PAIRING_WALLCLOCK:
        return -para.KVM_EOPNOTSUPP
    host_tsc, now = sample(vcpu.vm.native.rdtsc, time.CLOCK_REALTIME)
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    pair = para.ClockPairing(sec=seconds, nsec=nanoseconds, tsc=vcpu.tsc.at(host_tsc))
    return 0 if vcpu.write_guest(gpa, pair) else -para.KVM_EFAULT


def _sched_yield(vcpu: Vcpu, arguments: list[int]) -> int:
    """Let another thread have the CPU; which one is the kernel's to say."""
    if not vcpu.pv_has(para.KVM_FEATURE_PV_SCHED_YIELD):
        return -para.KVM_ENOSYS
    os.sched_yield()
    return 0


def _map_gpa_range(vcpu: Vcpu, arguments: list[int]) -> int | None:
    """The client's to answer, if it wants: KVM_EXIT_HYPERCALL; enter() completes it."""
    number = para.KVM_HC_MAP_GPA_RANGE
    if not vcpu.vm.hypercall_exits >> number & 1:
        return -para.KVM_ENOSYS
    gpa, pages, attributes = arguments[:3]
    if pages == 0 or gpa & 4095 or (gpa >> 12) + pages >= 1 << 64:
        return -para.KVM_EINVAL
    run = vcpu.run
    run.exit_reason = Exit.HYPERCALL
    run.hypercall.nr = number
    run.hypercall.args[:3] = (gpa, pages, attributes)
    run.hypercall.flags = KVM_EXIT_HYPERCALL_LONG_MODE if vcpu.state.is_64_bit else 0
    vcpu.state[Cpu.COMPLETION] = W.COMPLETE_HYPERCALL
    vcpu.vm.log.write("hypercall", vcpu=vcpu.id, nr=number, gpa=gpa, pages=pages, attributes=attributes)
    vcpu.end_run(0)
    return None


HYPERCALLS: Final[dict[int, Callable[[Vcpu, list[int]], int | None]]] = {
    para.KVM_HC_VAPIC_POLL_IRQ: _poll_irq,
    para.KVM_HC_CLOCK_PAIRING: _clock_pairing,
    para.KVM_HC_SCHED_YIELD: _sched_yield,
    para.KVM_HC_MAP_GPA_RANGE: _map_gpa_range,
}
