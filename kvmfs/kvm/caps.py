"""KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: what this KVM has, and with which values (x86.c, kvm_main.c).

A capability that is not named here is 0, and enabling it EINVAL. Only what works is named.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls, vm
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid_basic import Leaf1Ecx
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.limits import (
    KVM_DIRTY_LOG_MANUAL_CAPS,
    KVM_EXIT_HYPERCALL_VALID_MASK,
    KVM_MAX_IRQ_ROUTES,
    KVM_MAX_MCE_BANKS,
    KVM_MAX_VCPU_IDS,
    KVM_MAX_VCPUS,
    KVM_USER_MEM_SLOTS,
)
from kvmfs.abi.memory import KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
from kvmfs.abi.msrs import KVM_MSR_EXIT_REASON_VALID_MASK
from kvmfs.abi.run import KVM_COALESCED_MMIO_PAGE_OFFSET, KVM_SYNC_X86_VALID_FIELDS
from kvmfs.abi.vm import (
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X86_DEFAULT_VM,
    KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_DISABLE_EXITS_PAUSE,
    KVM_X86_DISABLE_VALID_EXITS,
    KVM_X86_SW_PROTECTED_VM,
    EnableCap,
)
from kvmfs.irqchip.ioctls import split_irqchip
from kvmfs.irqchip.words import Board
from kvmfs.kvm import accounts, fpu, guest_debug
from kvmfs.kvm.attributes import supported_attributes
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.clock import CLOCK_FLAGS
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.dirty import MAX_RING_SIZE
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.words import IRQCHIP_NONE, Cpu
from kvmfs.kvm.words import Vm as Words

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

X2APIC_API_FLAGS: Final = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
MAX_TIMER_CYCLES: Final = 0xFFFF_FFFF * 128

VM_TYPES: Final = 1 << KVM_X86_DEFAULT_VM | 1 << KVM_X86_SW_PROTECTED_VM

QUIRKS: Final = (
    vm.KVM_X86_QUIRK_LINT0_REENABLED
    | vm.KVM_X86_QUIRK_CD_NW_CLEARED
    | vm.KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    | vm.KVM_X86_QUIRK_OUT_7E_INC_RIP
    | vm.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    | vm.KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    | vm.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    | vm.KVM_X86_QUIRK_SLOT_ZAP_ALL
    | vm.KVM_X86_QUIRK_STUFF_FEATURE_MSRS
    | vm.KVM_X86_QUIRK_IGNORE_GUEST_PAT
)
"""Those that make a difference here, and those that never do."""

YES: Final = (
    Cap.IRQCHIP, Cap.HLT, Cap.MMU_SHADOW_CACHE_CONTROL, Cap.USER_MEMORY, Cap.SET_TSS_ADDR, Cap.EXT_CPUID,
    Cap.NOP_IO_DELAY, Cap.MP_STATE, Cap.SYNC_MMU, Cap.DESTROY_MEMORY_REGION_WORKS, Cap.USER_NMI,
    Cap.JOIN_MEMORY_REGIONS_WORKS, Cap.SET_BOOT_CPU_ID, Cap.SET_IDENTITY_MAP_ADDR, Cap.INTERNAL_ERROR_DATA,
    Cap.VCPU_EVENTS, Cap.DEBUGREGS, Cap.ENABLE_CAP, Cap.XSAVE, Cap.GET_TSC_KHZ, Cap.TSC_CONTROL, Cap.READONLY_MEM,
    Cap.DEVICE_CTRL, Cap.EXT_EMUL_CPUID, Cap.ENABLE_CAP_VM, Cap.CHECK_EXTENSION_VM, Cap.DISABLE_QUIRKS,
    Cap.VCPU_ATTRIBUTES, Cap.IMMEDIATE_EXIT, Cap.GET_MSR_FEATURES, Cap.MSR_PLATFORM_INFO, Cap.EXCEPTION_PAYLOAD,
    Cap.SREGS2, Cap.EXIT_ON_EMULATION_FAILURE, Cap.SYS_ATTRIBUTES, Cap.VM_TSC_CONTROL, Cap.X86_TRIPLE_FAULT_EVENT,
    Cap.USER_MEMORY2, Cap.MEMORY_FAULT_INFO, Cap.PRE_FAULT_MEMORY, Cap.ENFORCE_PV_FEATURE_CPUID, Cap.KVMCLOCK_CTRL,
    Cap.SET_GUEST_DEBUG, Cap.X86_ROBUST_SINGLESTEP, Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER, Cap.BINARY_STATS_FD,
    Cap.PIT, Cap.PIT2, Cap.PIT_STATE2, Cap.REINJECT_CONTROL, Cap.IRQ_INJECT_STATUS, Cap.IRQFD, Cap.IRQFD_RESAMPLE,
    Cap.IOEVENTFD, Cap.IOEVENTFD_ANY_LENGTH, Cap.IOEVENTFD_NO_LENGTH, Cap.SIGNAL_MSI, Cap.SPLIT_IRQCHIP,
    Cap.TSC_DEADLINE_TIMER, Cap.X86_APIC_BUS_CYCLES_NS, Cap.COALESCED_PIO, Cap.CLOCKSOURCE, Cap.HALT_POLL,
    Cap.IOAPIC_POLARITY_IGNORED,
)  # fmt: skip

DISABLE_EXITS: Final = KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_HLT
"""PAUSE never ends a run. MWAIT and C-states would be the host's own, and there is no host processor to give."""

_CPUS: Final = min(os.cpu_count() or 1, KVM_MAX_VCPUS)

VALUES: Final[dict[Cap, Callable[[], int]]] = {
    Cap.NR_VCPUS: lambda: _CPUS,
    Cap.MAX_VCPUS: lambda: KVM_MAX_VCPUS,
    Cap.MAX_VCPU_ID: lambda: KVM_MAX_VCPU_IDS,
    Cap.NR_MEMSLOTS: lambda: KVM_USER_MEM_SLOTS,
    Cap.MCE: lambda: KVM_MAX_MCE_BANKS,
    Cap.ADJUST_CLOCK: lambda: CLOCK_FLAGS,
    Cap.XCRS: lambda: int(supported_cpuid().has(Leaf1Ecx.XSAVE)),
    Cap.XSAVE2: fpu.uabi_size,
    Cap.STEAL_TIME: lambda: int(accounts.are_kept()),
    Cap.SYNC_REGS: lambda: KVM_SYNC_X86_VALID_FIELDS,
    Cap.EXIT_HYPERCALL: lambda: KVM_EXIT_HYPERCALL_VALID_MASK,
    Cap.DISABLE_QUIRKS2: lambda: QUIRKS,
    Cap.VM_TYPES: lambda: VM_TYPES,
    Cap.SET_GUEST_DEBUG2: lambda: guest_debug.VALID_MASK,
    Cap.X86_DISABLE_EXITS: lambda: DISABLE_EXITS,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: lambda: KVM_DIRTY_LOG_MANUAL_CAPS,
    Cap.COALESCED_MMIO: lambda: KVM_COALESCED_MMIO_PAGE_OFFSET,
    Cap.DIRTY_LOG_RING: lambda: MAX_RING_SIZE,
    Cap.DIRTY_LOG_RING_ACQ_REL: lambda: MAX_RING_SIZE,
    Cap.IRQ_ROUTING: lambda: KVM_MAX_IRQ_ROUTES,
    Cap.X2APIC_API: lambda: X2APIC_API_FLAGS,
}


SHARED_PAGES: Final = (Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL, Cap.COALESCED_MMIO, Cap.COALESCED_PIO)
"""What client and VM write to at any time, and so needs pages that are really shared (FUSE passthrough)."""


def check_extension(number: int, has_private_mem: bool = True, shared_pages: bool = True, reads: bool = True) -> int:
    """A capability's value, on /dev/kvm or on a VM."""
    if number not in Cap.__members__.values():
        return 0
    cap = Cap(number)
    if (cap in SHARED_PAGES and not shared_pages) or (cap is Cap.BINARY_STATS_FD and not reads):
        return 0
    if cap is Cap.MEMORY_ATTRIBUTES:
        return supported_attributes(has_private_mem)
    if cap is Cap.GUEST_MEMFD:
        return int(has_private_mem)
    if cap in VALUES:
        return VALUES[cap]()
    return int(cap in YES)


@table.ioctl(ioctls.KVM_CHECK_EXTENSION)
def _check_extension(vm: Vm, caller: Caller, arg: int) -> int:
    return check_extension(arg, vm.has_private_mem, vm.shared_pages, vm.reads)


# KVM_ENABLE_CAP -----


def _disable_quirks(vm: Vm, value: int) -> None:
    with vm.lock:
        vm.block[Words.DISABLED_QUIRKS] |= value & QUIRKS
        for vcpu in vm.vcpus.values():
            vcpu.apply_quirks()


def _disable_quirks2(vm: Vm, value: int) -> None:
    if value & ~QUIRKS:
        fail(errno.EINVAL)
    _disable_quirks(vm, value)


def _platform_info(vm: Vm, value: int) -> None:
    vm.guest_can_read_platform_info = bool(value)


def _exception_payload(vm: Vm, value: int) -> None:
    vm.block[Words.EXCEPTION_PAYLOAD] = bool(value)


def _triple_fault_event(vm: Vm, value: int) -> None:
    vm.block[Words.TRIPLE_FAULT_EVENT] = bool(value)


def _exit_hypercall(vm: Vm, value: int) -> None:
    if value & ~KVM_EXIT_HYPERCALL_VALID_MASK:
        fail(errno.EINVAL)
    vm.hypercall_exits = value


def _exit_on_emulation_failure(vm: Vm, value: int) -> None:
    if value & ~1:
        fail(errno.EINVAL)
    vm.block[Words.EXIT_ON_EMULATION_ERROR] = value


def _user_space_msr(vm: Vm, value: int) -> None:
    if value & ~KVM_MSR_EXIT_REASON_VALID_MASK:
        fail(errno.EINVAL)
    vm.user_space_msrs = value


def _disable_exits(vm: Vm, value: int) -> None:
    """What is valid but not offered is ignored, as in KVM."""
    if value & ~KVM_X86_DISABLE_VALID_EXITS:
        fail(errno.EINVAL)
    if value & KVM_X86_DISABLE_EXITS_HLT:
        with vm.lock:
            vm.hlt_in_guest = True
            for vcpu in vm.vcpus.values():
                vcpu.state[Cpu.HLT_IN_GUEST] = 1


def _max_vcpu_id(vm: Vm, value: int) -> None:
    if value > KVM_MAX_VCPU_IDS:
        fail(errno.EINVAL)
    with vm.lock:
        if vm.bsp_id > value:
            fail(errno.EINVAL)
        if vm.max_vcpu_ids == value:
            return
        if vm.max_vcpu_ids:
            fail(errno.EINVAL)
        vm.max_vcpu_ids = value


def _manual_dirty_log(vm: Vm, value: int) -> None:
    allowed = KVM_DIRTY_LOG_MANUAL_CAPS if value & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE else 0
    if value & ~allowed:
        fail(errno.EINVAL)
    vm.dirty.manual = value


def _dirty_ring(vm: Vm, value: int) -> None:
    vm.dirty.enable_ring(value & 0xFFFF_FFFF)


def _x2apic_api(vm: Vm, value: int) -> None:
    """What was chosen once stays."""
    if value & ~X2APIC_API_FLAGS:
        fail(errno.EINVAL)
    if value & KVM_X2APIC_API_USE_32BIT_IDS:
        vm.x2apic_format = True
        vm.board.block[Board.X2APIC_FORMAT] = 1
    if value & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK:
        vm.board.block[Board.BROADCAST_QUIRK_OFF] = 1


def _halt_poll(vm: Vm, value: int) -> None:
    """The longest time, in ns, that a HLT may poll before it sleeps: it never does."""
    if value >> 32:
        fail(errno.EINVAL)


def _apic_bus_cycles(vm: Vm, value: int) -> None:
    """The largest count and divider must not overflow."""
    if not value or value * MAX_TIMER_CYCLES >= 1 << 64:
        fail(errno.EINVAL)
    with vm.lock:
        if vm.block[Words.IRQCHIP] == IRQCHIP_NONE:
            fail(errno.ENXIO)
        if vm.created_vcpus:
            fail(errno.EINVAL)
        vm.board.block[Board.BUS_CYCLE_NS] = value


ENABLE: Final[dict[Cap, Callable[[Vm, int], None]]] = {
    Cap.DISABLE_QUIRKS: _disable_quirks,
    Cap.DISABLE_QUIRKS2: _disable_quirks2,
    Cap.MSR_PLATFORM_INFO: _platform_info,
    Cap.EXCEPTION_PAYLOAD: _exception_payload,
    Cap.X86_TRIPLE_FAULT_EVENT: _triple_fault_event,
    Cap.EXIT_HYPERCALL: _exit_hypercall,
    Cap.EXIT_ON_EMULATION_FAILURE: _exit_on_emulation_failure,
    Cap.MAX_VCPU_ID: _max_vcpu_id,
    Cap.X86_USER_SPACE_MSR: _user_space_msr,
    Cap.X86_DISABLE_EXITS: _disable_exits,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: _manual_dirty_log,
    Cap.DIRTY_LOG_RING: _dirty_ring,
    Cap.DIRTY_LOG_RING_ACQ_REL: _dirty_ring,
    Cap.SPLIT_IRQCHIP: split_irqchip,
    Cap.X2APIC_API: _x2apic_api,
    Cap.HALT_POLL: _halt_poll,
    Cap.X86_APIC_BUS_CYCLES_NS: _apic_bus_cycles,
}
FLAGS_IGNORED: Final = (Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL)


@table.ioctl(ioctls.KVM_ENABLE_CAP)
def _enable_cap(vm: Vm, caller: Caller, arg: EnableCap) -> None:
    enable = ENABLE.get(Cap(arg.cap)) if arg.cap in Cap.__members__.values() else None
    if arg.cap in SHARED_PAGES and not vm.shared_pages:
        fail(errno.EINVAL)
    if enable is None or (arg.flags and arg.cap not in FLAGS_IGNORED):
        fail(errno.EINVAL)
    enable(vm, arg.args[0])
