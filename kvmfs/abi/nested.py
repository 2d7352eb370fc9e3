"""State of nested virtualization."""

from typing import Final

from kvmfs.abi.layout import Struct, Union, u8, u16, u32, u64

KVM_STATE_NESTED_FORMAT_VMX: Final = 0
KVM_STATE_NESTED_FORMAT_SVM: Final = 1

KVM_STATE_NESTED_GUEST_MODE: Final = 0x00000001
KVM_STATE_NESTED_RUN_PENDING: Final = 0x00000002
KVM_STATE_NESTED_EVMCS: Final = 0x00000004
KVM_STATE_NESTED_MTF_PENDING: Final = 0x00000008
KVM_STATE_NESTED_GIF_SET: Final = 0x00000100

KVM_STATE_NESTED_SMM_GUEST_MODE: Final = 0x00000001
KVM_STATE_NESTED_SMM_VMXON: Final = 0x00000002

KVM_STATE_NESTED_VMX_VMCS_SIZE: Final = 0x1000
KVM_STATE_NESTED_SVM_VMCB_SIZE: Final = 0x1000

KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE: Final = 0x00000001


class VmxNestedStateData(Struct):
    c_name = "struct kvm_vmx_nested_state_data"
    _fields_ = (
        ("vmcs12", u8 * KVM_STATE_NESTED_VMX_VMCS_SIZE),
        ("shadow_vmcs12", u8 * KVM_STATE_NESTED_VMX_VMCS_SIZE),
    )


class VmxNestedSmm(Struct):
    _fields_ = (("flags", u16),)


class VmxNestedStateHdr(Struct):
    c_name = "struct kvm_vmx_nested_state_hdr"
    _fields_ = (
        ("vmxon_pa", u64),
        ("vmcs12_pa", u64),
        ("smm", VmxNestedSmm),
        ("pad", u16),
        ("flags", u32),
        ("preemption_timer_deadline", u64),
    )


class SvmNestedStateData(Struct):
    c_name = "struct kvm_svm_nested_state_data"
    _fields_ = (("vmcb12", u8 * KVM_STATE_NESTED_SVM_VMCB_SIZE),)


class SvmNestedStateHdr(Struct):
    c_name = "struct kvm_svm_nested_state_hdr"
    _fields_ = (("vmcb_pa", u64),)


class NestedStateHdr(Union):
    _fields_ = (
        ("vmx", VmxNestedStateHdr),
        ("svm", SvmNestedStateHdr),
        ("pad", u8 * 120),
    )


class NestedStateData(Union):
    _fields_ = (
        ("vmx", VmxNestedStateData * 0),
        ("svm", SvmNestedStateData * 0),
    )


class NestedState(Struct):
    """KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE. ``size`` in bytes, this header included."""

    c_name = "struct kvm_nested_state"
    _fields_ = (
        ("flags", u16),
        ("format", u16),
        ("size", u32),
        ("hdr", NestedStateHdr),
        ("data", NestedStateData),
    )
