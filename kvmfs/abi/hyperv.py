"""Hyper-V emulation."""

from typing import Final

from kvmfs.abi.layout import Struct, Union, s32, u32, u64

KVM_EXIT_HYPERV_SYNIC: Final = 1
KVM_EXIT_HYPERV_HCALL: Final = 2
KVM_EXIT_HYPERV_SYNDBG: Final = 3


class HypervSynic(Struct):
    _fields_ = (
        ("msr", u32),
        ("pad2", u32),
        ("control", u64),
        ("evt_page", u64),
        ("msg_page", u64),
    )


class HypervHcall(Struct):
    _fields_ = (
        ("input", u64),
        ("result", u64),
        ("params", u64 * 2),
    )


class HypervSyndbg(Struct):
    _fields_ = (
        ("msr", u32),
        ("pad2", u32),
        ("control", u64),
        ("status", u64),
        ("send_page", u64),
        ("recv_page", u64),
        ("pending_page", u64),
    )


class HypervExitUnion(Union):
    _fields_ = (
        ("synic", HypervSynic),
        ("hcall", HypervHcall),
        ("syndbg", HypervSyndbg),
    )


class HypervExit(Struct):
    c_name = "struct kvm_hyperv_exit"
    _fields_ = (
        ("type", u32),
        ("pad1", u32),
        ("u", HypervExitUnion),
    )


KVM_HYPERV_CONN_ID_MASK: Final = 0x00FFFFFF
KVM_HYPERV_EVENTFD_DEASSIGN: Final = 1 << 0


class HypervEventfd(Struct):
    """KVM_HYPERV_EVENTFD. ``fd`` is an fd number of the client."""

    c_name = "struct kvm_hyperv_eventfd"
    _fields_ = (
        ("conn_id", u32),
        ("fd", s32),
        ("flags", u32),
        ("padding", u32 * 3),
    )
