"""The binary format of the fd that KVM_GET_STATS_FD returns: header, id string, descriptors, data."""

from typing import Final

from kvmfs.abi.layout import Struct, s16, u8, u16, u32

KVM_STATS_TYPE_SHIFT: Final = 0
KVM_STATS_TYPE_MASK: Final = 0xF << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_CUMULATIVE: Final = 0x0 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_INSTANT: Final = 0x1 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_PEAK: Final = 0x2 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_LINEAR_HIST: Final = 0x3 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_LOG_HIST: Final = 0x4 << KVM_STATS_TYPE_SHIFT
KVM_STATS_TYPE_MAX: Final = KVM_STATS_TYPE_LOG_HIST

KVM_STATS_UNIT_SHIFT: Final = 4
KVM_STATS_UNIT_MASK: Final = 0xF << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_NONE: Final = 0x0 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_BYTES: Final = 0x1 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_SECONDS: Final = 0x2 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_CYCLES: Final = 0x3 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_BOOLEAN: Final = 0x4 << KVM_STATS_UNIT_SHIFT
KVM_STATS_UNIT_MAX: Final = KVM_STATS_UNIT_BOOLEAN

KVM_STATS_BASE_SHIFT: Final = 8
KVM_STATS_BASE_MASK: Final = 0xF << KVM_STATS_BASE_SHIFT
KVM_STATS_BASE_POW10: Final = 0x0 << KVM_STATS_BASE_SHIFT
KVM_STATS_BASE_POW2: Final = 0x1 << KVM_STATS_BASE_SHIFT
KVM_STATS_BASE_MAX: Final = KVM_STATS_BASE_POW2

# Bytes of a name, and of the id string (include/linux/kvm_types.h).
KVM_STATS_NAME_SIZE: Final = 48


class StatsHeader(Struct):
    """Offsets are from the start of the file, in bytes."""

    c_name = "struct kvm_stats_header"
    _fields_ = (
        ("flags", u32),
        ("name_size", u32),
        ("num_desc", u32),
        ("id_offset", u32),
        ("desc_offset", u32),
        ("data_offset", u32),
    )


class StatsDesc(Struct):
    """A statistic of ``size`` u64 at ``offset`` in the data block; ``name_size`` bytes of ``name`` follow."""

    c_name = "struct kvm_stats_desc"
    _fields_ = (
        ("flags", u32),
        ("exponent", s16),
        ("size", u16),
        ("offset", u32),
        ("bucket_size", u32),
        ("name", u8 * 0),
    )
