"""MSRs that kvm-amd and kvm-intel treat differently, and those of features that no guest here is shown.

The module is the one of the machine's vendor, whatever the guest's CPUID says (svm_get_msr, svm_set_msr; vmx_get_msr,
vmx_set_msr). What a guest may not touch because its CPUID lacks the feature is Invalid, not Unsupported: a client that
asks for one of the two can tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi import msr_index as M
from kvmfs.abi.msr_bits import FEAT_CTL_LOCKED
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.msr_rules import Unsupported, reads, require, writes

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

TSC_RATIO_DEFAULT: Final = 1 << 32
VM_CR_LOCK, VM_CR_DIS = 1 << 3, 1 << 4
VM_CR_VALID: Final = 0x1F
DE_CFG_LFENCE_SERIALIZE: Final = 1 << 1
DEBUGCTL_LBR_BTF: Final = 3
VMX_CAPABILITIES: Final = range(M.MSR_IA32_VMX_BASIC, 0x492)


def _require_amd() -> None:
    if not host_cpu().is_amd:
        raise Unsupported


def _require_intel() -> None:
    if host_cpu().is_amd:
        raise Unsupported


# Debugging -----


@writes(M.MSR_IA32_DEBUGCTLMSR)
def _write_debugctl(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """It stays 0: AMD's module ignores it without LBR virtualization, Intel's what it knows and does not support."""
    require(host_cpu().is_amd or not value & ~DEBUGCTL_LBR_BTF)


# Speculation: the processor does not -----


@reads(M.MSR_IA32_SPEC_CTRL, M.MSR_IA32_XFD, M.MSR_IA32_XFD_ERR)
def _read_hidden(vcpu: Vcpu, number: int, host: bool) -> int:
    require(host)
    return 0


@writes(M.MSR_IA32_SPEC_CTRL, M.MSR_IA32_XFD, M.MSR_IA32_XFD_ERR, M.MSR_IA32_PRED_CMD)
def _write_hidden(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host and value == 0)


@writes(M.MSR_IA32_FLUSH_CMD)
def _write_flush_cmd(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(False)


@reads(M.MSR_IA32_SMBASE)
def _read_smbase(vcpu: Vcpu, number: int, host: bool) -> int:
    """There is no SMM."""
    require(False)
    return 0


@writes(M.MSR_IA32_SMBASE)
def _write_smbase(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(False)


# AMD -----


@reads(M.MSR_AMD64_VIRT_SPEC_CTRL)
def _read_virt_spec_ctrl(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_amd()
    require(host)
    return 0


@writes(M.MSR_AMD64_VIRT_SPEC_CTRL)
def _write_virt_spec_ctrl(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_amd()
    require(host and value == 0)


@reads(M.MSR_AMD64_TSC_RATIO)
def _read_tsc_ratio(vcpu: Vcpu, number: int, host: bool) -> int:
    """For nested guests, which there are none of."""
    _require_amd()
    require(host)
    return TSC_RATIO_DEFAULT


@writes(M.MSR_AMD64_TSC_RATIO)
def _write_tsc_ratio(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_amd()
    require(host and value in (0, TSC_RATIO_DEFAULT))  # QEMU 6.2 sets 0


@reads(M.MSR_VM_CR)
def _read_vm_cr(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_amd()
    return vcpu.msr.get(number, 0)


@writes(M.MSR_VM_CR)
def _write_vm_cr(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """svm_set_vm_cr: once SVM is disabled it stays so."""
    _require_amd()
    require(not value & ~VM_CR_VALID)
    old = vcpu.msr.get(number, 0)
    kept = VM_CR_LOCK | VM_CR_DIS if old & VM_CR_DIS else 0
    vcpu.msr[number] = old & kept | value & ~kept


@writes(M.MSR_VM_IGNNE)
def _write_vm_ignne(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_amd()


@reads(M.MSR_F15H_IC_CFG)
def _read_ic_cfg(vcpu: Vcpu, number: int, host: bool) -> int:
    """Guests of that family and these models look whether a workaround is in place."""
    _require_amd()
    entry = vcpu.cpuid.find(1)
    if entry is None:
        raise Unsupported
    family = (entry.eax >> 8 & 15) + (entry.eax >> 20 & 0xFF if entry.eax >> 8 & 15 == 15 else 0)
    model = entry.eax >> 4 & 15 | (entry.eax >> 12 & 0xF0 if family >= 6 else 0)
    return 0x1E if family == 0x15 and 2 <= model < 0x20 else 0


@reads(M.MSR_AMD64_DE_CFG)
def _read_de_cfg(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_amd()
    return vcpu.msr.get(number, 0)


@writes(M.MSR_AMD64_DE_CFG)
def _write_de_cfg(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_amd()
    require(not value & ~DE_CFG_LFENCE_SERIALIZE)
    vcpu.msr[number] = value


# Intel -----


@reads(M.MSR_IA32_FEAT_CTL)
def _read_feat_ctl(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_intel()
    return vcpu.msr.get(number, 0)


@writes(M.MSR_IA32_FEAT_CTL)
def _write_feat_ctl(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """is_vmx_feature_control_msr_valid, with nothing to enable: all that can be set is the lock."""
    _require_intel()
    locked = vcpu.msr.get(number, 0) & FEAT_CTL_LOCKED
    require(not value & ~FEAT_CTL_LOCKED and (host or not locked))
    vcpu.msr[number] = value


@reads(*VMX_CAPABILITIES)
def _read_vmx(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_intel()
    require(False)
    return 0


@writes(*VMX_CAPABILITIES)
def _write_vmx(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_intel()
    require(False)


@reads(M.MSR_IA32_UMWAIT_CONTROL)
def _read_umwait(vcpu: Vcpu, number: int, host: bool) -> int:
    _require_intel()
    require(host)
    return vcpu.msr.get(number, 0)


@writes(M.MSR_IA32_UMWAIT_CONTROL)
def _write_umwait(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    _require_intel()
    require(host and not value & ~0xFFFF_FFFD)
    vcpu.msr[number] = value
