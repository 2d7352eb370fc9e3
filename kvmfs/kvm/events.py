"""Pending and injected events, interrupts, NMIs, MP state."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls, vcpu
from kvmfs.abi.debug import BP_VECTOR, OF_VECTOR
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.msr_bits import MSR_IA32_APICBASE_BSP
from kvmfs.abi.vcpu import Interrupt, MpState, VcpuEvents
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.regs import deliver_payload
from kvmfs.kvm.words import APIC_EVENT_INIT, APIC_EVENT_SIPI, IRQCHIP_KERNEL, IRQCHIP_NONE, Cpu, Vm

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

NMI_VECTOR: Final = 2
_KNOWN: Final = (
    vcpu.KVM_VCPUEVENT_VALID_NMI_PENDING
    | vcpu.KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | vcpu.KVM_VCPUEVENT_VALID_SHADOW
    | vcpu.KVM_VCPUEVENT_VALID_SMM
    | vcpu.KVM_VCPUEVENT_VALID_PAYLOAD
    | vcpu.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
)

# The block has STI first, the ABI MOV SS.
_SHADOW: Final = {0: 0, 1: vcpu.KVM_X86_SHADOW_INT_STI, 2: vcpu.KVM_X86_SHADOW_INT_MOV_SS}
_LAPIC_STATES: Final = (
    vcpu.KVM_MP_STATE_UNINITIALIZED,
    vcpu.KVM_MP_STATE_HALTED,
    vcpu.KVM_MP_STATE_AP_RESET_HOLD,
    vcpu.KVM_MP_STATE_INIT_RECEIVED,
    vcpu.KVM_MP_STATE_SIPI_RECEIVED,
)


def _limit_nmis(cpu: Vcpu) -> None:
    """process_nmi: one NMI may be pending, and a second while none is being handled."""
    if cpu.state[Cpu.NMI_QUEUED]:
        cpu.vm.native.call("process_nmi", cpu.context)
    limit = 1 if cpu.state[S.NMI_MASKED] or cpu.state[S.NMI_INJECTED] else 2
    cpu.state[S.NMI_PENDING] = min(cpu.state[S.NMI_PENDING], limit)


def get_events(cpu: Vcpu) -> VcpuEvents:
    """kvm_vcpu_ioctl_x86_get_vcpu_events."""
    state, block = cpu.state, cpu.vm.block
    _limit_nmis(cpu)
    deliver_payload(cpu)
    events = VcpuEvents()
    exception = events.exception
    if state[S.EXC_VECTOR] not in (BP_VECTOR, OF_VECTOR):  # software exceptions recur when RIP is not advanced
        exception.injected, exception.pending = state[S.EXC_INJECTED], state[S.EXC_PENDING]
        if not block[Vm.EXCEPTION_PAYLOAD]:
            exception.injected |= exception.pending
    exception.nr, exception.has_error_code = state[S.EXC_VECTOR], state[S.EXC_HAS_ERROR]
    exception.error_code = state[S.EXC_ERROR]
    events.exception_has_payload, events.exception_payload = cpu.has_payload, state[S.EXC_PAYLOAD]
    events.interrupt.injected = state[S.INTR_INJECTED] and not state[S.INTR_SOFT]
    events.interrupt.nr = state[S.INTR_VECTOR]
    events.interrupt.shadow = _SHADOW[state[S.INTR_SHADOW] & 3]
    events.nmi.injected, events.nmi.pending = state[S.NMI_INJECTED], state[S.NMI_PENDING]
    events.nmi.masked = state[S.NMI_MASKED]
    events.smi.latched_init = cpu.lapic is not None and cpu.lapic.init_latched
    events.flags = vcpu.KVM_VCPUEVENT_VALID_NMI_PENDING | vcpu.KVM_VCPUEVENT_VALID_SHADOW | vcpu.KVM_VCPUEVENT_VALID_SMM
    if block[Vm.EXCEPTION_PAYLOAD]:
        events.flags |= vcpu.KVM_VCPUEVENT_VALID_PAYLOAD
    if block[Vm.TRIPLE_FAULT_EVENT]:
        events.triple_fault.pending = state[Cpu.TRIPLE_FAULT]
        events.flags |= vcpu.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    return events


def set_events(cpu: Vcpu, events: VcpuEvents) -> None:
    """kvm_vcpu_ioctl_x86_set_vcpu_events of a KVM without SMM. OSError(EINVAL)."""
    state, block = cpu.state, cpu.vm.block
    exception, flags = events.exception, events.flags
    if flags & ~_KNOWN:
        fail(errno.EINVAL)
    injected, pending, has_payload = exception.injected, exception.pending, events.exception_has_payload
    if flags & vcpu.KVM_VCPUEVENT_VALID_PAYLOAD:
        if not block[Vm.EXCEPTION_PAYLOAD]:
            fail(errno.EINVAL)
        if pending:
            injected = 0
        else:
            has_payload = 0
    else:
        pending = has_payload = 0
    if (injected or pending) and (exception.nr > 31 or exception.nr == NMI_VECTOR):
        fail(errno.EINVAL)
    has_smi = flags & vcpu.KVM_VCPUEVENT_VALID_SMM and (events.smi.smm or events.smi.pending)
    if has_smi and state[Cpu.MP_STATE] == vcpu.KVM_MP_STATE_INIT_RECEIVED:
        fail(errno.EINVAL)

    _limit_nmis(cpu)
    state[S.EXC_INJECTED], state[S.EXC_PENDING] = bool(injected), bool(pending)
    state[S.EXC_VECTOR], state[S.EXC_HAS_ERROR] = exception.nr, bool(exception.has_error_code)
    state[S.EXC_ERROR] = exception.error_code
    if injected or pending:
        state[S.EXC_PAYLOAD_USE] = S.PAYLOAD_APPLIES if has_payload else S.PAYLOAD_DONE
    else:  # the next exception is the processor's own
        state[S.EXC_PAYLOAD_USE] = S.PAYLOAD_BY_VECTOR
    state[S.EXC_PAYLOAD] = events.exception_payload
    state[S.INTR_INJECTED], state[S.INTR_SOFT] = bool(events.interrupt.injected), bool(events.interrupt.soft)
    state[S.INTR_VECTOR] = events.interrupt.nr
    if flags & vcpu.KVM_VCPUEVENT_VALID_SHADOW:
        shadow = events.interrupt.shadow
        sti, mov_ss = shadow & vcpu.KVM_X86_SHADOW_INT_STI, shadow & vcpu.KVM_X86_SHADOW_INT_MOV_SS
        state[S.INTR_SHADOW] = 2 if mov_ss else 1 if sti else 0
        state.derive()
    state[S.NMI_INJECTED] = bool(events.nmi.injected)
    state[S.NMI_MASKED] = bool(events.nmi.masked)
    if flags & vcpu.KVM_VCPUEVENT_VALID_NMI_PENDING:
        state[S.NMI_PENDING] = events.nmi.pending
        _limit_nmis(cpu)
    if flags & vcpu.KVM_VCPUEVENT_VALID_SIPI_VECTOR and cpu.lapic is not None:
        cpu.lapic.sipi_vector = events.sipi_vector & 0xFF
    if flags & vcpu.KVM_VCPUEVENT_VALID_SMM:
        if events.smi.smm or events.smi.pending or events.smi.smm_inside_nmi:
            fail(errno.EINVAL)
        if cpu.lapic is not None:
            cpu.lapic.init_latched = bool(events.smi.latched_init)
    if flags & vcpu.KVM_VCPUEVENT_VALID_TRIPLE_FAULT:
        if not block[Vm.TRIPLE_FAULT_EVENT]:
            fail(errno.EINVAL)
        state[Cpu.TRIPLE_FAULT] = bool(events.triple_fault.pending)


def accept_apic_events(cpu: Vcpu) -> None:
    """kvm_apic_accept_events: INIT resets the vCPU, SIPI starts it where its vector says (SDM vol. 3, 9.4)."""
    state, lapic = cpu.state, cpu.lapic
    waiting = lapic.take_events() if lapic else 0
    if lapic is None or not waiting:
        return
    if waiting & APIC_EVENT_INIT:
        cpu.reset(init=True)
        is_bsp = state[S.APIC_BASE] & MSR_IA32_APICBASE_BSP
        state[Cpu.MP_STATE] = vcpu.KVM_MP_STATE_RUNNABLE if is_bsp else vcpu.KVM_MP_STATE_INIT_RECEIVED
    if waiting & APIC_EVENT_SIPI and state[Cpu.MP_STATE] == vcpu.KVM_MP_STATE_INIT_RECEIVED:
        state[S.CS + S.SEL], state[S.CS + S.BASE] = lapic.sipi_vector << 8, lapic.sipi_vector << 12
        state[S.RIP] = 0
        state.derive()
        state[Cpu.MP_STATE] = vcpu.KVM_MP_STATE_RUNNABLE


@table.ioctl(ioctls.KVM_GET_VCPU_EVENTS)
def _get_events(cpu: Vcpu, caller: Caller, arg: int) -> VcpuEvents:
    return get_events(cpu)


@table.ioctl(ioctls.KVM_SET_VCPU_EVENTS)
def _set_events(cpu: Vcpu, caller: Caller, arg: VcpuEvents) -> None:
    set_events(cpu, arg)


@table.ioctl(ioctls.KVM_GET_MP_STATE)
def _get_mp_state(cpu: Vcpu, caller: Caller, arg: int) -> MpState:
    accept_apic_events(cpu)
    if cpu.lapic is None:  # a HLT that is not the client's is the processor's own affair
        return MpState(mp_state=vcpu.KVM_MP_STATE_RUNNABLE)
    return MpState(mp_state=cpu.state[Cpu.MP_STATE])


@table.ioctl(ioctls.KVM_SET_MP_STATE)
def _set_mp_state(cpu: Vcpu, caller: Caller, arg: MpState) -> None:
    wanted = arg.mp_state
    if wanted != vcpu.KVM_MP_STATE_RUNNABLE and (wanted not in _LAPIC_STATES or cpu.lapic is None):
        fail(errno.EINVAL)
    if wanted == vcpu.KVM_MP_STATE_SIPI_RECEIVED and cpu.lapic is not None:
        cpu.lapic.post_event(APIC_EVENT_SIPI)
        wanted = vcpu.KVM_MP_STATE_INIT_RECEIVED
    cpu.state[Cpu.MP_STATE] = wanted


@table.ioctl(ioctls.KVM_INTERRUPT)
def _interrupt(cpu: Vcpu, caller: Caller, arg: Interrupt) -> None:
    if arg.irq >= vcpu.KVM_NR_INTERRUPTS:
        fail(errno.EINVAL)
    irqchip = cpu.vm.block[Vm.IRQCHIP]
    if irqchip == IRQCHIP_NONE:
        cpu.queue_interrupt(arg.irq)
        return
    if irqchip == IRQCHIP_KERNEL:
        fail(errno.ENXIO)
    if cpu.state[Cpu.EXTERNAL]:
        fail(errno.EEXIST)
    cpu.state[Cpu.EXTERNAL] = arg.irq + 1


@table.ioctl(ioctls.KVM_NMI)
def _nmi(cpu: Vcpu, caller: Caller, arg: int) -> None:
    cpu.state[S.NMI_PENDING] += 1
    _limit_nmis(cpu)
