"""Memslots, memory attributes, guest_memfd, dirty tracking, coalesced MMIO."""

from typing import Final

from kvmfs.abi.layout import PAGE_SIZE, Struct, Union, u8, u32, u64

KVM_MEM_LOG_DIRTY_PAGES: Final = 1 << 0
KVM_MEM_READONLY: Final = 1 << 1
KVM_MEM_GUEST_MEMFD: Final = 1 << 2

KVM_MEMORY_ATTRIBUTE_PRIVATE: Final = 1 << 3

KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: Final = 1 << 0
KVM_DIRTY_LOG_INITIALLY_SET: Final = 1 << 1

# Page offset of the dirty ring in a vCPU's mapping.
KVM_DIRTY_LOG_PAGE_OFFSET: Final = 64
KVM_DIRTY_GFN_F_DIRTY: Final = 1 << 0
KVM_DIRTY_GFN_F_RESET: Final = 1 << 1
KVM_DIRTY_GFN_F_MASK: Final = 0x3


class UserspaceMemoryRegion(Struct):
    """KVM_SET_USER_MEMORY_REGION. Sizes in bytes; ``userspace_addr`` is an address of the client."""

    c_name = "struct kvm_userspace_memory_region"
    _fields_ = (
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    )


class UserspaceMemoryRegion2(Struct):
    """KVM_SET_USER_MEMORY_REGION2. ``guest_memfd`` is an fd number of the client."""

    c_name = "struct kvm_userspace_memory_region2"
    _fields_ = (
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
        ("guest_memfd_offset", u64),
        ("guest_memfd", u32),
        ("pad1", u32),
        ("pad2", u64 * 14),
    )


class MemoryAttributes(Struct):
    """KVM_SET_MEMORY_ATTRIBUTES."""

    c_name = "struct kvm_memory_attributes"
    _fields_ = (
        ("address", u64),
        ("size", u64),
        ("attributes", u64),
        ("flags", u64),
    )


class CreateGuestMemfd(Struct):
    """KVM_CREATE_GUEST_MEMFD."""

    c_name = "struct kvm_create_guest_memfd"
    _fields_ = (
        ("size", u64),
        ("flags", u64),
        ("reserved", u64 * 6),
    )


class PreFaultMemory(Struct):
    """KVM_PRE_FAULT_MEMORY. Written back with what is left of the range."""

    c_name = "struct kvm_pre_fault_memory"
    _fields_ = (
        ("gpa", u64),
        ("size", u64),
        ("flags", u64),
        ("padding", u64 * 5),
    )


class _BitmapPointer(Union):
    _fields_ = (
        ("dirty_bitmap", u64),
        ("padding2", u64),
    )


class DirtyLog(Struct):
    """KVM_GET_DIRTY_LOG. ``slot`` has the address space in its upper half; one bit per page, in whole longs."""

    c_name = "struct kvm_dirty_log"
    _anonymous_ = ("_bitmap",)
    _fields_ = (
        ("slot", u32),
        ("padding1", u32),
        ("_bitmap", _BitmapPointer),
    )


class ClearDirtyLog(Struct):
    """KVM_CLEAR_DIRTY_LOG."""

    c_name = "struct kvm_clear_dirty_log"
    _anonymous_ = ("_bitmap",)
    _fields_ = (
        ("slot", u32),
        ("num_pages", u32),
        ("first_page", u64),
        ("_bitmap", _BitmapPointer),
    )


class DirtyGfn(Struct):
    """An entry of the dirty ring. ``flags``: 0 invalid, DIRTY set by KVM, RESET set by the client when harvested."""

    c_name = "struct kvm_dirty_gfn"
    _fields_ = (
        ("flags", u32),
        ("slot", u32),
        ("offset", u64),
    )


class _PioOrPad(Union):
    _fields_ = (
        ("pad", u32),
        ("pio", u32),
    )


class CoalescedMmioZone(Struct):
    """KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO."""

    c_name = "struct kvm_coalesced_mmio_zone"
    _anonymous_ = ("_pio",)
    _fields_ = (
        ("addr", u64),
        ("size", u32),
        ("_pio", _PioOrPad),
    )


class CoalescedMmio(Struct):
    """A write in the coalesced MMIO ring."""

    c_name = "struct kvm_coalesced_mmio"
    _anonymous_ = ("_pio",)
    _fields_ = (
        ("phys_addr", u64),
        ("len", u32),
        ("_pio", _PioOrPad),
        ("data", u8 * 8),
    )


class CoalescedMmioRing(Struct):
    """The ring page of a VM, mapped with each vCPU: KVM moves ``last``, the client ``first``."""

    c_name = "struct kvm_coalesced_mmio_ring"
    _fields_ = (
        ("first", u32),
        ("last", u32),
        ("coalesced_mmio", CoalescedMmio * 0),
    )


KVM_COALESCED_MMIO_MAX: Final = (PAGE_SIZE - 8) // 24
