"""The CPUID of a vCPU, and what follows from it."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi import msr_index as M
from kvmfs.abi.cpuid import Cpuid2
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.calls import cpuid_of_all, set_msr
from tests.unit.kvm.fakes import FakeClient


def test_cpuid_comes_back(vcpu: Vcpu, client: FakeClient) -> None:
    assert cpuid_of_all(client, vcpu) == 0
    count = len(supported_cpuid().entries)
    header = Cpuid2(nent=count - 1)
    assert client.fails(vcpu, ioctls.KVM_GET_CPUID2, header) == errno.E2BIG
    assert header.nent == count - 1
    header.nent = count + 5
    client.call(vcpu, ioctls.KVM_GET_CPUID2, header)
    assert header.nent == count
    assert client.fails(vcpu, ioctls.KVM_SET_CPUID2, Cpuid2(nent=257)) == errno.E2BIG


def test_cpuid_follows_the_state(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    leaf = vcpu.cpuid.find(1)
    assert leaf
    assert leaf.edx >> 9 & 1  # the APIC is on
    assert set_msr(client, vcpu, M.MSR_IA32_APICBASE, 0xFEE00100) == 1
    assert not leaf.edx >> 9 & 1
    table = vcpu.state[S.CPUID_ENTRIES]
    assert table
    assert vcpu.state[S.CPUID_COUNT] == len(vcpu.cpuid.entries)


@pytest.mark.parametrize(("eax", "error"), [(48 << 8 | 40, 0), (57 << 8 | 40, 0), (40, 0), (47 << 8 | 40, 22)])
def test_linear_addresses_have_48_or_57_bits(vcpu: Vcpu, client: FakeClient, eax: int, error: int) -> None:
    assert cpuid_of_all(client, vcpu, {0x80000008: {"eax": eax}}) == error


def test_cpuid_of_a_guest_that_has_run(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    vcpu.state[Cpu.HAS_RUN] = 1
    assert cpuid_of_all(client, vcpu) == 0
    assert cpuid_of_all(client, vcpu, {7: {"ebx": 0}}) == errno.EINVAL
    assert cpuid_of_all(client, vcpu, {0x80000008: {"eax": 30}}) == errno.EINVAL


def test_a_guest_without_a_feature_cannot_use_it(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    everything = vcpu.state[S.FEATURES]
    assert not vcpu.state[S.CR4_RESERVED] & S.CR4_SMEP
    cpuid_of_all(client, vcpu, {7: {"ebx": 0}})
    assert vcpu.state[S.FEATURES] != everything
    assert vcpu.state[S.CR4_RESERVED] & S.CR4_SMEP
