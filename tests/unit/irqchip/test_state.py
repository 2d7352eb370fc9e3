"""The interrupt controllers' state, and what KVM_SET_GSI_ROUTING accepts."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import Any

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.apic import LapicState
from kvmfs.abi.irqchip import Irqchip, PitConfig, PitState, PitState2, ReinjectControl
from kvmfs.abi.routing import (
    KVM_IRQ_ROUTING_HV_SINT,
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_MSI_VALID_DEVID,
    IrqRouting,
    IrqRoutingEntry,
)
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.calls import get
from tests.unit.kvm.fakes import BASE, FakeClient

MASTER, SLAVE, IOAPIC = 0, 1, 2
ROWS = [ioctls.KVM_GET_IRQCHIP, ioctls.KVM_SET_IRQCHIP, ioctls.KVM_GET_PIT, ioctls.KVM_SET_PIT]
ROWS += [ioctls.KVM_GET_PIT2, ioctls.KVM_SET_PIT2, ioctls.KVM_REINJECT_CONTROL]


@pytest.fixture
def with_chips(vm: Vm, client: FakeClient) -> Vm:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    return vm


def get_chip(client: FakeClient, vm: Vm, number: int) -> Any:
    chip = Irqchip(chip_id=number)
    client.call(vm, ioctls.KVM_GET_IRQCHIP, chip)
    return chip.chip.ioapic if number == IOAPIC else chip.chip.pic


# Creation


def test_irqchip_comes_once_and_before_vcpus(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(vm, ioctls.KVM_CREATE_IRQCHIP) == errno.EINVAL
    other = Vm(vm.native, 0, vm.client)
    assert client.fails(other, ioctls.KVM_CREATE_IRQCHIP) == 0
    client.call(other, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(other, ioctls.KVM_CREATE_IRQCHIP) == errno.EEXIST


@pytest.mark.parametrize("argument", [PitConfig(), 0])
def test_pit_needs_a_pic(vm: Vm, client: FakeClient, argument: Any) -> None:
    row = ioctls.KVM_CREATE_PIT2 if argument else ioctls.KVM_CREATE_PIT
    assert client.fails(vm, row, argument) == errno.ENOENT
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    assert client.fails(vm, row, argument) == 0
    assert client.fails(vm, row, argument) == errno.EEXIST


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_there(vm: Vm, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(vm, row, BASE) == errno.ENXIO


# State


def test_chips_after_creation(with_chips: Vm, client: FakeClient) -> None:
    assert get_chip(client, with_chips, MASTER).elcr_mask == 0xF8
    assert get_chip(client, with_chips, SLAVE).elcr_mask == 0xDE
    ioapic = get_chip(client, with_chips, IOAPIC)
    assert ioapic.base_address == 0xFEC00000
    assert all(entry.fields.mask for entry in ioapic.redirtbl)


@pytest.mark.parametrize(("number", "field"), [(MASTER, "imr"), (SLAVE, "irq_base"), (IOAPIC, "ioregsel")])
def test_chip_round_trip(with_chips: Vm, client: FakeClient, number: int, field: str) -> None:
    chip = Irqchip(chip_id=number)
    setattr(chip.chip.ioapic if number == IOAPIC else chip.chip.pic, field, 0x5A)
    client.call(with_chips, ioctls.KVM_SET_IRQCHIP, chip)
    for other in (MASTER, SLAVE, IOAPIC):
        assert (getattr(get_chip(client, with_chips, other), field, None) == 0x5A) == (other == number)


@pytest.mark.parametrize("row", [ioctls.KVM_GET_IRQCHIP, ioctls.KVM_SET_IRQCHIP])
def test_no_such_chip(with_chips: Vm, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(with_chips, row, Irqchip(chip_id=3)) == errno.EINVAL


def test_pit_round_trip(with_chips: Vm, client: FakeClient) -> None:
    client.call(with_chips, ioctls.KVM_CREATE_PIT2, PitConfig())
    state = PitState2()
    client.call(with_chips, ioctls.KVM_GET_PIT2, state)
    assert [(c.mode, c.gate, c.count) for c in state.channels] == [(0xFF, n != 2, 0x10000) for n in range(3)]
    state.channels[0].mode, state.channels[0].count, state.channels[1].count, state.flags = 2, 1234, 0, 1
    client.call(with_chips, ioctls.KVM_SET_PIT2, state)
    old = PitState()
    client.call(with_chips, ioctls.KVM_GET_PIT, old)
    assert [c.count for c in old.channels] == [1234, 0x10000, 0x10000]  # 0 is the full range
    assert old.channels[0].mode == 2
    old.channels[2].count = 7
    client.call(with_chips, ioctls.KVM_SET_PIT, old)
    client.call(with_chips, ioctls.KVM_GET_PIT2, state)
    assert (state.channels[2].count, state.flags) == (7, 1)
    assert client.fails(with_chips, ioctls.KVM_REINJECT_CONTROL, ReinjectControl(pit_reinject=0)) == 0


# KVM_SET_GSI_ROUTING


def pin(gsi: int, chip: int, number: int, **more: int) -> IrqRoutingEntry:
    entry = IrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_IRQCHIP, **more)
    entry.u.irqchip.irqchip, entry.u.irqchip.pin = chip, number
    return entry


def message(gsi: int, **more: int) -> IrqRoutingEntry:
    return IrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_MSI, **more)


def route(client: FakeClient, vm: Vm, entries: list[IrqRoutingEntry], **header: int) -> int:
    client.write(BASE + sizeof(IrqRouting), b"".join(map(bytes, entries)))
    return client.fails(vm, ioctls.KVM_SET_GSI_ROUTING, IrqRouting(**{"nr": len(entries), **header}))


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ([], 0),
        ([pin(0, IOAPIC, 23)], 0),
        ([pin(0, IOAPIC, 24)], errno.EINVAL),
        ([pin(0, MASTER, 7)], 0),
        ([pin(0, MASTER, 8)], errno.EINVAL),
        ([pin(0, SLAVE, 7)], 0),
        ([pin(0, SLAVE, 8)], errno.EINVAL),
        ([pin(0, 3, 0)], errno.EINVAL),
        ([pin(4095, IOAPIC, 0)], 0),
        ([pin(4096, IOAPIC, 0)], errno.EINVAL),
        ([pin(0, IOAPIC, 0, flags=KVM_MSI_VALID_DEVID)], errno.EINVAL),
        ([message(0)], 0),
        ([message(0, flags=KVM_MSI_VALID_DEVID)], 0),
        ([message(0, flags=2)], errno.EINVAL),
        ([IrqRoutingEntry(gsi=0, type=KVM_IRQ_ROUTING_HV_SINT)], errno.EINVAL),
        ([IrqRoutingEntry(gsi=0, type=0)], errno.EINVAL),
        # One GSI may lead to a pin of each chip,
        ([pin(5, MASTER, 5), pin(5, IOAPIC, 5)], 0),
        ([pin(5, IOAPIC, 4), pin(5, IOAPIC, 5)], errno.EINVAL),
        # and a message excludes all else.
        ([message(5), pin(5, IOAPIC, 5)], errno.EINVAL),
        ([pin(5, IOAPIC, 5), message(5)], errno.EINVAL),
        ([message(5), message(5)], errno.EINVAL),
        ([message(5), message(6)], 0),
    ],
)
def test_routing(with_chips: Vm, client: FakeClient, entries: list[IrqRoutingEntry], error: int) -> None:
    assert route(client, with_chips, entries) == error


def test_routing_as_a_whole(vm: Vm, client: FakeClient) -> None:
    assert route(client, vm, []) == errno.EINVAL  # nothing to route to
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    assert route(client, vm, [], flags=1) == errno.EINVAL
    assert route(client, vm, [], nr=4097) == errno.EINVAL
    assert route(client, vm, [message(gsi) for gsi in range(4096)]) == 0
    assert len(vm.chips.routes) == 4096 if vm.chips else False
    assert route(client, vm, [message(0), message(0)]) == errno.EINVAL
    assert len(vm.chips.routes) == 4096 if vm.chips else False  # as before


def test_default_routes(with_chips: Vm) -> None:
    assert with_chips.chips
    assert sorted({entry.gsi for entry in with_chips.chips.routes}) == list(range(24))
    assert len(with_chips.chips.routes) == 24 + 16


# KVM_GET_LAPIC, KVM_SET_LAPIC


def test_lapic(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    for number in range(2):
        client.call(vm, ioctls.KVM_CREATE_VCPU, number)
    boot, other = (get(client, vm.vcpus[number], ioctls.KVM_GET_LAPIC, LapicState) for number in range(2))
    word = lambda state, at: int.from_bytes(bytes(state.regs[at : at + 4]), "little")  # noqa: E731
    assert (word(boot, 0x20), word(other, 0x20)) == (0, 1 << 24)
    assert word(boot, 0x30) == 0x14 | 5 << 16
    assert (word(boot, 0x350), word(other, 0x350)) == (0x700, 0x10000)  # LINT0: ExtINT at the boot processor
    assert (word(boot, 0xE0), word(boot, 0xF0)) == (0xFFFFFFFF, 0xFF)
    other.regs[0x80] = 0x50
    client.call(vm.vcpus[1], ioctls.KVM_SET_LAPIC, other)
    assert vm.vcpus[1].state[S.CR8] == 5
    assert word(get(client, vm.vcpus[1], ioctls.KVM_GET_LAPIC, LapicState), 0xA0) == 0x50
