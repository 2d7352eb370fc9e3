"""How each MSR reads and writes: the rules of kvm_get_msr_common and kvm_set_msr_common, and of vmx.c and svm.c where
the two agree or the guest's vendor decides.

A rule gets the vCPU, the number and whether the access is the client's (`host`) or the guest's. MSRs that execution
itself uses live in the vCPU block, all others in `vcpu.msr`, by number; what is not there reads as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, TypeAlias

from kvmfs.abi import msr_bits as B
from kvmfs.abi import msr_index as M
from kvmfs.abi import para as P
from kvmfs.abi.apic import APIC_BASE_MSR
from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf7Ebx, Leaf7Ecx, Leaf7Edx, LeafD_1Eax
from kvmfs.abi.cpuid_extended import Leaf80000001Ecx, Leaf80000001Edx
from kvmfs.abi.vm import KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
from kvmfs.jit import state as S

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu


class Invalid(Exception):
    """The access is not allowed: #GP in the guest (KVM's return value 1)."""


class Unsupported(Exception):
    """There is no such MSR (KVM_MSR_RET_UNSUPPORTED)."""


Reader: TypeAlias = "Callable[[Vcpu, int, bool], int]"
Writer: TypeAlias = "Callable[[Vcpu, int, int, bool], None]"

READ: Final[dict[int, Reader]] = {}
WRITE: Final[dict[int, Writer]] = {}

MASK64: Final = (1 << 64) - 1


def reads(*numbers: int) -> Callable[[Reader], Reader]:
    def register(rule: Reader) -> Reader:
        READ.update(dict.fromkeys(numbers, rule))
        return rule

    return register


def writes(*numbers: int) -> Callable[[Writer], Writer]:
    def register(rule: Writer) -> Writer:
        WRITE.update(dict.fromkeys(numbers, rule))
        return rule

    return register


def require(condition: bool) -> None:
    if not condition:
        raise Invalid


def is_canonical(address: int, bits: int) -> bool:
    """Whether a linear address of `bits` bits is sign-extended."""
    top = address >> (bits - 1)
    return top in (0, (1 << (65 - bits)) - 1)


# In the vCPU block -----

_WORDS: Final = {
    M.MSR_STAR: S.STAR,
    M.MSR_LSTAR: S.LSTAR,
    M.MSR_CSTAR: S.CSTAR,
    M.MSR_SYSCALL_MASK: S.SFMASK,
    M.MSR_KERNEL_GS_BASE: S.KERNEL_GS_BASE,
    M.MSR_FS_BASE: S.FS + S.BASE,
    M.MSR_GS_BASE: S.GS + S.BASE,
    M.MSR_IA32_SYSENTER_CS: S.SYSENTER_CS,
    M.MSR_IA32_SYSENTER_ESP: S.SYSENTER_ESP,
    M.MSR_IA32_SYSENTER_EIP: S.SYSENTER_EIP,
    M.MSR_TSC_AUX: S.TSC_AUX,
    M.MSR_IA32_CR_PAT: S.PAT,
    M.MSR_EFER: S.EFER,
    M.MSR_IA32_APICBASE: S.APIC_BASE,
    M.MSR_IA32_XSS: S.XSS,
    M.MSR_IA32_MISC_ENABLE: S.MISC_ENABLE,
}


@reads(*_WORDS)
def _read_word(vcpu: Vcpu, number: int, host: bool) -> int:
    if number == M.MSR_TSC_AUX and not host:
        require(vcpu.cpuid.has(Leaf80000001Edx.RDTSCP) or vcpu.cpuid.has(Leaf7Ecx.RDPID))
    if number == M.MSR_IA32_XSS and not host:
        require(vcpu.cpuid.has(LeafD_1Eax.XSAVES))
    return vcpu.state[_WORDS[number]]


@writes(M.MSR_STAR, M.MSR_SYSCALL_MASK, M.MSR_IA32_SYSENTER_CS)
def _write_word(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    vcpu.state[_WORDS[number]] = value


@writes(M.MSR_FS_BASE, M.MSR_GS_BASE, M.MSR_KERNEL_GS_BASE, M.MSR_CSTAR, M.MSR_LSTAR)
def _write_address(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(is_canonical(value, vcpu.max_virtual_bits))
    vcpu.state[_WORDS[number]] = value
    if number in (M.MSR_FS_BASE, M.MSR_GS_BASE):
        vcpu.state.derive()


@writes(M.MSR_IA32_SYSENTER_ESP, M.MSR_IA32_SYSENTER_EIP)
def _write_sysenter(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if vcpu.cpuid.is_amd:
        value &= 0xFFFF_FFFF  # the rest does not exist there
    elif value >> 47 & 1:
        value |= MASK64 << 47 & MASK64
    else:
        value &= (1 << 47) - 1
    vcpu.state[_WORDS[number]] = value


@writes(M.MSR_TSC_AUX)
def _write_tsc_aux(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host or vcpu.cpuid.has(Leaf80000001Edx.RDTSCP) or vcpu.cpuid.has(Leaf7Ecx.RDPID))
    require(vcpu.cpuid.is_amd or not value >> 32)
    vcpu.state[S.TSC_AUX] = value & 0xFFFF_FFFF


@writes(M.MSR_IA32_CR_PAT)
def _write_pat(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(not value & 0xF8F8F8F8F8F8F8F8 and (value | (value & 0x0202020202020202) << 1) == value)
    vcpu.state[S.PAT] = value


@writes(M.MSR_EFER)
def _write_efer(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    state = vcpu.state
    require(not value & vcpu.efer_reserved_by_kvm)
    if not host:
        require(vcpu.is_valid_efer(value))
        require(not state.is_paging or not (state[S.EFER] ^ value) & B.EFER_LME)
    state[S.EFER] = value & ~B.EFER_LMA | state[S.EFER] & B.EFER_LMA
    state.derive()


@writes(M.MSR_IA32_APICBASE)
def _write_apic_base(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(vcpu.set_apic_base(value, host))


@writes(M.MSR_IA32_XSS)
def _write_xss(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host or vcpu.cpuid.has(LeafD_1Eax.XSAVES))
    require(value == 0)  # no supervisor states are supported
    vcpu.state[S.XSS] = value
    vcpu.update_cpuid_runtime()


@writes(M.MSR_IA32_MISC_ENABLE)
def _write_misc_enable(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    old = vcpu.state[S.MISC_ENABLE]
    if not host:
        read_only = B.MSR_IA32_MISC_ENABLE_PEBS_UNAVAIL | B.MSR_IA32_MISC_ENABLE_BTS_UNAVAIL
        require(not (old ^ value) & read_only)
        value = value & ~B.MSR_IA32_MISC_ENABLE_EMON | old & B.MSR_IA32_MISC_ENABLE_EMON
    changes_mwait = (old ^ value) & B.MSR_IA32_MISC_ENABLE_MWAIT
    if changes_mwait and not vcpu.vm.has_quirk(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT):
        require(vcpu.cpuid.has(Leaf1Ecx.XMM3))
        vcpu.state[S.MISC_ENABLE] = value
        vcpu.update_cpuid_runtime()
    else:
        vcpu.state[S.MISC_ENABLE] = value


# Time -----


@reads(M.MSR_IA32_TSC)
def _read_tsc(vcpu: Vcpu, number: int, host: bool) -> int:
    return vcpu.tsc.now()


@writes(M.MSR_IA32_TSC)
def _write_tsc(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if host:
        vcpu.tsc.synchronize(value)
    else:
        vcpu.msr[M.MSR_IA32_TSC_ADJUST] = (vcpu.msr.get(M.MSR_IA32_TSC_ADJUST, 0) + vcpu.tsc.set(value)) & MASK64


@writes(M.MSR_IA32_TSC_ADJUST)
def _write_tsc_adjust(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if not vcpu.cpuid.has(Leaf7Ebx.TSC_ADJUST):
        return
    if not host:
        vcpu.tsc.adjust(value - vcpu.msr.get(number, 0))
    vcpu.msr[number] = value


# The APIC -----

_APIC: Final = (M.MSR_IA32_TSC_DEADLINE, *range(APIC_BASE_MSR, APIC_BASE_MSR + 0x100))


@reads(*_APIC)
def _read_apic(vcpu: Vcpu, number: int, host: bool) -> int:
    if vcpu.lapic is None:
        require(number == M.MSR_IA32_TSC_DEADLINE)
        return 0
    value = vcpu.lapic.read_msr(number)
    if value is None:
        raise Invalid
    return value


@writes(*_APIC)
def _write_apic(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if vcpu.lapic is None:
        require(number == M.MSR_IA32_TSC_DEADLINE)
    else:
        require(vcpu.lapic.write_msr(number, value))


@reads(P.MSR_KVM_PV_EOI_EN)
def _read_pv_eoi(vcpu: Vcpu, number: int, host: bool) -> int:
    if not vcpu.pv_has(P.KVM_FEATURE_PV_EOI):
        raise Unsupported
    return vcpu.pv_eoi


@writes(P.MSR_KVM_PV_EOI_EN)
def _write_pv_eoi(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """kvm_lapic_set_pv_eoi: where the guest clears a bit for an EOI."""
    if not vcpu.pv_has(P.KVM_FEATURE_PV_EOI):
        raise Unsupported
    gpa = value & ~P.KVM_MSR_ENABLED
    require(not gpa & 3)
    require(not value & P.KVM_MSR_ENABLED or vcpu.vm.memory.overlaps(-1, gpa >> 12, (gpa >> 12) + 1))
    vcpu.pv_eoi = value


@reads(P.MSR_KVM_POLL_CONTROL)
def _read_poll_control(vcpu: Vcpu, number: int, host: bool) -> int:
    if not vcpu.pv_has(P.KVM_FEATURE_POLL_CONTROL):
        raise Unsupported
    return vcpu.msr.get(number, 1)


@writes(P.MSR_KVM_POLL_CONTROL)
def _write_poll_control(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """Whether a HLT may poll before it sleeps. It never does, as in KVM with halt_poll_ns=0."""
    if not vcpu.pv_has(P.KVM_FEATURE_POLL_CONTROL):
        raise Unsupported
    require(value <= 1)
    vcpu.msr[number] = value


# Kept, with conditions -----


def _keep(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    vcpu.msr[number] = value


def _read_kept(vcpu: Vcpu, number: int, host: bool) -> int:
    return vcpu.msr.get(number, 0)


_KEPT: Final = (M.MSR_IA32_POWER_CTL, M.MSR_AMD64_OSVW_ID_LENGTH, M.MSR_AMD64_OSVW_STATUS)
reads(*_KEPT, M.MSR_IA32_TSC_ADJUST, M.MSR_IA32_UCODE_REV, M.MSR_K7_HWCR, M.MSR_MISC_FEATURES_ENABLES, M.MSR_SMI_COUNT)(
    _read_kept
)
writes(M.MSR_IA32_POWER_CTL)(_keep)


@reads(M.MSR_AMD64_OSVW_ID_LENGTH, M.MSR_AMD64_OSVW_STATUS)
def _read_osvw(vcpu: Vcpu, number: int, host: bool) -> int:
    require(vcpu.cpuid.has(Leaf80000001Ecx.OSVW))
    return vcpu.msr.get(number, 0)


@writes(M.MSR_AMD64_OSVW_ID_LENGTH, M.MSR_AMD64_OSVW_STATUS)
def _write_osvw(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(vcpu.cpuid.has(Leaf80000001Ecx.OSVW))
    vcpu.msr[number] = value


@writes(M.MSR_IA32_UCODE_REV)
def _write_ucode_rev(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if host:
        vcpu.msr[number] = value


@writes(M.MSR_SMI_COUNT)
def _write_smi_count(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host)
    vcpu.msr[number] = value


@writes(M.MSR_K7_HWCR)
def _write_hwcr(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    value &= ~(0x40 | 0x100 | 0x8)  # flush filter disable, IGNNE emulation, TLB cache disable: ignored
    require(not value & ~(1 << 18 | 1 << 24))  # McStatusWrEn, TscFreqSel
    vcpu.msr[number] = value


@reads(M.MSR_PLATFORM_INFO)
def _read_platform_info(vcpu: Vcpu, number: int, host: bool) -> int:
    require(host or vcpu.vm.guest_can_read_platform_info)
    return vcpu.msr.get(number, 0)


@writes(M.MSR_PLATFORM_INFO)
def _write_platform_info(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    faults = vcpu.msr.get(M.MSR_MISC_FEATURES_ENABLES, 0) & B.MSR_MISC_FEATURES_ENABLES_CPUID_FAULT
    require(host and (bool(value & B.MSR_PLATFORM_INFO_CPUID_FAULT) or not faults))
    vcpu.msr[number] = value


@writes(M.MSR_MISC_FEATURES_ENABLES)
def _write_misc_features(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(not value & ~B.MSR_MISC_FEATURES_ENABLES_CPUID_FAULT)
    can_fault = vcpu.msr.get(M.MSR_PLATFORM_INFO, 0) & B.MSR_PLATFORM_INFO_CPUID_FAULT
    require(not value or bool(can_fault))
    vcpu.msr[number] = value


@reads(M.MSR_IA32_ARCH_CAPABILITIES)
def _read_arch_capabilities(vcpu: Vcpu, number: int, host: bool) -> int:
    require(host or vcpu.cpuid.has(Leaf7Edx.ARCH_CAPABILITIES))
    return vcpu.msr.get(number, 0)


@writes(M.MSR_IA32_ARCH_CAPABILITIES)
def _write_feature(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host)
    vcpu.msr[number] = value


@reads(M.MSR_IA32_PERF_CAPABILITIES)
def _read_perf_capabilities(vcpu: Vcpu, number: int, host: bool) -> int:
    require(host or vcpu.cpuid.has(Leaf1Ecx.PDCM))
    return vcpu.msr.get(number, 0)


@writes(M.MSR_IA32_PERF_CAPABILITIES)
def _write_perf_capabilities(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(host and value == 0)  # there are no counters to be capable of anything


# Constant -----


def constant(numbers: Iterable[int], value: int) -> None:
    reads(*numbers)(lambda vcpu, number, host: value)


def ignored(*numbers: int) -> None:
    writes(*numbers)(lambda vcpu, number, value, host: None)


constant(
    (
        M.MSR_IA32_PLATFORM_ID, M.MSR_IA32_EBL_CR_POWERON, M.MSR_IA32_LASTBRANCHFROMIP, M.MSR_IA32_LASTBRANCHTOIP,
        M.MSR_IA32_LASTINTFROMIP, M.MSR_IA32_LASTINTTOIP, M.MSR_IA32_DEBUGCTLMSR, M.MSR_AMD64_SYSCFG,
        M.MSR_K8_TSEG_ADDR, M.MSR_K8_TSEG_MASK, M.MSR_VM_HSAVE_PA, M.MSR_K8_INT_PENDING_MSG, M.MSR_AMD64_NB_CFG,
        M.MSR_FAM10H_MMIO_CONF_BASE, M.MSR_AMD64_BU_CFG2, M.MSR_IA32_PERF_CTL, M.MSR_AMD64_DC_CFG, M.MSR_AMD64_TW_CFG,
        M.MSR_F15H_EX_CFG, M.MSR_RAPL_POWER_UNIT, M.MSR_PP0_ENERGY_STATUS, M.MSR_PP1_ENERGY_STATUS,
        M.MSR_PKG_ENERGY_STATUS, M.MSR_DRAM_ENERGY_STATUS, M.MSR_P6_PERFCTR0, M.MSR_P6_PERFCTR1, M.MSR_P6_EVNTSEL0,
        M.MSR_P6_EVNTSEL1, *range(M.MSR_K7_EVNTSEL0, M.MSR_K7_PERFCTR3 + 1),
    ),
    0,
)  # fmt: skip
constant((0xCD,), 3)  # FSB frequency
constant((M.MSR_EBC_FREQUENCY_ID,), 1 << 24)
constant((M.MSR_IA32_PERF_STATUS,), 1000 | 4 << 40)  # TSC increment by tick, CPU multiplier
constant((M.MSR_K7_CLK_CTL,), 0x20000000)  # the ramp-up count that K7 kernels expect
constant((M.MSR_IA32_BBL_CR_CTL3,), 0xBE702111)

ignored(
    M.MSR_AMD64_NB_CFG, M.MSR_IA32_UCODE_WRITE, M.MSR_VM_HSAVE_PA, M.MSR_AMD64_PATCH_LOADER, M.MSR_AMD64_BU_CFG2,
    M.MSR_AMD64_DC_CFG, M.MSR_AMD64_TW_CFG, M.MSR_F15H_EX_CFG, M.MSR_K7_CLK_CTL, M.MSR_IA32_BBL_CR_CTL3,
    M.MSR_P6_PERFCTR0, M.MSR_P6_PERFCTR1, M.MSR_P6_EVNTSEL0, M.MSR_P6_EVNTSEL1,
    *range(M.MSR_K7_EVNTSEL0, M.MSR_K7_PERFCTR3 + 1),
)  # fmt: skip


@writes(M.MSR_FAM10H_MMIO_CONF_BASE)
def _write_zero(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(value == 0)
