"""The VM: vCPUs to be, capabilities to enable, odds and ends."""

from __future__ import annotations

import errno

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.layout import u64
from kvmfs.abi.vcpu import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, MpState
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.vm import TABLE, Vm
from tests.unit.kvm.fakes import BAD, FakeClient

CREATE_VCPU, BOOT = ioctls.KVM_CREATE_VCPU, ioctls.KVM_SET_BOOT_CPU_ID


def enable(client: FakeClient, vm: Vm, cap: int, value: int, flags: int = 0) -> int:
    return client.fails(vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=int(cap), flags=flags, args=(value,)))


def test_unknown_ioctl(vm: Vm, client: FakeClient) -> None:
    with pytest.raises(OSError, match="not offered") as error:
        vm.ioctl(client, 0xAEFF, 0)
    assert error.value.errno == errno.ENOTTY


@pytest.mark.parametrize(
    "row",
    [entry.row for entry in TABLE.entries.values() if entry.row.argument.name in ("IN", "OUT", "INOUT")],
    ids=lambda row: row.name,
)
def test_bad_pointer(vm: Vm, client: FakeClient, row: ioctls.Ioctl) -> None:
    # ENXIO: KVM looks for the device first
    assert client.fails(vm, row, BAD) in (errno.EFAULT, errno.ENXIO if row.name == "KVM_GET_PIT2" else errno.EFAULT)


# vCPUs


@pytest.mark.parametrize(
    ("number", "error"), [(0, 0), (4095, 0), (4096, errno.EINVAL), (1 << 32, errno.EINVAL), (1 << 63, errno.EINVAL)]
)
def test_vcpu_ids(vm: Vm, client: FakeClient, number: int, error: int) -> None:
    assert client.fails(vm, CREATE_VCPU, number) == error


def test_each_id_once(vm: Vm, client: FakeClient) -> None:
    client.call(vm, CREATE_VCPU, 3)
    assert client.fails(vm, CREATE_VCPU, 3) == errno.EEXIST
    assert client.fails(vm, CREATE_VCPU, 4) == 0
    assert [vcpu.index for vcpu in vm.vcpus.values()] == [0, 1]


def test_as_many_as_the_capability_says(vm: Vm, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmfs.kvm.vm.KVM_MAX_VCPUS", 2)
    assert [client.fails(vm, CREATE_VCPU, number) for number in range(3)] == [0, 0, errno.EINVAL]


def test_a_vcpu_that_cannot_be_installed_was_never_there(
    vm: Vm, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(node: object) -> int:
        raise OSError(errno.EBUSY, "")

    with monkeypatch.context() as patch:
        patch.setattr(client, "install", refuse)
        assert client.fails(vm, CREATE_VCPU, 0) == errno.EBUSY
    assert (vm.created_vcpus, vm.vcpus) == (0, {})
    assert client.fails(vm, BOOT, 1) == 0
    assert client.fails(vm, CREATE_VCPU, 0) == 0


def test_boot_cpu_id(vm: Vm, client: FakeClient) -> None:
    assert client.fails(vm, BOOT, 4097) == errno.EINVAL
    assert client.fails(vm, BOOT, 1 << 32) == errno.EINVAL
    assert client.fails(vm, BOOT, 4096) == 0
    assert client.fails(vm, BOOT, 1) == 0
    client.call(vm, CREATE_VCPU, 0)
    assert client.fails(vm, BOOT, 1) == errno.EBUSY
    assert client.fails(vm, BOOT, 4097) == errno.EBUSY


def test_who_waits_for_init(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    client.call(vm, BOOT, 1)
    states = []
    for number in range(2):
        client.call(vm, CREATE_VCPU, number)
        state = MpState()
        client.call(vm.vcpus[number], ioctls.KVM_GET_MP_STATE, state)
        states.append(state.mp_state)
    assert states == [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_RUNNABLE]


# KVM_ENABLE_CAP


def test_max_vcpu_id(vm: Vm, client: FakeClient) -> None:
    assert enable(client, vm, Cap.MAX_VCPU_ID, 4097) == errno.EINVAL
    client.call(vm, BOOT, 2)
    assert enable(client, vm, Cap.MAX_VCPU_ID, 1) == errno.EINVAL
    assert enable(client, vm, Cap.MAX_VCPU_ID, 2) == 0
    assert enable(client, vm, Cap.MAX_VCPU_ID, 2) == 0
    assert enable(client, vm, Cap.MAX_VCPU_ID, 3) == errno.EINVAL
    assert client.fails(vm, BOOT, 3) == errno.EINVAL
    assert client.fails(vm, CREATE_VCPU, 2) == errno.EINVAL
    assert client.fails(vm, CREATE_VCPU, 1) == 0


def test_max_vcpu_id_is_settled_by_the_first_vcpu(vm: Vm, client: FakeClient) -> None:
    client.call(vm, CREATE_VCPU, 0)
    assert enable(client, vm, Cap.MAX_VCPU_ID, 8) == errno.EINVAL
    assert enable(client, vm, Cap.MAX_VCPU_ID, 4096) == 0


@pytest.mark.parametrize(
    ("cap", "value", "flags", "error"),
    [
        (Cap.DISABLE_QUIRKS2, 1 << 3, 0, 0),
        (Cap.DISABLE_QUIRKS2, 1 << 63, 0, errno.EINVAL),
        (Cap.DISABLE_QUIRKS, 1 << 63, 0, 0),
        (Cap.MSR_PLATFORM_INFO, 0, 0, 0),
        (Cap.MSR_PLATFORM_INFO, 0, 1, errno.EINVAL),
        (Cap.EXIT_HYPERCALL, 1 << 12, 0, 0),
        (Cap.EXIT_HYPERCALL, 1 << 11, 0, errno.EINVAL),
        (Cap.EXIT_ON_EMULATION_FAILURE, 1, 0, 0),
        (Cap.EXIT_ON_EMULATION_FAILURE, 2, 0, errno.EINVAL),
        (Cap.EXCEPTION_PAYLOAD, 1, 0, 0),
        (Cap.X86_TRIPLE_FAULT_EVENT, 1, 0, 0),
        (Cap.SPLIT_IRQCHIP, 4097, 0, errno.EINVAL),
        (Cap.USER_MEMORY, 0, 0, errno.EINVAL),
        (Cap.S390_PSW, 0, 0, errno.EINVAL),
        (100_000, 0, 0, errno.EINVAL),
    ],
)
def test_enable_cap(vm: Vm, client: FakeClient, cap: int, value: int, flags: int, error: int) -> None:
    assert enable(client, vm, cap, value, flags) == error


def test_quirks_add_up(vm: Vm, client: FakeClient) -> None:
    enable(client, vm, Cap.DISABLE_QUIRKS2, 1 << 3)
    enable(client, vm, Cap.DISABLE_QUIRKS, 1 << 7)
    assert not vm.has_quirk(1 << 3)
    assert not vm.has_quirk(1 << 7)
    assert vm.has_quirk(1 << 8)


# Odds and ends


@pytest.mark.parametrize(("address", "error"), [(0xFEFFD000, 0), (0xFFFFD000, 0), (0xFFFFD001, errno.EINVAL)])
def test_tss_address(vm: Vm, client: FakeClient, address: int, error: int) -> None:
    assert client.fails(vm, ioctls.KVM_SET_TSS_ADDR, address) == error


def test_identity_map_comes_before_vcpus(vm: Vm, client: FakeClient) -> None:
    assert client.fails(vm, ioctls.KVM_SET_IDENTITY_MAP_ADDR, u64(0xFEFFC000)) == 0
    client.call(vm, CREATE_VCPU, 0)
    assert client.fails(vm, ioctls.KVM_SET_IDENTITY_MAP_ADDR, BAD) == errno.EINVAL


@pytest.mark.parametrize(("count", "error"), [(63, errno.EINVAL), (64, 0), (1 << 40, 0)])
def test_mmu_pages(vm: Vm, client: FakeClient, count: int, error: int) -> None:
    assert client.fails(vm, ioctls.KVM_SET_NR_MMU_PAGES, count) == error


def test_tsc_frequency_of_vcpus_to_come(vm: Vm, client: FakeClient) -> None:
    assert client.call(vm, ioctls.KVM_GET_TSC_KHZ) == 1_000_000
    client.call(vm, ioctls.KVM_SET_TSC_KHZ, 2_000_000)
    client.call(vm, CREATE_VCPU, 0)
    assert client.call(vm.vcpus[0], ioctls.KVM_GET_TSC_KHZ) == 2_000_000
    client.call(vm, ioctls.KVM_SET_TSC_KHZ, 0)
    assert client.call(vm, ioctls.KVM_GET_TSC_KHZ) == 1_000_000
