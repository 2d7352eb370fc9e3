"""What a guest and KVM agree on: CPUID leaves, hypercalls, MSRs, and structs in guest memory.

Sources: arch/x86/include/uapi/asm/kvm_para.h, include/uapi/linux/kvm_para.h, arch/x86/include/asm/pvclock-abi.h.
"""

from typing import Final

from kvmfs.abi.layout import Struct, s8, s64, u8, u32, u64

KVM_CPUID_SIGNATURE: Final = 0x40000000
KVM_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"

# Leaf KVM_CPUID_FEATURES: bits of EAX, and of EDX (hints).
KVM_CPUID_FEATURES: Final = 0x40000001
KVM_FEATURE_CLOCKSOURCE: Final = 0
KVM_FEATURE_NOP_IO_DELAY: Final = 1
KVM_FEATURE_MMU_OP: Final = 2
KVM_FEATURE_CLOCKSOURCE2: Final = 3
KVM_FEATURE_ASYNC_PF: Final = 4
KVM_FEATURE_STEAL_TIME: Final = 5
KVM_FEATURE_PV_EOI: Final = 6
KVM_FEATURE_PV_UNHALT: Final = 7
KVM_FEATURE_PV_TLB_FLUSH: Final = 9
KVM_FEATURE_ASYNC_PF_VMEXIT: Final = 10
KVM_FEATURE_PV_SEND_IPI: Final = 11
KVM_FEATURE_POLL_CONTROL: Final = 12
KVM_FEATURE_PV_SCHED_YIELD: Final = 13
KVM_FEATURE_ASYNC_PF_INT: Final = 14
KVM_FEATURE_MSI_EXT_DEST_ID: Final = 15
KVM_FEATURE_HC_MAP_GPA_RANGE: Final = 16
KVM_FEATURE_MIGRATION_CONTROL: Final = 17
KVM_FEATURE_CLOCKSOURCE_STABLE_BIT: Final = 24
KVM_HINTS_REALTIME: Final = 0

# Hypercall numbers and results. KVM_EFAULT and its like are the errnos of the same name.
KVM_HC_VAPIC_POLL_IRQ: Final = 1
KVM_HC_MMU_OP: Final = 2
KVM_HC_FEATURES: Final = 3
KVM_HC_KICK_CPU: Final = 5
KVM_HC_CLOCK_PAIRING: Final = 9
KVM_HC_SEND_IPI: Final = 10
KVM_HC_SCHED_YIELD: Final = 11
KVM_HC_MAP_GPA_RANGE: Final = 12
KVM_ENOSYS: Final = 1000
KVM_EFAULT: Final = 14
KVM_EINVAL: Final = 22
KVM_E2BIG: Final = 7
KVM_EPERM: Final = 1
KVM_EOPNOTSUPP: Final = 95

# Third argument of KVM_HC_MAP_GPA_RANGE.
KVM_MAP_GPA_RANGE_PAGE_SZ_4K: Final = 0
KVM_MAP_GPA_RANGE_PAGE_SZ_2M: Final = 1 << 0
KVM_MAP_GPA_RANGE_PAGE_SZ_1G: Final = 1 << 1
KVM_MAP_GPA_RANGE_ENCRYPTED: Final = 1 << 4
KVM_MAP_GPA_RANGE_DECRYPTED: Final = 0

# MSRs; KVM's own are in 0x4b564d00..0x4b564dff.
MSR_KVM_WALL_CLOCK: Final = 0x11
MSR_KVM_SYSTEM_TIME: Final = 0x12
MSR_KVM_WALL_CLOCK_NEW: Final = 0x4B564D00
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B564D01
MSR_KVM_ASYNC_PF_EN: Final = 0x4B564D02
MSR_KVM_STEAL_TIME: Final = 0x4B564D03
MSR_KVM_PV_EOI_EN: Final = 0x4B564D04
MSR_KVM_POLL_CONTROL: Final = 0x4B564D05
MSR_KVM_ASYNC_PF_INT: Final = 0x4B564D06
MSR_KVM_ASYNC_PF_ACK: Final = 0x4B564D07
MSR_KVM_MIGRATION_CONTROL: Final = 0x4B564D08

KVM_MSR_ENABLED: Final = 1
KVM_ASYNC_PF_ENABLED: Final = 1 << 0
KVM_ASYNC_PF_SEND_ALWAYS: Final = 1 << 1
KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT: Final = 1 << 2
KVM_ASYNC_PF_DELIVERY_AS_INT: Final = 1 << 3
KVM_ASYNC_PF_VEC_MASK: Final = 0xFF
KVM_MIGRATION_READY: Final = 1 << 0
KVM_PV_REASON_PAGE_NOT_PRESENT: Final = 1
KVM_PV_REASON_PAGE_READY: Final = 2
KVM_PV_EOI_BIT: Final = 0
KVM_PV_EOI_MASK: Final = 1 << KVM_PV_EOI_BIT
KVM_PV_EOI_ENABLED: Final = KVM_PV_EOI_MASK
KVM_PV_EOI_DISABLED: Final = 0
KVM_STEAL_ALIGNMENT_BITS: Final = 5
KVM_STEAL_VALID_BITS: Final = 0xFFFF_FFFF_FFFF_FFC0
KVM_STEAL_RESERVED_MASK: Final = ((1 << KVM_STEAL_ALIGNMENT_BITS) - 1) << 1

# StealTime.preempted
KVM_VCPU_PREEMPTED: Final = 1 << 0
KVM_VCPU_FLUSH_TLB: Final = 1 << 1


class StealTime(Struct):
    """At the address in MSR_KVM_STEAL_TIME. ``steal`` in ns; ``version`` is odd while KVM writes."""

    c_name = "struct kvm_steal_time"
    _fields_ = (
        ("steal", u64),
        ("version", u32),
        ("flags", u32),
        ("preempted", u8),
        ("u8_pad", u8 * 3),
        ("pad", u32 * 11),
    )


KVM_CLOCK_PAIRING_WALLCLOCK: Final = 0


class ClockPairing(Struct):
    """What KVM_HC_CLOCK_PAIRING writes."""

    c_name = "struct kvm_clock_pairing"
    _fields_ = (
        ("sec", s64),
        ("nsec", s64),
        ("tsc", u64),
        ("flags", u32),
        ("pad", u32 * 9),
    )


class VcpuPvApfData(Struct):
    """At the address in MSR_KVM_ASYNC_PF_EN."""

    c_name = "struct kvm_vcpu_pv_apf_data"
    _fields_ = (
        ("flags", u32),
        ("token", u32),
        ("pad", u8 * 56),
    )


# PvclockVcpuTimeInfo.flags
PVCLOCK_TSC_STABLE_BIT: Final = 1 << 0
PVCLOCK_GUEST_STOPPED: Final = 1 << 1


class PvclockVcpuTimeInfo(Struct):
    """kvmclock, at the address in MSR_KVM_SYSTEM_TIME_NEW. Times in ns; ``version`` is odd while KVM writes.

    now = system_time + (((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32)
    """

    c_name = "struct pvclock_vcpu_time_info"
    _pack_ = 1
    _fields_ = (
        ("version", u32),
        ("pad0", u32),
        ("tsc_timestamp", u64),
        ("system_time", u64),
        ("tsc_to_system_mul", u32),
        ("tsc_shift", s8),
        ("flags", u8),
        ("pad", u8 * 2),
    )


class PvclockWallClock(Struct):
    """Wall-clock time at the kvmclock's zero, at the address in MSR_KVM_WALL_CLOCK_NEW."""

    c_name = "struct pvclock_wall_clock"
    _pack_ = 1
    _fields_ = (
        ("version", u32),
        ("sec", u32),
        ("nsec", u32),
    )
