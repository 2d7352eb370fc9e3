"""struct kvm_run: what a vCPU fd maps at offset 0.

A vCPU fd maps, page by page: 0 kvm_run, KVM_PIO_PAGE_OFFSET the data of port I/O, KVM_COALESCED_MMIO_PAGE_OFFSET the
coalesced MMIO ring, from memory.KVM_DIRTY_LOG_PAGE_OFFSET the dirty ring. The client may write any of it at any time.

Members of the exit union that only other architectures fill in are left out; ``padding`` gives the union its size.
"""

from typing import Final

from kvmfs.abi.debug import DebugExitArch
from kvmfs.abi.hyperv import HypervExit
from kvmfs.abi.layout import Struct, Union, u8, u16, u32, u64
from kvmfs.abi.vcpu import Regs, Sregs, VcpuEvents
from kvmfs.abi.xen import XenExit

KVM_PIO_PAGE_OFFSET: Final = 1
KVM_COALESCED_MMIO_PAGE_OFFSET: Final = 2

# Run.flags
KVM_RUN_X86_SMM: Final = 1 << 0
KVM_RUN_X86_BUS_LOCK: Final = 1 << 1
KVM_RUN_X86_GUEST_MODE: Final = 1 << 2

# Run.kvm_valid_regs, Run.kvm_dirty_regs
KVM_SYNC_X86_REGS: Final = 1 << 0
KVM_SYNC_X86_SREGS: Final = 1 << 1
KVM_SYNC_X86_EVENTS: Final = 1 << 2
KVM_SYNC_X86_VALID_FIELDS: Final = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS
SYNC_REGS_SIZE_BYTES: Final = 2048

# Run.io.direction
KVM_EXIT_IO_IN: Final = 0
KVM_EXIT_IO_OUT: Final = 1

# Run.hypercall.flags
KVM_EXIT_HYPERCALL_LONG_MODE: Final = 1 << 0

# Run.emulation_failure.flags
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES: Final = 1 << 0

# Run.notify.flags
KVM_NOTIFY_CONTEXT_INVALID: Final = 1 << 0

# Run.memory_fault.flags
KVM_MEMORY_EXIT_FLAG_PRIVATE: Final = 1 << 3


class ExitUnknown(Struct):
    _fields_ = (("hardware_exit_reason", u64),)


class ExitFailEntry(Struct):
    _fields_ = (
        ("hardware_entry_failure_reason", u64),
        ("cpu", u32),
    )


class ExitException(Struct):
    _fields_ = (
        ("exception", u32),
        ("error_code", u32),
    )


class ExitIo(Struct):
    """``data_offset``: bytes from the start of kvm_run to ``count`` items of ``size`` bytes."""

    _fields_ = (
        ("direction", u8),
        ("size", u8),
        ("port", u16),
        ("count", u32),
        ("data_offset", u64),
    )


class ExitDebug(Struct):
    _fields_ = (("arch", DebugExitArch),)


class ExitMmio(Struct):
    _fields_ = (
        ("phys_addr", u64),
        ("data", u8 * 8),
        ("len", u32),
        ("is_write", u8),
    )


class _LongmodeOrFlags(Union):
    _fields_ = (
        ("longmode", u32),
        ("flags", u64),
    )


class ExitHypercall(Struct):
    _anonymous_ = ("_flags",)
    _fields_ = (
        ("nr", u64),
        ("args", u64 * 6),
        ("ret", u64),
        ("_flags", _LongmodeOrFlags),
    )


class ExitTprAccess(Struct):
    _fields_ = (
        ("rip", u64),
        ("is_write", u32),
        ("pad", u32),
    )


class ExitInternal(Struct):
    _fields_ = (
        ("suberror", u32),
        ("ndata", u32),
        ("data", u64 * 16),
    )


class _InstructionBytes(Struct):
    _fields_ = (
        ("insn_size", u8),
        ("insn_bytes", u8 * 15),
    )


class _EmulationDetails(Union):
    _anonymous_ = ("_instruction",)
    _fields_ = (("_instruction", _InstructionBytes),)


class ExitEmulationFailure(Struct):
    """Overlays ``internal``: ``ndata`` counts the u64 from ``flags`` on."""

    _anonymous_ = ("_details",)
    _fields_ = (
        ("suberror", u32),
        ("ndata", u32),
        ("flags", u64),
        ("_details", _EmulationDetails),
    )


class _FlagsOrData(Union):
    _fields_ = (
        ("flags", u64),
        ("data", u64 * 16),
    )


class ExitSystemEvent(Struct):
    _anonymous_ = ("_data",)
    _fields_ = (
        ("type", u32),
        ("ndata", u32),
        ("_data", _FlagsOrData),
    )


class ExitIoapicEoi(Struct):
    _fields_ = (("vector", u8),)


class ExitMsr(Struct):
    """``error`` is the client's answer: not 0 injects #GP."""

    _fields_ = (
        ("error", u8),
        ("pad", u8 * 7),
        ("reason", u32),
        ("index", u32),
        ("data", u64),
    )


class ExitNotify(Struct):
    _fields_ = (("flags", u32),)


class ExitMemoryFault(Struct):
    _fields_ = (
        ("flags", u64),
        ("gpa", u64),
        ("size", u64),
    )


class ExitUnion(Union):
    _fields_ = (
        ("hw", ExitUnknown),
        ("fail_entry", ExitFailEntry),
        ("ex", ExitException),
        ("io", ExitIo),
        ("debug", ExitDebug),
        ("mmio", ExitMmio),
        ("hypercall", ExitHypercall),
        ("tpr_access", ExitTprAccess),
        ("internal", ExitInternal),
        ("emulation_failure", ExitEmulationFailure),
        ("system_event", ExitSystemEvent),
        ("eoi", ExitIoapicEoi),
        ("hyperv", HypervExit),
        ("msr", ExitMsr),
        ("xen", XenExit),
        ("notify", ExitNotify),
        ("memory_fault", ExitMemoryFault),
        ("padding", u8 * 256),
    )


class SyncRegs(Struct):
    c_name = "struct kvm_sync_regs"
    _fields_ = (
        ("regs", Regs),
        ("sregs", Sregs),
        ("events", VcpuEvents),
    )


class SyncRegsUnion(Union):
    _fields_ = (
        ("regs", SyncRegs),
        ("padding", u8 * SYNC_REGS_SIZE_BYTES),
    )


class Run(Struct):
    """KVM_RUN's argument and result, in memory shared with the client."""

    c_name = "struct kvm_run"
    _anonymous_ = ("_exit",)
    _fields_ = (
        # in
        ("request_interrupt_window", u8),
        ("immediate_exit", u8),
        ("padding1", u8 * 6),
        # out
        ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8),
        ("if_flag", u8),
        ("flags", u16),
        # in and out
        ("cr8", u64),
        ("apic_base", u64),
        ("_exit", ExitUnion),
        ("kvm_valid_regs", u64),
        ("kvm_dirty_regs", u64),
        ("s", SyncRegsUnion),
    )
