"""The CPUID features that this processor implements, by the Linux kernel's names (cpufeatures.h).

A feature's place in NAMES is its bit in state.FEATURES; the embedder sets the bits of those that it lets its guest see.
Plain data: read by processes that have no compiler loaded.
"""

NAMES = (
    "FPU", "DE", "PSE", "TSC", "MSR", "PAE", "CX8", "SEP", "PGE", "CMOV", "PSE36", "CLFLUSH", "FXSR", "XMM", "XMM2",
    "MMX", "MMXEXT", "FXSR_OPT", "XMM3", "SSSE3", "XMM4_1", "CX16", "PCID", "POPCNT", "MOVBE", "XSAVE",
    "SYSCALL", "NX", "LM", "GBPAGES", "RDTSCP", "LAHF_LM",
    "FSGSBASE", "SMEP", "SMAP", "UMIP", "INVPCID", "ERMS", "FSRM", "LA57", "PKU", "RDPID", "MWAIT",
    "XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XSAVEERPTR", "ZERO_FCS_FDS", "FDP_EXCPTN_ONLY",
    "VME",
    "XMM4_2", "BMI1", "BMI2", "ABM", "ADX", "RDRAND", "RDSEED", "_3DNOWPREFETCH", "CLFLUSHOPT", "CLWB", "CLZERO",
    "WBNOINVD", "MOVDIRI", "MOVDIR64B", "SERIALIZE",
    "AVX", "AVX2", "FMA", "F16C", "AES", "PCLMULQDQ", "SHA_NI", "GFNI", "VAES", "VPCLMULQDQ",
)  # fmt: skip

HOSTED = {
    "XMM3": "pni", "XMM4_1": "sse4_1", "XMM4_2": "sse4_2", "AVX": "avx", "AVX2": "avx", "FMA": "fma", "F16C": "f16c",
    "RDRAND": "rdrand", "RDSEED": "rdseed", "AES": "aes", "PCLMULQDQ": "pclmulqdq", "SHA_NI": "sha_ni", "GFNI": "gfni",
    "VAES": "vaes", "VPCLMULQDQ": "vpclmulqdq",
}  # fmt: skip
"""Features that the host's own instructions make, with its name for them in /proc/cpuinfo (x87 and SSE2: all do)."""

BIT = {name: bit for bit, name in enumerate(NAMES)}
assert len(NAMES) <= 256


def word(name: str) -> int:
    """Byte offset of the feature's word within state.FEATURES."""
    return BIT[name] // 64 * 8


def mask(name: str) -> int:
    """The feature's bit in that word, as an int64."""
    bit = 1 << BIT[name] % 64
    return bit - (1 << 64) if bit >> 63 else bit
