"""MSRs and machine checks of a vCPU."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi import msr_index as M
from kvmfs.abi.debug import X86Mce
from kvmfs.abi.layout import u64
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.calls import get_msr, set_msr
from tests.unit.kvm.fakes import FakeClient


def test_every_listed_msr_is_saved_and_restored(vcpu: Vcpu, client: FakeClient) -> None:
    from kvmfs.kvm.msrs import index_list

    for number in index_list():
        value = get_msr(client, vcpu, number)
        assert value is not None, hex(number)
        assert set_msr(client, vcpu, number, value) == 1, hex(number)


@pytest.mark.parametrize(
    ("number", "value", "ok"),
    [
        (M.MSR_STAR, 0x1234_5678_9ABC_DEF0, True),
        (M.MSR_LSTAR, 0xFFFF_8000_0000_0000, True),
        (M.MSR_LSTAR, 0x80_0000_0000_0000, True),  # 57 bits, as processors with LA57 have it in any paging mode
        (M.MSR_LSTAR, 0x100_0000_0000_0000, False),  # not canonical
        (M.MSR_KERNEL_GS_BASE, 1 << 62, False),
        (M.MSR_FS_BASE, 0x7FFF_FFFF_FFFF, True),
        (M.MSR_IA32_CR_PAT, 0x0007_0406_0007_0406, True),
        (M.MSR_IA32_CR_PAT, 2, False),
        (M.MSR_IA32_CR_PAT, 8, False),
        (M.MSR_MTRRdefType, 0xC06, True),
        (M.MSR_MTRRdefType, 0xC02, False),
        (M.MSR_MTRRdefType, 0x1000, False),
        (M.MSR_MTRRfix64K_00000, 0x0606060606060606, True),
        (M.MSR_MTRRfix64K_00000, 0x0606060606060602, False),
        (0x200, 0x8000_0006, True),
        (0x200, 0x8000_0106, False),
        (0x201, 0x8000_0800, True),
        (0x201, 0x8000_0400, False),
        (0x210, 0, False),  # there are eight
        (M.MSR_IA32_MCG_STATUS, 5, True),
        (M.MSR_IA32_MC0_CTL, (1 << 64) - 1, True),
        (M.MSR_IA32_MC0_CTL, 5, False),
        (M.MSR_IA32_MC0_STATUS, 5, True),
        (M.MSR_IA32_MC0_CTL + 4 * 32, 0, False),  # beyond the last bank
        (M.MSR_IA32_APICBASE, 0xFEE00900, True),
        (M.MSR_IA32_APICBASE, 0xFEE00901, False),
        (M.MSR_EFER, 1, True),
        (M.MSR_EFER, 2, False),
        (M.MSR_IA32_XSS, 1, False),
        (M.MSR_PLATFORM_INFO, 0xFF00, True),
        (M.MSR_IA32_PERF_STATUS, 1, False),
        (0xBAD, 0, False),
    ],
)
def test_set_msr(vcpu: Vcpu, client: FakeClient, number: int, value: int, ok: bool) -> None:
    assert set_msr(client, vcpu, number, value) == ok
    if ok:
        assert get_msr(client, vcpu, number) == value


def test_the_guest_has_fewer_rights(vcpu: Vcpu) -> None:
    from kvmfs.kvm.msr_rules import Invalid, Unsupported
    from kvmfs.kvm.msrs import read_msr, write_msr

    assert read_msr(vcpu, M.MSR_PLATFORM_INFO, host=False) == 1 << 31
    vcpu.vm.guest_can_read_platform_info = False
    with pytest.raises(Invalid):
        read_msr(vcpu, M.MSR_PLATFORM_INFO, host=False)
    for number in (M.MSR_PLATFORM_INFO, M.MSR_IA32_ARCH_CAPABILITIES, M.MSR_SMI_COUNT):
        with pytest.raises(Invalid):
            write_msr(vcpu, number, 1 << 31, host=False)
    with pytest.raises(Unsupported):
        read_msr(vcpu, 0xBAD, host=False)


def test_feature_msrs_do_not_change_under_a_guest(vcpu: Vcpu, client: FakeClient) -> None:
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 1) == 1
    vcpu.state[Cpu.HAS_RUN] = 1
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 1) == 1
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 2) == 0
    assert set_msr(client, vcpu, M.MSR_IA32_UCODE_REV, 2) == 1


@pytest.mark.parametrize(
    ("cap", "error"),
    [(0, 22), (10, 0), (32, 0), (33, 22), (10 | 1 << 8 | 1 << 24, 0), (10 | 1 << 10, 0), (10 | 1 << 27, 22)],
)
def test_setup_mce(vcpu: Vcpu, client: FakeClient, cap: int, error: int) -> None:
    assert client.fails(vcpu, ioctls.KVM_X86_SETUP_MCE, u64(cap)) == error


def test_uncorrected_error_without_a_handler_shuts_down(vcpu: Vcpu, client: FakeClient) -> None:
    client.call(vcpu, ioctls.KVM_X86_SETUP_MCE, u64(10 | 1 << 8))
    assert client.fails(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=10, status=1 << 63)) == errno.EINVAL
    assert client.fails(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=0, status=0)) == errno.EINVAL
    status = 1 << 63 | 1 << 61 | 1 << 57
    client.call(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=1, status=status, mcg_status=5))
    assert vcpu.state[Cpu.TRIPLE_FAULT] == 1
    vcpu.state[S.CR4] = S.CR4_MCE
    client.call(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=1, status=status, mcg_status=5))
    assert (vcpu.state[S.EXC_PENDING], vcpu.state[S.EXC_VECTOR]) == (1, 18)
    assert get_msr(client, vcpu, M.MSR_IA32_MC0_STATUS + 4) == status
