"""The CPUID of a vCPU, and what follows from it."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features

from kvmfs.abi import ioctls
from kvmfs.abi import msr_index as M
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf1Edx, LeafD_1Eax
from kvmfs.abi.exits import Exit
from kvmfs.abi.vcpu import Sregs
from kvmfs.kvm import guest_cpuid, xstate
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.calls import cpuid_of_all, set_msr
from tests.unit.kvm.fakes import FakeClient
from tests.unit.kvm.inprocess import Machine


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


@pytest.mark.parametrize("leaf", [0, 1])
def test_xsave_area_follows_xcr0(leaf: int) -> None:
    """CPUID as soon as XSETBV is done, in the guest and for the client."""
    machine = Machine("0f01d1" + "b80d000000" + f"b9{leaf:02x}000000" + "0fa2f4")  # xsetbv; cpuid 0xd, leaf
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.cr4 |= S.CR4_OSXSAVE
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    xcr0 = supported_cpuid().xcr0
    machine.set_regs(rax=xcr0, rcx=0, rdx=0)
    machine.run()
    compacts = supported_cpuid().has(LeafD_1Eax.XSAVEC) or supported_cpuid().has(LeafD_1Eax.XSAVES)
    size = xstate.required_size(xcr0, compacted=bool(leaf)) if not leaf or compacts else 0
    assert machine.regs.rbx == size
    guest_cpuid.update_runtime(machine.vcpu, machine.vcpu.cpuid)
    entry = machine.vcpu.cpuid.find(0xD, leaf)
    assert entry is not None
    assert entry.ebx == size


@pytest.mark.parametrize("named", [True, False])
def test_an_instruction_that_the_guests_cpuid_does_not_name(named: bool) -> None:
    machine = Machine("0f57c0" + "f4")  # xorps xmm0, xmm0
    machine.set_cpuid(machine.vcpu, {} if named else {1: {"edx": 0}})
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.cr4 |= S.CR4_OSFXSR
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    machine.run()
    assert machine.page.exit_reason == (Exit.HLT if named else Exit.SHUTDOWN)


def test_a_guest_is_given_nothing_that_the_host_cannot_execute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client's table says: floating point is the host's own instructions."""
    asked = guest_cpuid.GuestCpuid([CpuidEntry2(function=1, ecx=Leaf1Ecx.AVX, edx=Leaf1Edx.XMM2)])

    def given(flags: frozenset[str]) -> set[str]:
        monkeypatch.setattr(guest_cpuid, "host_cpu", lambda: replace(host_cpu(), flags=flags))
        words = list(asked.feature_words())
        return {name for name in features.NAMES if words[features.word(name) // 8] & features.mask(name)}

    assert given(frozenset({"avx"})) == {"AVX", "XMM2"}
    assert given(frozenset()) == {"XMM2"}
