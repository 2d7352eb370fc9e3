"""MSR lists and the MSR filter. The numbers of MSRs are in msr_index."""

from typing import Final

from kvmfs.abi.layout import Struct, u32, u64


class MsrEntry(Struct):
    c_name = "struct kvm_msr_entry"
    _fields_ = (
        ("index", u32),
        ("reserved", u32),
        ("data", u64),
    )


class Msrs(Struct):
    """KVM_GET_MSRS, KVM_SET_MSRS."""

    c_name = "struct kvm_msrs"
    _fields_ = (
        ("nmsrs", u32),
        ("pad", u32),
        ("entries", MsrEntry * 0),
    )


class MsrList(Struct):
    """KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST."""

    c_name = "struct kvm_msr_list"
    _fields_ = (
        ("nmsrs", u32),
        ("indices", u32 * 0),
    )


KVM_MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600
KVM_MSR_FILTER_MAX_RANGES: Final = 16
KVM_MSR_FILTER_READ: Final = 1 << 0
KVM_MSR_FILTER_WRITE: Final = 1 << 1
KVM_MSR_FILTER_RANGE_VALID_MASK: Final = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
KVM_MSR_FILTER_DEFAULT_ALLOW: Final = 0
KVM_MSR_FILTER_DEFAULT_DENY: Final = 1 << 0
KVM_MSR_FILTER_VALID_MASK: Final = KVM_MSR_FILTER_DEFAULT_DENY


class MsrFilterRange(Struct):
    """``bitmap``: address in the client, a bit for each of ``nmsrs``; 1 allows the accesses in ``flags``."""

    c_name = "struct kvm_msr_filter_range"
    _fields_ = (
        ("flags", u32),
        ("nmsrs", u32),
        ("base", u32),
        ("bitmap", u64),
    )


class MsrFilter(Struct):
    """KVM_X86_SET_MSR_FILTER."""

    c_name = "struct kvm_msr_filter"
    _fields_ = (
        ("flags", u32),
        ("ranges", MsrFilterRange * KVM_MSR_FILTER_MAX_RANGES),
    )


# Run.msr.reason, and the argument of KVM_CAP_X86_USER_SPACE_MSR.
KVM_MSR_EXIT_REASON_INVAL: Final = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN: Final = 1 << 1
KVM_MSR_EXIT_REASON_FILTER: Final = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK: Final = (
    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER
)
