"""State of the in-kernel interrupt controllers and the PIT."""

from typing import Final

from kvmfs.abi.layout import Struct, Union, s32, s64, u8, u16, u32, u64

KVM_IRQCHIP_PIC_MASTER: Final = 0
KVM_IRQCHIP_PIC_SLAVE: Final = 1
KVM_IRQCHIP_IOAPIC: Final = 2
KVM_NR_IRQCHIPS: Final = 3
KVM_IOAPIC_NUM_PINS: Final = 24


class _IrqOrStatus(Union):
    _fields_ = (
        ("irq", u32),
        ("status", s32),
    )


class IrqLevel(Struct):
    """KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS. ``irq`` is a GSI."""

    c_name = "struct kvm_irq_level"
    _anonymous_ = ("_irq",)
    _fields_ = (
        ("_irq", _IrqOrStatus),
        ("level", u32),
    )


class PicState(Struct):
    """One i8259."""

    c_name = "struct kvm_pic_state"
    _fields_ = (
        ("last_irr", u8),
        ("irr", u8),
        ("imr", u8),
        ("isr", u8),
        ("priority_add", u8),
        ("irq_base", u8),
        ("read_reg_select", u8),
        ("poll", u8),
        ("special_mask", u8),
        ("init_state", u8),
        ("auto_eoi", u8),
        ("rotate_on_auto_eoi", u8),
        ("special_fully_nested_mode", u8),
        ("init4", u8),
        ("elcr", u8),
        ("elcr_mask", u8),
    )


class IoapicRedirectionFields(Struct):
    _fields_ = (
        ("vector", u8),
        ("delivery_mode", u8, 3),
        ("dest_mode", u8, 1),
        ("delivery_status", u8, 1),
        ("polarity", u8, 1),
        ("remote_irr", u8, 1),
        ("trig_mode", u8, 1),
        ("mask", u8, 1),
        ("reserve", u8, 7),
        ("reserved", u8 * 4),
        ("dest_id", u8),
    )


class IoapicRedirection(Union):
    """A redirection table entry."""

    _fields_ = (
        ("bits", u64),
        ("fields", IoapicRedirectionFields),
    )


class IoapicState(Struct):
    c_name = "struct kvm_ioapic_state"
    _fields_ = (
        ("base_address", u64),
        ("ioregsel", u32),
        ("id", u32),
        ("irr", u32),
        ("pad", u32),
        ("redirtbl", IoapicRedirection * KVM_IOAPIC_NUM_PINS),
    )


class IrqchipChip(Union):
    _fields_ = (
        ("dummy", u8 * 512),
        ("pic", PicState),
        ("ioapic", IoapicState),
    )


class Irqchip(Struct):
    """KVM_GET_IRQCHIP, KVM_SET_IRQCHIP. ``chip_id`` says which member of ``chip`` is meant."""

    c_name = "struct kvm_irqchip"
    _fields_ = (
        ("chip_id", u32),
        ("pad", u32),
        ("chip", IrqchipChip),
    )


KVM_PIT_SPEAKER_DUMMY: Final = 1
KVM_PIT_FLAGS_HPET_LEGACY: Final = 0x00000001
KVM_PIT_FLAGS_SPEAKER_DATA_ON: Final = 0x00000002


class PitConfig(Struct):
    """KVM_CREATE_PIT2."""

    c_name = "struct kvm_pit_config"
    _fields_ = (
        ("flags", u32),
        ("pad", u32 * 15),
    )


class PitChannelState(Struct):
    """A channel of the i8254. ``count`` can be 65536; ``count_load_time`` in ns of CLOCK_MONOTONIC."""

    c_name = "struct kvm_pit_channel_state"
    _fields_ = (
        ("count", u32),
        ("latched_count", u16),
        ("count_latched", u8),
        ("status_latched", u8),
        ("status", u8),
        ("read_state", u8),
        ("write_state", u8),
        ("write_latch", u8),
        ("rw_mode", u8),
        ("mode", u8),
        ("bcd", u8),
        ("gate", u8),
        ("count_load_time", s64),
    )


class PitState(Struct):
    """KVM_GET_PIT, KVM_SET_PIT."""

    c_name = "struct kvm_pit_state"
    _fields_ = (("channels", PitChannelState * 3),)


class PitState2(Struct):
    """KVM_GET_PIT2, KVM_SET_PIT2."""

    c_name = "struct kvm_pit_state2"
    _fields_ = (
        ("channels", PitChannelState * 3),
        ("flags", u32),
        ("reserved", u32 * 9),
    )


class ReinjectControl(Struct):
    """KVM_REINJECT_CONTROL."""

    c_name = "struct kvm_reinject_control"
    _fields_ = (
        ("pit_reinject", u8),
        ("reserved", u8 * 31),
    )
