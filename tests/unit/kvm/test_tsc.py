"""The guest's TSC: its rate, and writes that mean to have several vCPUs agree."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.layout import u64
from kvmfs.abi.vm import DeviceAttr
from kvmfs.kvm.tsc import MAX_RATIO, RATIO_ONE
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import BASE, FakeClient

HOST_KHZ = 1_000_000  # FakeNative's


@pytest.fixture
def two(vm: Vm, client: FakeClient) -> tuple[Vcpu, Vcpu]:
    for number in range(2):
        client.call(vm, ioctls.KVM_CREATE_VCPU, number)
    return vm.vcpus[0], vm.vcpus[1]


def set_offset(client: FakeClient, vcpu: Vcpu, value: int) -> None:
    at = client.put(u64(value), BASE + 0x100)
    client.call(vcpu, ioctls.KVM_SET_DEVICE_ATTR, DeviceAttr(group=0, attr=0, addr=at))


@pytest.mark.parametrize(
    ("khz", "scaled"),
    [(HOST_KHZ - 250, False), (HOST_KHZ + 250, False), (HOST_KHZ - 251, True), (HOST_KHZ + 251, True), (1, True)],
)
def test_rates_within_tolerance_are_the_hosts(vcpu: Vcpu, client: FakeClient, khz: int, scaled: bool) -> None:
    client.call(vcpu, ioctls.KVM_SET_TSC_KHZ, khz)
    assert client.call(vcpu, ioctls.KVM_GET_TSC_KHZ) == khz
    assert (vcpu.state[S.TSC_RATIO] != RATIO_ONE) == scaled


def test_highest_rate(vm: Vm, vcpu: Vcpu, client: FakeClient) -> None:
    highest = HOST_KHZ * MAX_RATIO >> 32
    for node in (vm, vcpu):
        assert client.fails(node, ioctls.KVM_SET_TSC_KHZ, highest) == errno.EINVAL
        assert not client.fails(node, ioctls.KVM_SET_TSC_KHZ, highest - 1)
    assert vcpu.state[S.TSC_RATIO] <= MAX_RATIO


def test_write_agrees_with_an_offset_set_before(two: tuple[Vcpu, Vcpu], client: FakeClient) -> None:
    """KVM_VCPU_TSC_OFFSET counts as the last write, and as the client's."""
    first, second = two
    set_offset(client, first, 1 << 40)
    second.tsc.synchronize((1 << 40) + 5000)
    assert second.tsc.offset == first.tsc.offset == 1 << 40


def test_first_write_of_the_client_is_taken_at_its_word(two: tuple[Vcpu, Vcpu]) -> None:
    """It is not drawn to what vCPUs are born with; the next one within a second is drawn to it."""
    first, second = two
    first.tsc.synchronize(12345)
    assert first.tsc.offset != second.tsc.offset
    second.tsc.synchronize(23456)
    assert first.tsc.offset == second.tsc.offset
    second.tsc.synchronize(HOST_KHZ * 1000 * 3)
    assert first.tsc.offset != second.tsc.offset


def test_other_rates_do_not_agree(two: tuple[Vcpu, Vcpu], client: FakeClient) -> None:
    first, second = two
    first.tsc.synchronize(1 << 40)
    client.call(second, ioctls.KVM_SET_TSC_KHZ, 2 * HOST_KHZ)
    second.tsc.synchronize((1 << 40) + 5)
    assert first.tsc.offset != second.tsc.offset


def test_writing_zero_means_to_agree(two: tuple[Vcpu, Vcpu]) -> None:
    first, second = two
    first.tsc.synchronize(1 << 40)
    second.tsc.synchronize(0)
    assert first.tsc.offset == second.tsc.offset
