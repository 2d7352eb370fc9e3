"""The local APIC as userspace sees it."""

from typing import Final

from kvmfs.abi.layout import Struct, u8, u32, u64

KVM_APIC_REG_SIZE: Final = 0x400

# Registers by their offset in the page (arch/x86/include/asm/apicdef.h)
APIC_ID: Final = 0x20
APIC_LVR: Final = 0x30
APIC_TASKPRI: Final = 0x80
APIC_ARBPRI: Final = 0x90
APIC_PROCPRI: Final = 0xA0
APIC_EOI: Final = 0xB0
APIC_LDR: Final = 0xD0
APIC_DFR: Final = 0xE0
APIC_SPIV: Final = 0xF0
APIC_ISR: Final = 0x100
APIC_TMR: Final = 0x180
APIC_IRR: Final = 0x200
APIC_ESR: Final = 0x280
APIC_LVTCMCI: Final = 0x2F0
APIC_ICR: Final = 0x300
APIC_ICR2: Final = 0x310
APIC_LVTT: Final = 0x320
APIC_LVTTHMR: Final = 0x330
APIC_LVTPC: Final = 0x340
APIC_LVT0: Final = 0x350
APIC_LVT1: Final = 0x360
APIC_LVTERR: Final = 0x370
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390
APIC_TDCR: Final = 0x3E0
APIC_SELF_IPI: Final = 0x3F0
APIC_BASE_MSR: Final = 0x800

APIC_LVR_DIRECTED_EOI: Final = 1 << 24
APIC_SPIV_APIC_ENABLED: Final = 1 << 8
APIC_SPIV_DIRECTED_EOI: Final = 1 << 12
APIC_DFR_CLUSTER: Final = 0x0FFFFFFF
APIC_DFR_FLAT: Final = 0xFFFFFFFF
APIC_VECTOR_MASK: Final = 0xFF
APIC_LVT_MASKED: Final = 1 << 16
APIC_LVT_LEVEL_TRIGGER: Final = 1 << 15
APIC_LVT_TIMER_ONESHOT: Final = 0
APIC_LVT_TIMER_PERIODIC: Final = 1 << 17
APIC_LVT_TIMER_TSCDEADLINE: Final = 2 << 17

# Of ICR, and of LVTs where they have the field
APIC_DM_FIXED: Final = 0x000
APIC_DM_LOWEST: Final = 0x100
APIC_DM_SMI: Final = 0x200
APIC_DM_REMRD: Final = 0x300
APIC_DM_NMI: Final = 0x400
APIC_DM_INIT: Final = 0x500
APIC_DM_STARTUP: Final = 0x600
APIC_DM_EXTINT: Final = 0x700
APIC_MODE_MASK: Final = 0x700
APIC_DEST_LOGICAL: Final = 0x800
APIC_ICR_BUSY: Final = 0x1000
APIC_INT_ASSERT: Final = 0x4000
APIC_INT_LEVELTRIG: Final = 0x8000
APIC_DEST_NOSHORT: Final = 0
APIC_DEST_SELF: Final = 0x40000
APIC_DEST_ALLINC: Final = 0x80000
APIC_DEST_ALLBUT: Final = 0xC0000
APIC_SHORT_MASK: Final = 0xC0000
APIC_BROADCAST: Final = 0xFF
X2APIC_BROADCAST: Final = 0xFFFFFFFF


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
