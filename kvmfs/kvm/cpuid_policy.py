"""Which CPUID features KVM lets guests have, a register at a time, and which of those this KVM can keep.

MASKS is kvm_set_cpu_caps() of arch/x86/kvm/cpuid.c with an Intel or AMD module and two-dimensional paging, less what
needs hardware below (SGX, nested virtualization, speculation controls). What a guest is offered of it is decided by who
has to make it true: the processor in software (kvmfs.jit.cpu.features) or this package (OURS).
"""

from __future__ import annotations

from enum import IntFlag
from functools import cache
from typing import Final

from kvmfs.abi.cpuid import FEATURE_REGISTERS, Register
from kvmfs.abi.cpuid_basic import (
    Leaf1Ecx,
    Leaf1Edx,
    Leaf6Eax,
    Leaf7_1Eax,
    Leaf7_1Edx,
    Leaf7_2Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    LeafD_1Eax,
)
from kvmfs.abi.cpuid_extended import (
    Leaf80000001Ecx,
    Leaf80000001Edx,
    Leaf80000007Edx,
    Leaf80000008Ebx,
    Leaf80000021Eax,
)
from kvmfs.jit.cpu import features

MASKS: Final[tuple[IntFlag, ...]] = (
    # 0 where KVM hides what the processor has: DTES64, MONITOR, DS-CPL, VMX, SMX, EST, TM2, CNXT-ID, xTPR, DCA
    Leaf1Ecx.XMM3 | Leaf1Ecx.PCLMULQDQ | Leaf1Ecx.SSSE3 | Leaf1Ecx.FMA | Leaf1Ecx.CX16 | Leaf1Ecx.PCID
    | Leaf1Ecx.XMM4_1 | Leaf1Ecx.XMM4_2 | Leaf1Ecx.X2APIC | Leaf1Ecx.MOVBE | Leaf1Ecx.POPCNT | Leaf1Ecx.AES
    | Leaf1Ecx.XSAVE | Leaf1Ecx.AVX | Leaf1Ecx.F16C | Leaf1Ecx.RDRAND,
    Leaf1Edx.FPU | Leaf1Edx.VME | Leaf1Edx.DE | Leaf1Edx.PSE | Leaf1Edx.TSC | Leaf1Edx.MSR | Leaf1Edx.PAE
    | Leaf1Edx.MCE | Leaf1Edx.CX8 | Leaf1Edx.APIC | Leaf1Edx.SEP | Leaf1Edx.MTRR | Leaf1Edx.PGE | Leaf1Edx.MCA
    | Leaf1Edx.CMOV | Leaf1Edx.PAT | Leaf1Edx.PSE36 | Leaf1Edx.CLFLUSH | Leaf1Edx.MMX | Leaf1Edx.FXSR | Leaf1Edx.XMM
    | Leaf1Edx.XMM2 | Leaf1Edx.SELFSNOOP,
    Leaf6Eax.ARAT,
    Leaf7Ebx.FSGSBASE | Leaf7Ebx.TSC_ADJUST | Leaf7Ebx.BMI1 | Leaf7Ebx.AVX2 | Leaf7Ebx.FDP_EXCPTN_ONLY | Leaf7Ebx.SMEP
    | Leaf7Ebx.BMI2 | Leaf7Ebx.ERMS | Leaf7Ebx.INVPCID | Leaf7Ebx.ZERO_FCS_FDS | Leaf7Ebx.AVX512F | Leaf7Ebx.AVX512DQ
    | Leaf7Ebx.RDSEED | Leaf7Ebx.ADX | Leaf7Ebx.SMAP | Leaf7Ebx.AVX512IFMA | Leaf7Ebx.CLFLUSHOPT | Leaf7Ebx.CLWB
    | Leaf7Ebx.AVX512CD | Leaf7Ebx.SHA_NI | Leaf7Ebx.AVX512BW | Leaf7Ebx.AVX512VL,
    Leaf7Ecx.AVX512VBMI | Leaf7Ecx.LA57 | Leaf7Ecx.PKU | Leaf7Ecx.RDPID | Leaf7Ecx.AVX512_VPOPCNTDQ | Leaf7Ecx.UMIP
    | Leaf7Ecx.AVX512_VBMI2 | Leaf7Ecx.GFNI | Leaf7Ecx.VAES | Leaf7Ecx.VPCLMULQDQ | Leaf7Ecx.AVX512_VNNI
    | Leaf7Ecx.AVX512_BITALG | Leaf7Ecx.CLDEMOTE | Leaf7Ecx.MOVDIRI | Leaf7Ecx.MOVDIR64B,
    Leaf7Edx.ARCH_CAPABILITIES | Leaf7Edx.FSRM | Leaf7Edx.SERIALIZE | Leaf7Edx.AVX512_FP16,
    Leaf7_1Eax.AVX_VNNI | Leaf7_1Eax.AVX512_BF16 | Leaf7_1Eax.CMPCCXADD | Leaf7_1Eax.FZRM | Leaf7_1Eax.FSRS
    | Leaf7_1Eax.FSRC | Leaf7_1Eax.AVX_IFMA | Leaf7_1Eax.LAM,
    Leaf7_1Edx.AVX_VNNI_INT8 | Leaf7_1Edx.AVX_NE_CONVERT | Leaf7_1Edx.PREFETCHITI,
    Leaf7_2Edx.MCDT_NO,
    LeafD_1Eax.XSAVEOPT | LeafD_1Eax.XSAVEC | LeafD_1Eax.XGETBV1 | LeafD_1Eax.XSAVES,
    Leaf80000001Ecx.LAHF_LM | Leaf80000001Ecx.CMP_LEGACY | Leaf80000001Ecx.CR8_LEGACY | Leaf80000001Ecx.ABM
    | Leaf80000001Ecx.SSE4A | Leaf80000001Ecx.MISALIGNSSE | Leaf80000001Ecx._3DNOWPREFETCH | Leaf80000001Ecx.OSVW
    | Leaf80000001Ecx.XOP | Leaf80000001Ecx.FMA4 | Leaf80000001Ecx.TBM | Leaf80000001Ecx.TOPOEXT,
    Leaf80000001Edx.SYSCALL | Leaf80000001Edx.NX | Leaf80000001Edx.MMXEXT | Leaf80000001Edx.FXSR_OPT
    | Leaf80000001Edx.GBPAGES | Leaf80000001Edx.RDTSCP | Leaf80000001Edx.LM | Leaf80000001Edx._3DNOWEXT
    | Leaf80000001Edx._3DNOW,
    Leaf80000007Edx.CONSTANT_TSC,
    Leaf80000008Ebx.CLZERO | Leaf80000008Ebx.XSAVEERPTR | Leaf80000008Ebx.WBNOINVD | Leaf80000008Ebx.AMD_SSB_NO,
    Leaf80000021Eax.NO_NESTED_DATA_BP | Leaf80000021Eax.LFENCE_RDTSC | Leaf80000021Eax.NULL_SEL_CLR_BASE
    | Leaf80000021Eax.WRMSR_XX_BASE_NS,
)  # fmt: skip

OURS: Final = frozenset(
    {"APIC", "X2APIC", "MTRR", "MCE", "MCA", "PAT", "ARAT", "TSC_ADJUST", "ARCH_CAPABILITIES", "CONSTANT_TSC"}
    | {"AMD_SSB_NO"}
)
"""Features that are MSRs and devices, kept by this package."""

OTHER_VENDOR: Final = {
    True: frozenset({"FDP_EXCPTN_ONLY", "ZERO_FCS_FDS"}),
    False: frozenset(
        {"CMP_LEGACY", "CR8_LEGACY", "SSE4A", "MISALIGNSSE", "OSVW", "XOP", "FMA4", "TBM", "TOPOEXT", "MMXEXT"}
        | {"FXSR_OPT", "_3DNOWEXT", "_3DNOW", "CLZERO", "XSAVEERPTR", "WBNOINVD", "AMD_SSB_NO"}
    ),
}
"""By `is_amd`: what processors of that vendor never have."""

PLACED_BY_HOST: Final = {"PKU": "pku"}
"""Features with a component of the XSAVE area that the processor in software does not take from the host, by the host's
name for them: clients (QEMU) ask their own CPUID instruction where in the area it is."""

LEAF1_EDX_IN_80000001: Final = 0x0183_F3FF
"""AMD repeats these bits of leaf 1 EDX in leaf 0x80000001 EDX (APM vol. 3, E.4.2)."""


@cache
def implemented(host_flags: frozenset[str]) -> frozenset[str]:
    """What the processor in software can do on a host with these flags of /proc/cpuinfo."""
    needs = features.HOSTED | PLACED_BY_HOST
    return frozenset(name for name in features.NAMES if needs.get(name) in {None, *host_flags})


def supported(is_amd: bool, names: frozenset[str]) -> dict[Register, int]:
    """What KVM_GET_SUPPORTED_CPUID has in each feature register, of the features with these names and our own."""
    kept = (names | OURS) - OTHER_VENDOR[is_amd]
    masks: dict[Register, int] = dict.fromkeys(FEATURE_REGISTERS.values(), 0)
    for mask in MASKS:
        masks[FEATURE_REGISTERS[type(mask)]] = sum(bit.value for bit in mask if bit.name in kept)
    if is_amd:
        extended = FEATURE_REGISTERS[Leaf80000001Edx]
        masks[extended] |= masks[FEATURE_REGISTERS[Leaf1Edx]] & LEAF1_EDX_IN_80000001
    return masks
