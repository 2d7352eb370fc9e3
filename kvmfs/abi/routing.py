"""How interrupts get in and writes get out: GSI routing, MSI, irqfd, ioeventfd."""

from typing import Final

from kvmfs.abi.layout import Struct, Union, s32, u8, u32, u64

KVM_IRQ_ROUTING_IRQCHIP: Final = 1
KVM_IRQ_ROUTING_MSI: Final = 2
KVM_IRQ_ROUTING_S390_ADAPTER: Final = 3
KVM_IRQ_ROUTING_HV_SINT: Final = 4
KVM_IRQ_ROUTING_XEN_EVTCHN: Final = 5

KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: Final = 0xFFFFFFFF


class IrqRoutingIrqchip(Struct):
    c_name = "struct kvm_irq_routing_irqchip"
    _fields_ = (
        ("irqchip", u32),
        ("pin", u32),
    )


class _DevidOrPad(Union):
    _fields_ = (
        ("pad", u32),
        ("devid", u32),
    )


class IrqRoutingMsi(Struct):
    c_name = "struct kvm_irq_routing_msi"
    _anonymous_ = ("_devid",)
    _fields_ = (
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("_devid", _DevidOrPad),
    )


class IrqRoutingHvSint(Struct):
    c_name = "struct kvm_irq_routing_hv_sint"
    _fields_ = (
        ("vcpu", u32),
        ("sint", u32),
    )


class IrqRoutingXenEvtchn(Struct):
    """A Xen event channel; also the argument of KVM_XEN_HVM_EVTCHN_SEND."""

    c_name = "struct kvm_irq_routing_xen_evtchn"
    _fields_ = (
        ("port", u32),
        ("vcpu", u32),
        ("priority", u32),
    )


class IrqRoutingTarget(Union):
    _fields_ = (
        ("irqchip", IrqRoutingIrqchip),
        ("msi", IrqRoutingMsi),
        ("hv_sint", IrqRoutingHvSint),
        ("xen_evtchn", IrqRoutingXenEvtchn),
        ("pad", u32 * 8),
    )


class IrqRoutingEntry(Struct):
    c_name = "struct kvm_irq_routing_entry"
    _fields_ = (
        ("gsi", u32),
        ("type", u32),
        ("flags", u32),
        ("pad", u32),
        ("u", IrqRoutingTarget),
    )


class IrqRouting(Struct):
    """KVM_SET_GSI_ROUTING: the whole table, each time."""

    c_name = "struct kvm_irq_routing"
    _fields_ = (
        ("nr", u32),
        ("flags", u32),
        ("entries", IrqRoutingEntry * 0),
    )


KVM_IRQFD_FLAG_DEASSIGN: Final = 1 << 0
KVM_IRQFD_FLAG_RESAMPLE: Final = 1 << 1


class Irqfd(Struct):
    """KVM_IRQFD. ``fd`` and ``resamplefd`` are fd numbers of the client."""

    c_name = "struct kvm_irqfd"
    _fields_ = (
        ("fd", u32),
        ("gsi", u32),
        ("flags", u32),
        ("resamplefd", u32),
        ("pad", u8 * 16),
    )


KVM_IOEVENTFD_FLAG_DATAMATCH: Final = 1 << 0
KVM_IOEVENTFD_FLAG_PIO: Final = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN: Final = 1 << 2
KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: Final = 1 << 3
KVM_IOEVENTFD_VALID_FLAG_MASK: Final = (1 << 5) - 1


class Ioeventfd(Struct):
    """KVM_IOEVENTFD. ``len`` is 1, 2, 4, 8, or 0 for any; ``fd`` is an fd number of the client."""

    c_name = "struct kvm_ioeventfd"
    _fields_ = (
        ("datamatch", u64),
        ("addr", u64),
        ("len", u32),
        ("fd", s32),
        ("flags", u32),
        ("pad", u8 * 36),
    )


KVM_MSI_VALID_DEVID: Final = 1 << 0


class Msi(Struct):
    """KVM_SIGNAL_MSI."""

    c_name = "struct kvm_msi"
    _fields_ = (
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("flags", u32),
        ("devid", u32),
        ("pad", u8 * 12),
    )
