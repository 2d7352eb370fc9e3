"""Exception vectors, debug registers, guest debugging, machine checks."""

from typing import Final

from kvmfs.abi.layout import Struct, u8, u32, u64

# Exception vectors.
DE_VECTOR: Final = 0
DB_VECTOR: Final = 1
BP_VECTOR: Final = 3
OF_VECTOR: Final = 4
BR_VECTOR: Final = 5
UD_VECTOR: Final = 6
NM_VECTOR: Final = 7
DF_VECTOR: Final = 8
TS_VECTOR: Final = 10
NP_VECTOR: Final = 11
SS_VECTOR: Final = 12
GP_VECTOR: Final = 13
PF_VECTOR: Final = 14
MF_VECTOR: Final = 16
AC_VECTOR: Final = 17
MC_VECTOR: Final = 18
XM_VECTOR: Final = 19
VE_VECTOR: Final = 20


class Debugregs(Struct):
    """KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS."""

    c_name = "struct kvm_debugregs"
    _fields_ = (
        ("db", u64 * 4),
        ("dr6", u64),
        ("dr7", u64),
        ("flags", u64),
        ("reserved", u64 * 9),
    )


KVM_GUESTDBG_ENABLE: Final = 0x00000001
KVM_GUESTDBG_SINGLESTEP: Final = 0x00000002
KVM_GUESTDBG_USE_SW_BP: Final = 0x00010000
KVM_GUESTDBG_USE_HW_BP: Final = 0x00020000
KVM_GUESTDBG_INJECT_DB: Final = 0x00040000
KVM_GUESTDBG_INJECT_BP: Final = 0x00080000
KVM_GUESTDBG_BLOCKIRQ: Final = 0x00100000


class GuestDebugArch(Struct):
    c_name = "struct kvm_guest_debug_arch"
    _fields_ = (("debugreg", u64 * 8),)


class GuestDebug(Struct):
    """KVM_SET_GUEST_DEBUG."""

    c_name = "struct kvm_guest_debug"
    _fields_ = (
        ("control", u32),
        ("pad", u32),
        ("arch", GuestDebugArch),
    )


class DebugExitArch(Struct):
    """What KVM_EXIT_DEBUG reports."""

    c_name = "struct kvm_debug_exit_arch"
    _fields_ = (
        ("exception", u32),
        ("pad", u32),
        ("pc", u64),
        ("dr6", u64),
        ("dr7", u64),
    )


class X86Mce(Struct):
    """KVM_X86_SET_MCE."""

    c_name = "struct kvm_x86_mce"
    _fields_ = (
        ("status", u64),
        ("addr", u64),
        ("misc", u64),
        ("mcg_status", u64),
        ("bank", u8),
        ("pad1", u8 * 7),
        ("pad2", u64 * 3),
    )
