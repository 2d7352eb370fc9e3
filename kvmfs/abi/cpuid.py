"""CPUID tables."""

from typing import Final

from kvmfs.abi.layout import Struct, u32

KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1 << 0  # the header's spelling
KVM_CPUID_FLAG_STATEFUL_FUNC: Final = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT: Final = 1 << 2


class CpuidEntry(Struct):
    c_name = "struct kvm_cpuid_entry"
    _fields_ = (
        ("function", u32),
        ("eax", u32),
        ("ebx", u32),
        ("ecx", u32),
        ("edx", u32),
        ("padding", u32),
    )


class Cpuid(Struct):
    """KVM_SET_CPUID."""

    c_name = "struct kvm_cpuid"
    _fields_ = (
        ("nent", u32),
        ("padding", u32),
        ("entries", CpuidEntry * 0),
    )


class CpuidEntry2(Struct):
    c_name = "struct kvm_cpuid_entry2"
    _fields_ = (
        ("function", u32),
        ("index", u32),
        ("flags", u32),
        ("eax", u32),
        ("ebx", u32),
        ("ecx", u32),
        ("edx", u32),
        ("padding", u32 * 3),
    )


class Cpuid2(Struct):
    """KVM_GET_SUPPORTED_CPUID, KVM_GET_EMULATED_CPUID, KVM_GET_SUPPORTED_HV_CPUID, KVM_GET_CPUID2, KVM_SET_CPUID2."""

    c_name = "struct kvm_cpuid2"
    _fields_ = (
        ("nent", u32),
        ("padding", u32),
        ("entries", CpuidEntry2 * 0),
    )
