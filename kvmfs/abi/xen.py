"""Xen emulation."""

from typing import Final

from kvmfs.abi.layout import Struct, Union, s32, u8, u16, u32, u64

KVM_EXIT_XEN_HCALL: Final = 1


class XenHcall(Struct):
    _fields_ = (
        ("longmode", u32),
        ("cpl", u32),
        ("input", u64),
        ("result", u64),
        ("params", u64 * 6),
    )


class XenExitUnion(Union):
    _fields_ = (("hcall", XenHcall),)


class XenExit(Struct):
    c_name = "struct kvm_xen_exit"
    _fields_ = (
        ("type", u32),
        ("u", XenExitUnion),
    )


KVM_XEN_HVM_CONFIG_HYPERCALL_MSR: Final = 1 << 0
KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL: Final = 1 << 1
KVM_XEN_HVM_CONFIG_SHARED_INFO: Final = 1 << 2
KVM_XEN_HVM_CONFIG_RUNSTATE: Final = 1 << 3
KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL: Final = 1 << 4
KVM_XEN_HVM_CONFIG_EVTCHN_SEND: Final = 1 << 5
KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG: Final = 1 << 6
KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE: Final = 1 << 7
KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA: Final = 1 << 8

KVM_XEN_INVALID_GFN: Final = 0xFFFF_FFFF_FFFF_FFFF
KVM_XEN_INVALID_GPA: Final = 0xFFFF_FFFF_FFFF_FFFF

KVM_XEN_EVTCHN_DEASSIGN: Final = 1 << 0
KVM_XEN_EVTCHN_UPDATE: Final = 1 << 1
KVM_XEN_EVTCHN_RESET: Final = 1 << 2

KVM_XEN_ATTR_TYPE_LONG_MODE: Final = 0x0
KVM_XEN_ATTR_TYPE_SHARED_INFO: Final = 0x1
KVM_XEN_ATTR_TYPE_UPCALL_VECTOR: Final = 0x2
KVM_XEN_ATTR_TYPE_EVTCHN: Final = 0x3
KVM_XEN_ATTR_TYPE_XEN_VERSION: Final = 0x4
KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG: Final = 0x5
KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA: Final = 0x6

KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO: Final = 0x0
KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO: Final = 0x1
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR: Final = 0x2
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT: Final = 0x3
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA: Final = 0x4
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST: Final = 0x5
KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID: Final = 0x6
KVM_XEN_VCPU_ATTR_TYPE_TIMER: Final = 0x7
KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR: Final = 0x8
KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA: Final = 0x9


class XenHvmConfig(Struct):
    """KVM_XEN_HVM_CONFIG. The blobs' addresses are the client's, their sizes in pages."""

    c_name = "struct kvm_xen_hvm_config"
    _fields_ = (
        ("flags", u32),
        ("msr", u32),
        ("blob_addr_32", u64),
        ("blob_addr_64", u64),
        ("blob_size_32", u8),
        ("blob_size_64", u8),
        ("pad2", u8 * 30),
    )


class XenSharedInfo(Union):
    _fields_ = (
        ("gfn", u64),
        ("hva", u64),
    )


class XenEvtchnPort(Struct):
    _fields_ = (
        ("port", u32),
        ("vcpu", u32),
        ("priority", u32),
    )


class XenEvtchnEventfd(Struct):
    _fields_ = (
        ("port", u32),
        ("fd", s32),
    )


class XenEvtchnDeliver(Union):
    _fields_ = (
        ("port", XenEvtchnPort),
        ("eventfd", XenEvtchnEventfd),
        ("padding", u32 * 4),
    )


class XenEvtchn(Struct):
    _fields_ = (
        ("send_port", u32),
        ("type", u32),
        ("flags", u32),
        ("deliver", XenEvtchnDeliver),
    )


class XenHvmAttrUnion(Union):
    _fields_ = (
        ("long_mode", u8),
        ("vector", u8),
        ("runstate_update_flag", u8),
        ("shared_info", XenSharedInfo),
        ("evtchn", XenEvtchn),
        ("xen_version", u32),
        ("pad", u64 * 8),
    )


class XenHvmAttr(Struct):
    """KVM_XEN_HVM_GET_ATTR, KVM_XEN_HVM_SET_ATTR."""

    c_name = "struct kvm_xen_hvm_attr"
    _fields_ = (
        ("type", u16),
        ("pad", u16 * 3),
        ("u", XenHvmAttrUnion),
    )


class XenRunstate(Struct):
    """Times in ns."""

    _fields_ = (
        ("state", u64),
        ("state_entry_time", u64),
        ("time_running", u64),
        ("time_runnable", u64),
        ("time_blocked", u64),
        ("time_offline", u64),
    )


class XenTimer(Struct):
    _fields_ = (
        ("port", u32),
        ("priority", u32),
        ("expires_ns", u64),
    )


class XenVcpuAttrUnion(Union):
    _fields_ = (
        ("gpa", u64),
        ("hva", u64),
        ("pad", u64 * 8),
        ("runstate", XenRunstate),
        ("vcpu_id", u32),
        ("timer", XenTimer),
        ("vector", u8),
    )


class XenVcpuAttr(Struct):
    """KVM_XEN_VCPU_GET_ATTR, KVM_XEN_VCPU_SET_ATTR."""

    c_name = "struct kvm_xen_vcpu_attr"
    _fields_ = (
        ("type", u16),
        ("pad", u16 * 3),
        ("u", XenVcpuAttrUnion),
    )
