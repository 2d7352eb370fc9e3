"""Why KVM_RUN returned: Run.exit_reason and its details."""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Run.exit_reason; in C, ``KVM_EXIT_`` and the name."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    S390_SIEIC = 13
    S390_RESET = 14
    DCR = 15
    NMI = 16
    INTERNAL_ERROR = 17
    OSI = 18
    PAPR_HCALL = 19
    S390_UCONTROL = 20
    WATCHDOG = 21
    S390_TSCH = 22
    EPR = 23
    SYSTEM_EVENT = 24
    S390_STSI = 25
    IOAPIC_EOI = 26
    HYPERV = 27
    ARM_NISV = 28
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    RISCV_SBI = 35
    RISCV_CSR = 36
    NOTIFY = 37
    LOONGARCH_IOCSR = 38
    MEMORY_FAULT = 39


X86: Final = frozenset(
    {
        Exit.UNKNOWN,
        Exit.EXCEPTION,
        Exit.IO,
        Exit.HYPERCALL,
        Exit.DEBUG,
        Exit.HLT,
        Exit.MMIO,
        Exit.IRQ_WINDOW_OPEN,
        Exit.SHUTDOWN,
        Exit.FAIL_ENTRY,
        Exit.INTR,
        Exit.SET_TPR,
        Exit.TPR_ACCESS,
        Exit.INTERNAL_ERROR,
        Exit.SYSTEM_EVENT,
        Exit.IOAPIC_EOI,
        Exit.HYPERV,
        Exit.X86_RDMSR,
        Exit.X86_WRMSR,
        Exit.DIRTY_RING_FULL,
        Exit.AP_RESET_HOLD,
        Exit.X86_BUS_LOCK,
        Exit.XEN,
        Exit.NOTIFY,
        Exit.MEMORY_FAULT,
    }
)
"""Exits that Linux 6.12 on x86-64 makes."""


class InternalError(IntEnum):
    """Run.internal.suberror; in C, ``KVM_INTERNAL_ERROR_`` and the name."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class SystemEvent(IntEnum):
    """Run.system_event.type; in C, ``KVM_SYSTEM_EVENT_`` and the name."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6
