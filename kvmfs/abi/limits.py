"""Sizes and masks that are not in the uapi headers, but that KVM's answers are made of.

Sources: include/linux/kvm_host.h, arch/x86/include/asm/kvm_host.h, arch/x86/kvm/x86.c, include/linux/kvm_dirty_ring.h.
"""

from typing import Final

from kvmfs.abi import debug, memory, para, vm
from kvmfs.abi.layout import PAGE_SIZE

# Default of CONFIG_KVM_MAX_NR_VCPUS; vCPU ids (APIC ids) may be sparse.
KVM_MAX_VCPUS: Final = 1024
KVM_VCPU_ID_RATIO: Final = 4
KVM_MAX_VCPU_IDS: Final = KVM_MAX_VCPUS * KVM_VCPU_ID_RATIO

# Slot ids are 15 bits; x86 keeps three for itself. A slot has fewer than 2**31 pages.
KVM_MEM_SLOTS_NUM: Final = 32767
KVM_INTERNAL_MEM_SLOTS: Final = 3
KVM_USER_MEM_SLOTS: Final = KVM_MEM_SLOTS_NUM - KVM_INTERNAL_MEM_SLOTS
KVM_MEM_MAX_NR_PAGES: Final = (1 << 31) - 1

# The second address space is SMM's.
KVM_MAX_NR_ADDRESS_SPACES: Final = 2

KVM_MAX_IRQ_ROUTES: Final = 4096
KVM_MAX_CPUID_ENTRIES: Final = 256
MAX_IO_MSRS: Final = 256
KVM_MAX_MCE_BANKS: Final = 32

# Entries of a dirty ring; of them RSVD stay free for what one exit may dirty.
KVM_DIRTY_RING_RSVD_ENTRIES: Final = 64
KVM_DIRTY_RING_MAX_ENTRIES: Final = 65536

KVM_HALT_POLL_NS_DEFAULT: Final = 200000
APIC_BUS_CYCLE_NS_DEFAULT: Final = 1

# A vCPU fd maps the kvm_run page, the PIO data page and the coalesced MMIO ring.
VCPU_MMAP_SIZE: Final = 3 * PAGE_SIZE

KVM_GUESTDBG_VALID_MASK: Final = (
    debug.KVM_GUESTDBG_ENABLE
    | debug.KVM_GUESTDBG_SINGLESTEP
    | debug.KVM_GUESTDBG_USE_HW_BP
    | debug.KVM_GUESTDBG_USE_SW_BP
    | debug.KVM_GUESTDBG_INJECT_BP
    | debug.KVM_GUESTDBG_INJECT_DB
    | debug.KVM_GUESTDBG_BLOCKIRQ
)
KVM_CLOCK_VALID_FLAGS: Final = vm.KVM_CLOCK_TSC_STABLE | vm.KVM_CLOCK_REALTIME | vm.KVM_CLOCK_HOST_TSC
KVM_X2APIC_API_VALID_FLAGS: Final = vm.KVM_X2APIC_API_USE_32BIT_IDS | vm.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
KVM_EXIT_HYPERCALL_VALID_MASK: Final = 1 << para.KVM_HC_MAP_GPA_RANGE
KVM_DIRTY_LOG_MANUAL_CAPS: Final = memory.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | memory.KVM_DIRTY_LOG_INITIALLY_SET
KVM_BUS_LOCK_DETECTION_VALID_MODE: Final = vm.KVM_BUS_LOCK_DETECTION_OFF | vm.KVM_BUS_LOCK_DETECTION_EXIT
KVM_X86_NOTIFY_VMEXIT_VALID_BITS: Final = vm.KVM_X86_NOTIFY_VMEXIT_ENABLED | vm.KVM_X86_NOTIFY_VMEXIT_USER
KVM_CAP_PMU_VALID_MASK: Final = vm.KVM_PMU_CAP_DISABLE
KVM_X86_VALID_QUIRKS: Final = (1 << 11) - 1
