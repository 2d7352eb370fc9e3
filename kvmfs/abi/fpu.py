"""FPU and extended state."""

from typing import Final

from kvmfs.abi.layout import Struct, u8, u16, u32, u64


class Fpu(Struct):
    """KVM_GET_FPU, KVM_SET_FPU. ``ftwx`` is FXSAVE's abridged tag byte."""

    c_name = "struct kvm_fpu"
    _fields_ = (
        ("fpr", u8 * 16 * 8),
        ("fcw", u16),
        ("fsw", u16),
        ("ftwx", u8),
        ("pad1", u8),
        ("last_opcode", u16),
        ("last_ip", u64),
        ("last_dp", u64),
        ("xmm", u8 * 16 * 16),
        ("mxcsr", u32),
        ("pad2", u32),
    )


class Xsave(Struct):
    """KVM_GET_XSAVE, KVM_SET_XSAVE, KVM_GET_XSAVE2: the standard (not compacted) format of XSAVE.

    The last two have as many bytes as KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2) says on the VM, at least 4096.
    """

    c_name = "struct kvm_xsave"
    _fields_ = (
        ("region", u32 * 1024),
        ("extra", u32 * 0),
    )


KVM_MAX_XCRS: Final = 16


class Xcr(Struct):
    c_name = "struct kvm_xcr"
    _fields_ = (
        ("xcr", u32),
        ("reserved", u32),
        ("value", u64),
    )


class Xcrs(Struct):
    """KVM_GET_XCRS, KVM_SET_XCRS."""

    c_name = "struct kvm_xcrs"
    _fields_ = (
        ("nr_xcrs", u32),
        ("flags", u32),
        ("xcrs", Xcr * KVM_MAX_XCRS),
        ("padding", u64 * 16),
    )
