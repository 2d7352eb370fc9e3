"""Events, mp_state, local APIC."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls, vcpu
from kvmfs.abi.caps import Cap
from kvmfs.abi.vcpu import Interrupt, MpState, Regs, VcpuEvents
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.calls import enable, get
from tests.unit.kvm.fakes import FakeClient

GET_EVENTS, SET_EVENTS = ioctls.KVM_GET_VCPU_EVENTS, ioctls.KVM_SET_VCPU_EVENTS


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"flags": 1 << 6}, errno.EINVAL),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_PAYLOAD}, errno.EINVAL),  # not enabled
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_TRIPLE_FAULT}, errno.EINVAL),
        ({"exception.injected": 1, "exception.nr": 32}, errno.EINVAL),
        ({"exception.injected": 1, "exception.nr": 2}, errno.EINVAL),  # an NMI is no exception
        ({"exception.pending": 1, "exception.nr": 255}, 0),  # ignored without the payload capability
        ({"exception.injected": 1, "exception.nr": 31}, 0),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SMM, "smi.smm": 1}, errno.EINVAL),  # there is no SMM
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SMM}, 0),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SHADOW, "interrupt.shadow": 3}, 0),
    ],
)
def test_set_events(vcpu: Vcpu, client: FakeClient, fields: dict[str, int], error: int) -> None:
    events = VcpuEvents()
    for name, value in fields.items():
        *path, last = name.split(".")
        setattr(getattr(events, path[0]) if path else events, last, value)
    assert client.fails(vcpu, SET_EVENTS, events) == error


def test_events_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    enable(client, vcpu.vm, Cap.EXCEPTION_PAYLOAD)
    enable(client, vcpu.vm, Cap.X86_TRIPLE_FAULT_EVENT)
    events = get(client, vcpu, GET_EVENTS, VcpuEvents)
    assert events.flags == 1 | 4 | 8 | 16 | 32
    events.exception.pending, events.exception.nr, events.exception.has_error_code = 1, 14, 1
    events.exception.error_code, events.exception_has_payload, events.exception_payload = 7, 1, 0xDEAD000
    events.interrupt.injected, events.interrupt.nr, events.interrupt.shadow = 1, 0x80, 2
    events.nmi.pending, events.nmi.masked = 1, 1
    events.triple_fault.pending = 1
    client.call(vcpu, SET_EVENTS, events)
    assert bytes(get(client, vcpu, GET_EVENTS, VcpuEvents)) == bytes(events)
    assert vcpu.state[Cpu.TRIPLE_FAULT] == 1


def test_without_payload_a_pending_exception_counts_as_injected(vcpu: Vcpu, client: FakeClient) -> None:
    vcpu.queue_exception(14, 2)
    vcpu.state[S.EXC_PAYLOAD_USE], vcpu.state[S.EXC_PAYLOAD] = S.PAYLOAD_APPLIES, 0x5000
    events = get(client, vcpu, GET_EVENTS, VcpuEvents)
    assert (events.exception.injected, events.exception.pending, events.exception.nr) == (1, 1, 14)
    assert (events.exception_has_payload, vcpu.state[S.CR2]) == (0, 0x5000)


def test_nmis_queue_up_to_two(vcpu: Vcpu, client: FakeClient) -> None:
    for _ in range(3):
        client.call(vcpu, ioctls.KVM_NMI)
    assert get(client, vcpu, GET_EVENTS, VcpuEvents).nmi.pending == 2
    vcpu.state[S.NMI_MASKED] = 1
    assert get(client, vcpu, GET_EVENTS, VcpuEvents).nmi.pending == 1


def test_interrupt(vm: Vm, vcpu: Vcpu, client: FakeClient) -> None:
    assert client.fails(vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=256)) == errno.EINVAL
    client.call(vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=255))
    assert (vcpu.state[S.INTR_INJECTED], vcpu.state[S.INTR_VECTOR]) == (1, 255)


def test_interrupt_with_our_pic(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(vm.vcpus[0], ioctls.KVM_INTERRUPT, Interrupt(irq=32)) == errno.ENXIO


@pytest.mark.parametrize(
    ("state", "plain", "with_lapic"), [(0, 0, 0), *((n, 22, 0) for n in (1, 2, 3, 4, 9)), (5, 22, 22)]
)
def test_mp_state(vm: Vm, client: FakeClient, state: int, plain: int, with_lapic: int) -> None:
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(vm.vcpus[0], ioctls.KVM_SET_MP_STATE, MpState(mp_state=state)) == plain
    other = Vm(vm.native, 0, vm.client)
    client.call(other, ioctls.KVM_CREATE_IRQCHIP)
    client.call(other, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(other.vcpus[0], ioctls.KVM_SET_MP_STATE, MpState(mp_state=state)) == with_lapic
    if not with_lapic:
        assert get(client, other.vcpus[0], ioctls.KVM_GET_MP_STATE, MpState).mp_state == (0 if state == 4 else state)


def test_the_next_exception_is_the_processors_own(vcpu: Vcpu, client: FakeClient) -> None:
    """What a client says of no exception at all does not keep a later page fault from CR2."""
    vcpu.queue_exception(14, 2)
    assert vcpu.state[S.EXC_PAYLOAD_USE] == S.PAYLOAD_DONE
    client.call(vcpu, SET_EVENTS, VcpuEvents())
    assert vcpu.state[S.EXC_PAYLOAD_USE] == S.PAYLOAD_BY_VECTOR
    vcpu.queue_exception(14, 2)
    client.call(vcpu, ioctls.KVM_SET_REGS, get(client, vcpu, ioctls.KVM_GET_REGS, Regs))
    assert (vcpu.state[S.EXC_PENDING], vcpu.state[S.EXC_PAYLOAD_USE]) == (0, S.PAYLOAD_BY_VECTOR)
