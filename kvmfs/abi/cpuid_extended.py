"""Feature bits of CPUID's extended leaves, by the kernel's names without ``X86_FEATURE_``.

Source: arch/x86/include/asm/cpufeatures.h, arch/x86/kvm/reverse_cpuid.h. A class is a register of a (sub)leaf, named
after it; cpuid.FEATURE_REGISTERS says which. Bits of 0x80000001 EDX that repeat 1 EDX (0-9, 12-17, 23, 24) are
only in Leaf1Edx. ``_3DNOW`` has its underscore because Python wants a letter there.
"""

from enum import IntFlag


class Leaf80000001Ecx(IntFlag):
    LAHF_LM = 1 << 0
    CMP_LEGACY = 1 << 1
    SVM = 1 << 2
    EXTAPIC = 1 << 3
    CR8_LEGACY = 1 << 4
    ABM = 1 << 5
    SSE4A = 1 << 6
    MISALIGNSSE = 1 << 7
    _3DNOWPREFETCH = 1 << 8
    OSVW = 1 << 9
    IBS = 1 << 10
    XOP = 1 << 11
    SKINIT = 1 << 12
    WDT = 1 << 13
    LWP = 1 << 15
    FMA4 = 1 << 16
    TCE = 1 << 17
    NODEID_MSR = 1 << 19
    TBM = 1 << 21
    TOPOEXT = 1 << 22
    PERFCTR_CORE = 1 << 23
    PERFCTR_NB = 1 << 24
    BPEXT = 1 << 26
    PTSC = 1 << 27
    PERFCTR_LLC = 1 << 28
    MWAITX = 1 << 29


class Leaf80000001Edx(IntFlag):
    SYSCALL = 1 << 11
    MP = 1 << 19
    NX = 1 << 20
    MMXEXT = 1 << 22
    FXSR_OPT = 1 << 25
    GBPAGES = 1 << 26
    RDTSCP = 1 << 27
    LM = 1 << 29
    _3DNOWEXT = 1 << 30
    _3DNOW = 1 << 31


class Leaf80000007Ebx(IntFlag):
    OVERFLOW_RECOV = 1 << 0
    SUCCOR = 1 << 1
    SMCA = 1 << 3


class Leaf80000007Edx(IntFlag):
    CONSTANT_TSC = 1 << 8


class Leaf80000008Ebx(IntFlag):
    CLZERO = 1 << 0
    IRPERF = 1 << 1
    XSAVEERPTR = 1 << 2
    RDPRU = 1 << 4
    WBNOINVD = 1 << 9
    AMD_IBPB = 1 << 12
    AMD_IBRS = 1 << 14
    AMD_STIBP = 1 << 15
    AMD_STIBP_ALWAYS_ON = 1 << 17
    AMD_PPIN = 1 << 23
    AMD_SSBD = 1 << 24
    VIRT_SSBD = 1 << 25
    AMD_SSB_NO = 1 << 26
    CPPC = 1 << 27
    AMD_PSFD = 1 << 28
    BTC_NO = 1 << 29
    AMD_IBPB_RET = 1 << 30
    BRS = 1 << 31


class Leaf8000000AEdx(IntFlag):
    NPT = 1 << 0
    LBRV = 1 << 1
    SVML = 1 << 2
    NRIPS = 1 << 3
    TSCRATEMSR = 1 << 4
    VMCBCLEAN = 1 << 5
    FLUSHBYASID = 1 << 6
    DECODEASSISTS = 1 << 7
    PAUSEFILTER = 1 << 10
    PFTHRESHOLD = 1 << 12
    AVIC = 1 << 13
    V_VMSAVE_VMLOAD = 1 << 15
    VGIF = 1 << 16
    X2AVIC = 1 << 18
    V_SPEC_CTRL = 1 << 20
    VNMI = 1 << 25
    SVME_ADDR_CHK = 1 << 28


class Leaf8000001FEax(IntFlag):
    SME = 1 << 0
    SEV = 1 << 1
    VM_PAGE_FLUSH = 1 << 2
    SEV_ES = 1 << 3
    SEV_SNP = 1 << 4
    V_TSC_AUX = 1 << 9
    SME_COHERENT = 1 << 10
    DEBUG_SWAP = 1 << 14
    SVSM = 1 << 28
    HV_INUSE_WR_ALLOWED = 1 << 30


class Leaf80000021Eax(IntFlag):
    NO_NESTED_DATA_BP = 1 << 0
    WRMSR_XX_BASE_NS = 1 << 1
    LFENCE_RDTSC = 1 << 2
    VERW_CLEAR = 1 << 5
    NULL_SEL_CLR_BASE = 1 << 6
    AUTOIBRS = 1 << 8
    NO_SMM_CTL_MSR = 1 << 9
    SBPB = 1 << 27
    IBPB_BRTYPE = 1 << 28
    SRSO_NO = 1 << 29
    SRSO_USER_KERNEL_NO = 1 << 30
    SRSO_BP_SPEC_REDUCE = 1 << 31


class Leaf80000021Ecx(IntFlag):
    TSA_SQ_NO = 1 << 1
    TSA_L1_NO = 1 << 2
    TSA_FILL_NO = 1 << 7


class Leaf80000022Eax(IntFlag):
    PERFMON_V2 = 1 << 0
