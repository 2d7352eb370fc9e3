from __future__ import annotations

import pytest

from kvmfs.abi.vm import KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM
from kvmfs.kvm import tsc
from kvmfs.kvm.system import System
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import CLIENT, FakeClient, FakeNative


@pytest.fixture(autouse=True)
def _frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose TSC runs at 1 GHz, without measuring it."""
    for module in ("vm", "vcpu", "tsc_ioctls"):
        monkeypatch.setattr(f"kvmfs.kvm.{module}.host_khz", lambda rdtsc: 1_000_000)
    monkeypatch.setattr(tsc, "host_khz", lambda rdtsc: 1_000_000)


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def native() -> FakeNative:
    return FakeNative()


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
def vm(native: FakeNative) -> Vm:
    return Vm(native, KVM_X86_DEFAULT_VM, CLIENT)


@pytest.fixture
def protected(native: FakeNative) -> Vm:
    """A VM with private memory."""
    return Vm(native, KVM_X86_SW_PROTECTED_VM, CLIENT)


@pytest.fixture
def vcpu(vm: Vm, client: FakeClient) -> Vcpu:
    from kvmfs.abi.ioctls import KVM_CREATE_VCPU

    client.call(vm, KVM_CREATE_VCPU, 0)
    return vm.vcpus[0]
