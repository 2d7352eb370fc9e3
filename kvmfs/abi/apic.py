"""The local APIC as userspace sees it."""

from typing import Final

from kvmfs.abi.layout import Struct, u8, u32, u64

KVM_APIC_REG_SIZE: Final = 0x400


class LapicState(Struct):
    """KVM_GET_LAPIC, KVM_SET_LAPIC: the first KiB of the APIC page, a register each 16 bytes."""

    c_name = "struct kvm_lapic_state"
    _fields_ = (("regs", u8 * KVM_APIC_REG_SIZE),)


class TprAccessCtl(Struct):
    """KVM_TPR_ACCESS_REPORTING."""

    c_name = "struct kvm_tpr_access_ctl"
    _fields_ = (
        ("enabled", u32),
        ("flags", u32),
        ("reserved", u32 * 8),
    )


class VapicAddr(Struct):
    """KVM_SET_VAPIC_ADDR."""

    c_name = "struct kvm_vapic_addr"
    _fields_ = (("vapic_addr", u64),)
