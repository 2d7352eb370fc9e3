"""vCPU state: registers, events, MP state."""

from typing import Final

from kvmfs.abi.layout import Struct, u8, u16, u32, u64

KVM_NR_INTERRUPTS: Final = 256


class Regs(Struct):
    """KVM_GET_REGS, KVM_SET_REGS."""

    c_name = "struct kvm_regs"
    _fields_ = (
        *((name, u64) for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp")),
        *((name, u64) for name in ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")),
        ("rip", u64),
        ("rflags", u64),
    )


class Segment(Struct):
    """A segment register with its hidden part. ``limit`` in bytes, whatever ``g`` says."""

    c_name = "struct kvm_segment"
    _fields_ = (
        ("base", u64),
        ("limit", u32),
        ("selector", u16),
        ("type", u8),
        ("present", u8),
        ("dpl", u8),
        ("db", u8),
        ("s", u8),
        ("l", u8),
        ("g", u8),
        ("avl", u8),
        ("unusable", u8),
        ("padding", u8),
    )


class Dtable(Struct):
    """GDTR or IDTR."""

    c_name = "struct kvm_dtable"
    _fields_ = (
        ("base", u64),
        ("limit", u16),
        ("padding", u16 * 3),
    )


_SYSTEM_REGISTERS = (
    *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
    ("gdt", Dtable),
    ("idt", Dtable),
    *((name, u64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
)


class Sregs(Struct):
    """KVM_GET_SREGS, KVM_SET_SREGS. ``interrupt_bitmap``: at most one bit, the injected external interrupt."""

    c_name = "struct kvm_sregs"
    _fields_ = (
        *_SYSTEM_REGISTERS,
        ("interrupt_bitmap", u64 * ((KVM_NR_INTERRUPTS + 63) // 64)),
    )


KVM_SREGS2_FLAGS_PDPTRS_VALID: Final = 1


class Sregs2(Struct):
    """KVM_GET_SREGS2, KVM_SET_SREGS2."""

    c_name = "struct kvm_sregs2"
    _fields_ = (
        *_SYSTEM_REGISTERS,
        ("flags", u64),
        ("pdptrs", u64 * 4),
    )


# VcpuEvents.flags: which fields KVM_SET_VCPU_EVENTS is to take.
KVM_VCPUEVENT_VALID_NMI_PENDING: Final = 0x01
KVM_VCPUEVENT_VALID_SIPI_VECTOR: Final = 0x02
KVM_VCPUEVENT_VALID_SHADOW: Final = 0x04
KVM_VCPUEVENT_VALID_SMM: Final = 0x08
KVM_VCPUEVENT_VALID_PAYLOAD: Final = 0x10
KVM_VCPUEVENT_VALID_TRIPLE_FAULT: Final = 0x20

# VcpuEvents.interrupt.shadow
KVM_X86_SHADOW_INT_MOV_SS: Final = 0x01
KVM_X86_SHADOW_INT_STI: Final = 0x02


class EventsException(Struct):
    _fields_ = (
        ("injected", u8),
        ("nr", u8),
        ("has_error_code", u8),
        ("pending", u8),
        ("error_code", u32),
    )


class EventsInterrupt(Struct):
    _fields_ = (
        ("injected", u8),
        ("nr", u8),
        ("soft", u8),
        ("shadow", u8),
    )


class EventsNmi(Struct):
    _fields_ = (
        ("injected", u8),
        ("pending", u8),
        ("masked", u8),
        ("pad", u8),
    )


class EventsSmi(Struct):
    _fields_ = (
        ("smm", u8),
        ("pending", u8),
        ("smm_inside_nmi", u8),
        ("latched_init", u8),
    )


class EventsTripleFault(Struct):
    _fields_ = (("pending", u8),)


class VcpuEvents(Struct):
    """KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS."""

    c_name = "struct kvm_vcpu_events"
    _fields_ = (
        ("exception", EventsException),
        ("interrupt", EventsInterrupt),
        ("nmi", EventsNmi),
        ("sipi_vector", u32),
        ("flags", u32),
        ("smi", EventsSmi),
        ("triple_fault", EventsTripleFault),
        ("reserved", u8 * 26),
        ("exception_has_payload", u8),
        ("exception_payload", u64),
    )


# MpState.mp_state; STOPPED and what follows are of other architectures, but for AP_RESET_HOLD (SEV-ES).
KVM_MP_STATE_RUNNABLE: Final = 0
KVM_MP_STATE_UNINITIALIZED: Final = 1
KVM_MP_STATE_INIT_RECEIVED: Final = 2
KVM_MP_STATE_HALTED: Final = 3
KVM_MP_STATE_SIPI_RECEIVED: Final = 4
KVM_MP_STATE_STOPPED: Final = 5
KVM_MP_STATE_CHECK_STOP: Final = 6
KVM_MP_STATE_OPERATING: Final = 7
KVM_MP_STATE_LOAD: Final = 8
KVM_MP_STATE_AP_RESET_HOLD: Final = 9
KVM_MP_STATE_SUSPENDED: Final = 10


class MpState(Struct):
    """KVM_GET_MP_STATE, KVM_SET_MP_STATE."""

    c_name = "struct kvm_mp_state"
    _fields_ = (("mp_state", u32),)


class Translation(Struct):
    """KVM_TRANSLATE."""

    c_name = "struct kvm_translation"
    _fields_ = (
        ("linear_address", u64),
        ("physical_address", u64),
        ("valid", u8),
        ("writeable", u8),
        ("usermode", u8),
        ("pad", u8 * 5),
    )


class Interrupt(Struct):
    """KVM_INTERRUPT."""

    c_name = "struct kvm_interrupt"
    _fields_ = (("irq", u32),)


class SignalMask(Struct):
    """KVM_SET_SIGNAL_MASK. ``len`` must be 8, the kernel's sizeof(sigset_t)."""

    c_name = "struct kvm_signal_mask"
    _fields_ = (
        ("len", u32),
        ("sigset", u8 * 0),
    )


# Group and attribute of a vCPU's KVM_{GET,SET,HAS}_DEVICE_ATTR.
KVM_VCPU_TSC_CTRL: Final = 0
KVM_VCPU_TSC_OFFSET: Final = 0
