"""VM-wide: types, capabilities to enable, clock, devices, PMU filter, memory encryption regions."""

from typing import Final

from kvmfs.abi.layout import Struct, s32, u8, u32, u64

KVM_API_VERSION: Final = 12

# The argument of KVM_CREATE_VM.
KVM_X86_DEFAULT_VM: Final = 0
KVM_X86_SW_PROTECTED_VM: Final = 1
KVM_X86_SEV_VM: Final = 2
KVM_X86_SEV_ES_VM: Final = 3
KVM_X86_SNP_VM: Final = 4


class EnableCap(Struct):
    """KVM_ENABLE_CAP."""

    c_name = "struct kvm_enable_cap"
    _fields_ = (
        ("cap", u32),
        ("flags", u32),
        ("args", u64 * 4),
        ("pad", u8 * 64),
    )


# Arguments of KVM_CAP_X86_DISABLE_EXITS.
KVM_X86_DISABLE_EXITS_MWAIT: Final = 1 << 0
KVM_X86_DISABLE_EXITS_HLT: Final = 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE: Final = 1 << 2
KVM_X86_DISABLE_EXITS_CSTATE: Final = 1 << 3
KVM_X86_DISABLE_VALID_EXITS: Final = (
    KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_CSTATE
)

# ... of KVM_CAP_DISABLE_QUIRKS2
KVM_X86_QUIRK_LINT0_REENABLED: Final = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED: Final = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE: Final = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP: Final = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: Final = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN: Final = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: Final = 1 << 6
KVM_X86_QUIRK_SLOT_ZAP_ALL: Final = 1 << 7
KVM_X86_QUIRK_STUFF_FEATURE_MSRS: Final = 1 << 8
KVM_X86_QUIRK_IGNORE_GUEST_PAT: Final = 1 << 9
KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM: Final = 1 << 10

# ... of KVM_CAP_X2APIC_API
KVM_X2APIC_API_USE_32BIT_IDS: Final = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: Final = 1 << 1

# ... of KVM_CAP_X86_BUS_LOCK_EXIT
KVM_BUS_LOCK_DETECTION_OFF: Final = 1 << 0
KVM_BUS_LOCK_DETECTION_EXIT: Final = 1 << 1

# ... of KVM_CAP_X86_NOTIFY_VMEXIT
KVM_X86_NOTIFY_VMEXIT_ENABLED: Final = 1 << 0
KVM_X86_NOTIFY_VMEXIT_USER: Final = 1 << 1

# ... of KVM_CAP_PMU_CAPABILITY
KVM_PMU_CAP_DISABLE: Final = 1 << 0

# ClockData.flags. 1 is what KVM_CHECK_EXTENSION returned before there were flags.
KVM_CLOCK_TSC_STABLE: Final = 2
KVM_CLOCK_REALTIME: Final = 1 << 2
KVM_CLOCK_HOST_TSC: Final = 1 << 3


class ClockData(Struct):
    """KVM_GET_CLOCK, KVM_SET_CLOCK. ``clock`` and ``realtime`` in ns."""

    c_name = "struct kvm_clock_data"
    _fields_ = (
        ("clock", u64),
        ("flags", u32),
        ("pad0", u32),
        ("realtime", u64),
        ("host_tsc", u64),
        ("pad", u32 * 4),
    )


KVM_CREATE_DEVICE_TEST: Final = 1

# CreateDevice.type. x86 has VFIO only.
KVM_DEV_TYPE_FSL_MPIC_20: Final = 1
KVM_DEV_TYPE_FSL_MPIC_42: Final = 2
KVM_DEV_TYPE_XICS: Final = 3
KVM_DEV_TYPE_VFIO: Final = 4
KVM_DEV_TYPE_ARM_VGIC_V2: Final = 5
KVM_DEV_TYPE_FLIC: Final = 6
KVM_DEV_TYPE_ARM_VGIC_V3: Final = 7
KVM_DEV_TYPE_ARM_VGIC_ITS: Final = 8
KVM_DEV_TYPE_XIVE: Final = 9
KVM_DEV_TYPE_ARM_PV_TIME: Final = 10
KVM_DEV_TYPE_RISCV_AIA: Final = 11
KVM_DEV_TYPE_MAX: Final = 12

# Group and attributes of the VFIO device.
KVM_DEV_VFIO_FILE: Final = 1
KVM_DEV_VFIO_FILE_ADD: Final = 1
KVM_DEV_VFIO_FILE_DEL: Final = 2

# Groups and attributes of /dev/kvm itself.
KVM_X86_GRP_SYSTEM: Final = 0
KVM_X86_XCOMP_GUEST_SUPP: Final = 0
KVM_X86_GRP_SEV: Final = 1
KVM_X86_SEV_VMSA_FEATURES: Final = 0


class CreateDevice(Struct):
    """KVM_CREATE_DEVICE. ``fd`` is the new fd's number, written back."""

    c_name = "struct kvm_create_device"
    _fields_ = (
        ("type", u32),
        ("fd", u32),
        ("flags", u32),
    )


class DeviceAttr(Struct):
    """KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR. ``addr`` is an address of the client."""

    c_name = "struct kvm_device_attr"
    _fields_ = (
        ("flags", u32),
        ("group", u32),
        ("attr", u64),
        ("addr", u64),
    )


class VfioSpaprTce(Struct):
    c_name = "struct kvm_vfio_spapr_tce"
    _fields_ = (
        ("groupfd", s32),
        ("tablefd", s32),
    )


KVM_PMU_EVENT_ALLOW: Final = 0
KVM_PMU_EVENT_DENY: Final = 1
KVM_PMU_EVENT_FLAG_MASKED_EVENTS: Final = 1 << 0
KVM_PMU_EVENT_FLAGS_VALID_MASK: Final = KVM_PMU_EVENT_FLAG_MASKED_EVENTS

# Layout of a masked event.
KVM_PMU_MASKED_ENTRY_EVENT_SELECT: Final = 0xF_0000_00FF
KVM_PMU_MASKED_ENTRY_UMASK_MASK: Final = 0xFF << 56
KVM_PMU_MASKED_ENTRY_UMASK_MATCH: Final = 0xFF << 8
KVM_PMU_MASKED_ENTRY_EXCLUDE: Final = 1 << 55
KVM_PMU_MASKED_ENTRY_UMASK_MASK_SHIFT: Final = 56


class PmuEventFilter(Struct):
    """KVM_SET_PMU_EVENT_FILTER."""

    c_name = "struct kvm_pmu_event_filter"
    _fields_ = (
        ("action", u32),
        ("nevents", u32),
        ("fixed_counter_bitmap", u32),
        ("flags", u32),
        ("pad", u32 * 4),
        ("events", u64 * 0),
    )


class EncRegion(Struct):
    """KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION. ``addr`` is an address of the client."""

    c_name = "struct kvm_enc_region"
    _fields_ = (
        ("addr", u64),
        ("size", u64),
    )
