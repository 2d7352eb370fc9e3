"""Machine check banks: KVM_X86_SETUP_MCE, KVM_X86_SET_MCE and their MSRs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi import msr_index as M
from kvmfs.abi.apic import APIC_LVTCMCI
from kvmfs.abi.debug import MC_VECTOR, X86Mce
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import u64
from kvmfs.abi.limits import KVM_MAX_MCE_BANKS
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.msr_rules import MASK64, reads, require, writes
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

SUPPORTED_MCE_CAP: Final = B.MCG_CTL_P | B.MCG_SER_P | B.MCG_CMCI_P
"""kvm_caps.supported_mce_cap of a KVM on Intel, but for local machine checks. Corrected-error interrupts are emulated
alone, so that they work whoever made the host's processor."""

CTL2_MASK: Final = B.MCI_CTL2_CMCI_EN | B.MCI_CTL2_CMCI_THRESHOLD_MASK

BANKS: Final = range(M.MSR_IA32_MC0_CTL, M.MSR_IA32_MC0_CTL + 4 * KVM_MAX_MCE_BANKS)
CTL2: Final = range(M.MSR_IA32_MC0_CTL2, M.MSR_IA32_MC0_CTL2 + KVM_MAX_MCE_BANKS)
CTL, STATUS, ADDR, MISC = range(4)

table: Table[Vcpu] = Table(Fd.VCPU)


class MachineCheck:
    """What a vCPU reports of machine checks."""

    def __init__(self) -> None:
        self.cap = KVM_MAX_MCE_BANKS
        self.status = 0
        self.ctl = 0
        self.banks = [0] * (4 * KVM_MAX_MCE_BANKS)
        self.ctl2 = [0] * KVM_MAX_MCE_BANKS

    @property
    def bank_count(self) -> int:
        return self.cap & B.MCG_BANKCNT_MASK


@table.ioctl(ioctls.KVM_X86_SETUP_MCE)
def setup_mce(vcpu: Vcpu, caller: Caller, arg: u64) -> None:
    cap, mce = arg.value, vcpu.mce
    banks = cap & 0xFF
    if not 0 < banks <= KVM_MAX_MCE_BANKS or cap & ~(SUPPORTED_MCE_CAP | 0xFF | 0xFF0000):
        fail(errno.EINVAL)
    mce.cap = cap
    if cap & B.MCG_CTL_P:
        mce.ctl = MASK64
    for bank in range(banks):
        mce.banks[4 * bank + CTL] = MASK64
        if cap & B.MCG_CMCI_P:
            mce.ctl2[bank] = 0
    if vcpu.lapic:
        vcpu.lapic.set_lvt_count(7 if cap & B.MCG_CMCI_P else 6)


@table.ioctl(ioctls.KVM_X86_SET_MCE)
def set_mce(vcpu: Vcpu, caller: Caller, arg: X86Mce) -> None:
    mce = vcpu.mce
    if arg.bank >= mce.bank_count or not arg.status & B.MCI_STATUS_VAL:
        fail(errno.EINVAL)
    at = 4 * arg.bank
    uncorrected = bool(arg.status & B.MCI_STATUS_UC)
    in_exception = arg.status & (B.MCI_STATUS_PCC | B.MCI_STATUS_S | B.MCI_STATUS_AR)
    if uncorrected and not arg.mcg_status and not in_exception:  # no action required: logged only
        mce.banks[at + STATUS], mce.banks[at + ADDR], mce.banks[at + MISC] = arg.status, arg.addr, arg.misc
        mce.status = arg.mcg_status
        if vcpu.lapic and mce.cap & B.MCG_CMCI_P and mce.ctl2[arg.bank] & B.MCI_CTL2_CMCI_EN:
            vcpu.lapic.local_deliver(APIC_LVTCMCI)
        return
    if uncorrected and ((mce.cap & B.MCG_CTL_P and mce.ctl != MASK64) or mce.banks[at + CTL] != MASK64):
        return  # reporting is disabled, for all or for the bank
    overflow = B.MCI_STATUS_OVER if mce.banks[at + STATUS] & B.MCI_STATUS_VAL else 0
    if uncorrected:
        if mce.status & B.MCG_STATUS_MCIP or not vcpu.state[S.CR4] & S.CR4_MCE:
            vcpu.state[Cpu.TRIPLE_FAULT] = 1
            return
        mce.status = arg.mcg_status
        vcpu.queue_exception(MC_VECTOR)
    elif mce.banks[at + STATUS] & B.MCI_STATUS_VAL and mce.banks[at + STATUS] & B.MCI_STATUS_UC:
        mce.banks[at + STATUS] |= B.MCI_STATUS_OVER
        return
    mce.banks[at + STATUS], mce.banks[at + ADDR], mce.banks[at + MISC] = arg.status | overflow, arg.addr, arg.misc


@reads(M.MSR_IA32_P5_MC_ADDR, M.MSR_IA32_P5_MC_TYPE)
def _read_p5(vcpu: Vcpu, number: int, host: bool) -> int:
    return 0


@reads(M.MSR_IA32_MCG_CAP)
def _read_cap(vcpu: Vcpu, number: int, host: bool) -> int:
    return vcpu.mce.cap


@reads(M.MSR_IA32_MCG_STATUS)
def _read_status(vcpu: Vcpu, number: int, host: bool) -> int:
    return vcpu.mce.status


@writes(M.MSR_IA32_MCG_STATUS)
def _write_status(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    vcpu.mce.status = value


@reads(M.MSR_IA32_MCG_CTL)
def _read_ctl(vcpu: Vcpu, number: int, host: bool) -> int:
    require(host or bool(vcpu.mce.cap & B.MCG_CTL_P))
    return vcpu.mce.ctl


@writes(M.MSR_IA32_MCG_CTL)
def _write_ctl(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(bool(vcpu.mce.cap & B.MCG_CTL_P) or (host and not value))
    require(value in (0, MASK64))
    vcpu.mce.ctl = value


@reads(*CTL2)
def _read_ctl2(vcpu: Vcpu, number: int, host: bool) -> int:
    bank = number - CTL2.start
    require(bank < vcpu.mce.bank_count and (host or bool(vcpu.mce.cap & B.MCG_CMCI_P)))
    return vcpu.mce.ctl2[bank]


@writes(*CTL2)
def _write_ctl2(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    mce, bank = vcpu.mce, number - CTL2.start
    require(bank < mce.bank_count and (bool(mce.cap & B.MCG_CMCI_P) or (host and not value)))
    require(not value & ~CTL2_MASK)
    mce.ctl2[bank] = value


@reads(*BANKS)
def _read_bank(vcpu: Vcpu, number: int, host: bool) -> int:
    require(number - BANKS.start < 4 * vcpu.mce.bank_count)
    return vcpu.mce.banks[number - BANKS.start]


@writes(*BANKS)
def _write_bank(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    at = number - BANKS.start
    require(at < 4 * vcpu.mce.bank_count)
    if at % 4 == CTL:
        # 0 or all ones, but old kernels clear bit 10 of bank 4, or bit 0
        require(value == 0 or value | 1 << 10 | 1 == MASK64)
    if at % 4 == STATUS and value and not host:
        require(vcpu.cpuid.is_amd and bool(vcpu.msr.get(M.MSR_K7_HWCR, 0) & 1 << 18))
    vcpu.mce.banks[at] = value
