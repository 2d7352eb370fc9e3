from __future__ import annotations

import pytest

from kvmfs.abi.vm import KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM
from kvmfs.kvm.system import System
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import CLIENT, FakeClient, FakeNative


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
