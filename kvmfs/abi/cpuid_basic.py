"""Feature bits of CPUID's basic leaves, by the kernel's names without ``X86_FEATURE_``.

Source: arch/x86/include/asm/cpufeatures.h, arch/x86/kvm/reverse_cpuid.h. A class is a register of a (sub)leaf, named
after it; cpuid.FEATURE_REGISTERS says which.
"""

from enum import IntFlag


class Leaf1Edx(IntFlag):
    FPU = 1 << 0
    VME = 1 << 1
    DE = 1 << 2
    PSE = 1 << 3
    TSC = 1 << 4
    MSR = 1 << 5
    PAE = 1 << 6
    MCE = 1 << 7
    CX8 = 1 << 8
    APIC = 1 << 9
    SEP = 1 << 11
    MTRR = 1 << 12
    PGE = 1 << 13
    MCA = 1 << 14
    CMOV = 1 << 15
    PAT = 1 << 16
    PSE36 = 1 << 17
    PN = 1 << 18
    CLFLUSH = 1 << 19
    DS = 1 << 21
    ACPI = 1 << 22
    MMX = 1 << 23
    FXSR = 1 << 24
    XMM = 1 << 25
    XMM2 = 1 << 26
    SELFSNOOP = 1 << 27
    HT = 1 << 28
    ACC = 1 << 29
    IA64 = 1 << 30
    PBE = 1 << 31


class Leaf1Ecx(IntFlag):
    XMM3 = 1 << 0
    PCLMULQDQ = 1 << 1
    DTES64 = 1 << 2
    MWAIT = 1 << 3
    DSCPL = 1 << 4
    VMX = 1 << 5
    SMX = 1 << 6
    EST = 1 << 7
    TM2 = 1 << 8
    SSSE3 = 1 << 9
    CID = 1 << 10
    SDBG = 1 << 11
    FMA = 1 << 12
    CX16 = 1 << 13
    XTPR = 1 << 14
    PDCM = 1 << 15
    PCID = 1 << 17
    DCA = 1 << 18
    XMM4_1 = 1 << 19
    XMM4_2 = 1 << 20
    X2APIC = 1 << 21
    MOVBE = 1 << 22
    POPCNT = 1 << 23
    TSC_DEADLINE_TIMER = 1 << 24
    AES = 1 << 25
    XSAVE = 1 << 26
    OSXSAVE = 1 << 27
    AVX = 1 << 28
    F16C = 1 << 29
    RDRAND = 1 << 30
    HYPERVISOR = 1 << 31


class Leaf6Eax(IntFlag):
    DTHERM = 1 << 0
    IDA = 1 << 1
    ARAT = 1 << 2
    PLN = 1 << 4
    PTS = 1 << 6
    HWP = 1 << 7
    HWP_NOTIFY = 1 << 8
    HWP_ACT_WINDOW = 1 << 9
    HWP_EPP = 1 << 10
    HWP_PKG_REQ = 1 << 11
    HWP_HIGHEST_PERF_CHANGE = 1 << 15
    HFI = 1 << 19


class Leaf7Ebx(IntFlag):
    FSGSBASE = 1 << 0
    TSC_ADJUST = 1 << 1
    SGX = 1 << 2
    BMI1 = 1 << 3
    HLE = 1 << 4
    AVX2 = 1 << 5
    FDP_EXCPTN_ONLY = 1 << 6
    SMEP = 1 << 7
    BMI2 = 1 << 8
    ERMS = 1 << 9
    INVPCID = 1 << 10
    RTM = 1 << 11
    CQM = 1 << 12
    ZERO_FCS_FDS = 1 << 13
    MPX = 1 << 14
    RDT_A = 1 << 15
    AVX512F = 1 << 16
    AVX512DQ = 1 << 17
    RDSEED = 1 << 18
    ADX = 1 << 19
    SMAP = 1 << 20
    AVX512IFMA = 1 << 21
    CLFLUSHOPT = 1 << 23
    CLWB = 1 << 24
    INTEL_PT = 1 << 25
    AVX512PF = 1 << 26
    AVX512ER = 1 << 27
    AVX512CD = 1 << 28
    SHA_NI = 1 << 29
    AVX512BW = 1 << 30
    AVX512VL = 1 << 31


class Leaf7Ecx(IntFlag):
    AVX512VBMI = 1 << 1
    UMIP = 1 << 2
    PKU = 1 << 3
    OSPKE = 1 << 4
    WAITPKG = 1 << 5
    AVX512_VBMI2 = 1 << 6
    SHSTK = 1 << 7
    GFNI = 1 << 8
    VAES = 1 << 9
    VPCLMULQDQ = 1 << 10
    AVX512_VNNI = 1 << 11
    AVX512_BITALG = 1 << 12
    TME = 1 << 13
    AVX512_VPOPCNTDQ = 1 << 14
    LA57 = 1 << 16
    RDPID = 1 << 22
    BUS_LOCK_DETECT = 1 << 24
    CLDEMOTE = 1 << 25
    MOVDIRI = 1 << 27
    MOVDIR64B = 1 << 28
    ENQCMD = 1 << 29
    SGX_LC = 1 << 30


class Leaf7Edx(IntFlag):
    AVX512_4VNNIW = 1 << 2
    AVX512_4FMAPS = 1 << 3
    FSRM = 1 << 4
    AVX512_VP2INTERSECT = 1 << 8
    SRBDS_CTRL = 1 << 9
    MD_CLEAR = 1 << 10
    RTM_ALWAYS_ABORT = 1 << 11
    TSX_FORCE_ABORT = 1 << 13
    SERIALIZE = 1 << 14
    HYBRID_CPU = 1 << 15
    TSXLDTRK = 1 << 16
    PCONFIG = 1 << 18
    ARCH_LBR = 1 << 19
    IBT = 1 << 20
    AMX_BF16 = 1 << 22
    AVX512_FP16 = 1 << 23
    AMX_TILE = 1 << 24
    AMX_INT8 = 1 << 25
    SPEC_CTRL = 1 << 26
    INTEL_STIBP = 1 << 27
    FLUSH_L1D = 1 << 28
    ARCH_CAPABILITIES = 1 << 29
    CORE_CAPABILITIES = 1 << 30
    SPEC_CTRL_SSBD = 1 << 31


class Leaf7_1Eax(IntFlag):
    AVX_VNNI = 1 << 4
    AVX512_BF16 = 1 << 5
    CMPCCXADD = 1 << 7
    ARCH_PERFMON_EXT = 1 << 8
    FZRM = 1 << 10
    FSRS = 1 << 11
    FSRC = 1 << 12
    FRED = 1 << 17
    LKGS = 1 << 18
    WRMSRNS = 1 << 19
    AMX_FP16 = 1 << 21
    AVX_IFMA = 1 << 23
    LAM = 1 << 26


class Leaf7_1Edx(IntFlag):
    AVX_VNNI_INT8 = 1 << 4
    AVX_NE_CONVERT = 1 << 5
    AMX_COMPLEX = 1 << 8
    PREFETCHITI = 1 << 14
    AVX10 = 1 << 19


class Leaf7_2Edx(IntFlag):
    INTEL_PSFD = 1 << 0
    IPRED_CTRL = 1 << 1
    RRSBA_CTRL = 1 << 2
    DDPD_U = 1 << 3
    BHI_CTRL = 1 << 4
    MCDT_NO = 1 << 5


class LeafD_1Eax(IntFlag):
    XSAVEOPT = 1 << 0
    XSAVEC = 1 << 1
    XGETBV1 = 1 << 2
    XSAVES = 1 << 3
    XFD = 1 << 4


class Leaf12Eax(IntFlag):
    SGX1 = 1 << 0
    SGX2 = 1 << 1
    SGX_EDECCSSA = 1 << 11


class Leaf24Ebx(IntFlag):
    AVX10_128 = 1 << 16
    AVX10_256 = 1 << 17
    AVX10_512 = 1 << 18
