"""CPUID tables, and where CPUID has its feature bits."""

from enum import IntFlag
from typing import Final, NamedTuple

from kvmfs.abi import cpuid_basic, cpuid_extended
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


class Register(NamedTuple):
    """A register that CPUID fills: ``name`` is ``eax`` ... ``edx``, as in CpuidEntry2."""

    leaf: int
    subleaf: int
    name: str


FEATURE_REGISTERS: Final[dict[type[IntFlag], Register]] = {
    cpuid_basic.Leaf1Edx: Register(0x1, 0, "edx"),
    cpuid_basic.Leaf1Ecx: Register(0x1, 0, "ecx"),
    cpuid_basic.Leaf6Eax: Register(0x6, 0, "eax"),
    cpuid_basic.Leaf7Ebx: Register(0x7, 0, "ebx"),
    cpuid_basic.Leaf7Ecx: Register(0x7, 0, "ecx"),
    cpuid_basic.Leaf7Edx: Register(0x7, 0, "edx"),
    cpuid_basic.Leaf7_1Eax: Register(0x7, 1, "eax"),
    cpuid_basic.Leaf7_1Edx: Register(0x7, 1, "edx"),
    cpuid_basic.Leaf7_2Edx: Register(0x7, 2, "edx"),
    cpuid_basic.LeafD_1Eax: Register(0xD, 1, "eax"),
    cpuid_basic.Leaf12Eax: Register(0x12, 0, "eax"),
    cpuid_basic.Leaf24Ebx: Register(0x24, 0, "ebx"),
    cpuid_extended.Leaf80000001Ecx: Register(0x80000001, 0, "ecx"),
    cpuid_extended.Leaf80000001Edx: Register(0x80000001, 0, "edx"),
    cpuid_extended.Leaf80000007Ebx: Register(0x80000007, 0, "ebx"),
    cpuid_extended.Leaf80000007Edx: Register(0x80000007, 0, "edx"),
    cpuid_extended.Leaf80000008Ebx: Register(0x80000008, 0, "ebx"),
    cpuid_extended.Leaf8000000AEdx: Register(0x8000000A, 0, "edx"),
    cpuid_extended.Leaf8000001FEax: Register(0x8000001F, 0, "eax"),
    cpuid_extended.Leaf80000021Eax: Register(0x80000021, 0, "eax"),
    cpuid_extended.Leaf80000021Ecx: Register(0x80000021, 0, "ecx"),
    cpuid_extended.Leaf80000022Eax: Register(0x80000022, 0, "eax"),
}
