"""What the processor left for, as struct kvm_run and the result of KVM_RUN: compiled into enter.py's group.

convert(s, reason) ends with LEAVE and RESULT in the block, or AGAIN when the client need not know. An I/O exit leaves
its instruction unfinished, and says in COMPLETION how the next KVM_RUN finishes it.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import errno
from typing import Final

from kvmfs.abi.exits import Exit, InternalError
from kvmfs.abi.layout import PAGE_SIZE, offset_of
from kvmfs.abi.run import (
    KVM_EXIT_IO_IN,
    KVM_EXIT_IO_OUT,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    Run,
)
from kvmfs.abi.vcpu import KVM_MP_STATE_HALTED
from kvmfs.abi.vm import KVM_X86_QUIRK_OUT_7E_INC_RIP
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.mmu.layout import EHWPOISON
from kvmfs.jit.mmu.resolve import note_now
from kvmfs.jit.raw import load64, lshr, memcpy, memset, store8, store16, store32, store64
from kvmfs.kvm import words as W
from kvmfs.kvm.inspection import WENT_TO_MMIO
from kvmfs.kvm.paravirt import group as paravirt
from kvmfs.kvm.platform import (
    COMPLETE_PIO,
    FRAGMENT,
    MMIO_WRITE,
    call,
    device,
    mmio_read,
    port_access,
    read_apic_msr,
    write_apic_msr,
)
from kvmfs.kvm.words import Cpu, Vm

SERVICE, EINTR = W.SERVICE, errno.EINTR

PV_HYPERCALL = paravirt.slot("pv_hypercall")

# Words of the blocks; numba wants them as plain globals
RUN_PAGE, RESULT, NEEDS, LAPIC, MP_STATE = Cpu.RUN, Cpu.RESULT, Cpu.NEEDS, Cpu.LAPIC, Cpu.MP_STATE
COMPLETION, MMIO_DONE, HLT_IN_GUEST = Cpu.COMPLETION, Cpu.MMIO_DONE, Cpu.HLT_IN_GUEST
QUIRKS_OFF, EXIT_ON_EMULATION_ERROR = Vm.DISABLED_QUIRKS, Vm.EXIT_ON_EMULATION_ERROR
HALTED = KVM_MP_STATE_HALTED

# struct kvm_run
EXIT_REASON = offset_of(Run, "exit_reason")
IO_DIRECTION, IO_SIZE, IO_PORT = (offset_of(Run, f"io.{f}") for f in ("direction", "size", "port"))
IO_COUNT, IO_DATA_OFFSET = offset_of(Run, "io.count"), offset_of(Run, "io.data_offset")
MMIO_ADDR, MMIO_DATA = offset_of(Run, "mmio.phys_addr"), offset_of(Run, "mmio.data")
MMIO_LEN, MMIO_IS_WRITE = offset_of(Run, "mmio.len"), offset_of(Run, "mmio.is_write")
FAULT_FLAGS, FAULT_GPA, FAULT_SIZE = (offset_of(Run, f"memory_fault.{f}") for f in ("flags", "gpa", "size"))
SUBERROR, NDATA, INTERNAL_DATA = (offset_of(Run, f"internal.{f}") for f in ("suberror", "ndata", "data"))
FAILURE_FLAGS = offset_of(Run, "emulation_failure.flags")
FAILURE_SIZE, FAILURE_BYTES = (offset_of(Run, f"emulation_failure.{f}") for f in ("insn_size", "insn_bytes"))
DEBUG_EXCEPTION, DEBUG_PC = offset_of(Run, "debug.arch.exception"), offset_of(Run, "debug.arch.pc")
DEBUG_DR6, DEBUG_DR7 = offset_of(Run, "debug.arch.dr6"), offset_of(Run, "debug.arch.dr7")
PIO_PAGE: Final = PAGE_SIZE

EXIT_UNKNOWN, EXIT_IO, EXIT_MMIO, EXIT_HLT = int(Exit.UNKNOWN), int(Exit.IO), int(Exit.MMIO), int(Exit.HLT)
EXIT_INTR, EXIT_SHUTDOWN, EXIT_INTERNAL_ERROR = int(Exit.INTR), int(Exit.SHUTDOWN), int(Exit.INTERNAL_ERROR)
EXIT_MEMORY_FAULT, EXIT_DEBUG, EXIT_WINDOW = int(Exit.MEMORY_FAULT), int(Exit.DEBUG), int(Exit.IRQ_WINDOW_OPEN)
EXIT_DIRTY_RING_FULL = int(Exit.DIRTY_RING_FULL)
EXIT_SET_TPR, EXIT_IOAPIC_EOI = int(Exit.SET_TPR), int(Exit.IOAPIC_EOI)
SUBERROR_EMULATION = int(InternalError.EMULATION)
FAILURE_INFO: Final = 5  # words that KVM's vendor modules fill in
NOP: Final = 0x90
QUIRK_PORT: Final = 0x7E

# How to proceed; ONCE_MORE: with the same instruction alone, whose data is there now
LEAVE, AGAIN, ONCE_MORE = 0, 1, 2


@compiled
def service(s, what):
    """Back to Python."""
    store64(s + NEEDS, what)
    return SERVICE


@compiled
def report_pio(s):
    """KVM_EXIT_IO."""
    run = load64(s + RUN_PAGE)
    size, count, into = load64(s + S.PIO_SIZE), load64(s + S.PIO_COUNT), load64(s + S.PIO_IN)
    store32(run + EXIT_REASON, EXIT_IO)
    store8(run + IO_DIRECTION, KVM_EXIT_IO_IN if into else KVM_EXIT_IO_OUT)
    store8(run + IO_SIZE, size)
    store16(run + IO_PORT, load64(s + S.PIO_PORT))
    store32(run + IO_COUNT, count)
    store64(run + IO_DATA_OFFSET, PIO_PAGE)
    if into == 0:
        memcpy(run + PIO_PAGE, s + S.PIO_DATA, size * count)
    if load64(s + S.PIO_STATE) == S.IO_PENDING:
        store64(s + COMPLETION, W.COMPLETE_PIO)
        quirk = load64(load64(s + S.VM) + QUIRKS_OFF) & KVM_X86_QUIRK_OUT_7E_INC_RIP == 0
        if into == 0 and load64(s + S.PIO_PORT) == QUIRK_PORT and quirk:
            call(s, COMPLETE_PIO)
            store64(s + COMPLETION, W.COMPLETE_NONE)


@compiled
def report_mmio(s, gpa, size, data, write):
    """KVM_EXIT_MMIO."""
    run = load64(s + RUN_PAGE)
    here = lshr(load64(s + S.XLAT_GPA) ^ gpa, 12) == 0
    store64(s + S.XLAT_LINEAR, (load64(s + S.XLAT_LINEAR) & -4096) | (gpa & 4095) if here else S.NOT_LINEAR)
    note_now(s, gpa, write, WENT_TO_MMIO)
    store32(run + EXIT_REASON, EXIT_MMIO)
    store64(run + MMIO_ADDR, gpa)
    store32(run + MMIO_LEN, size)
    store8(run + MMIO_IS_WRITE, write)
    if write:
        memcpy(run + MMIO_DATA, data, size)


@compiled
def report_mmio_write(s):
    """The next fragment of a queued write."""
    fragment = s + S.MMIO_QUEUE + FRAGMENT * load64(s + MMIO_DONE)
    report_mmio(s, load64(fragment), load64(fragment + 8), fragment + 16, 1)
    store64(s + COMPLETION, W.COMPLETE_MMIO_WRITE)


@compiled
def report_emulation_failure(s):
    """prepare_emulation_failure_exit: KVM_EXIT_INTERNAL_ERROR with the instruction's bytes."""
    run, length = load64(s + RUN_PAGE), load64(s + S.INSN_LENGTH)
    store32(run + EXIT_REASON, EXIT_INTERNAL_ERROR)
    store32(run + SUBERROR, SUBERROR_EMULATION)
    store64(run + FAILURE_FLAGS, 0)
    words = 1
    if length != 0:
        words = 3
        store64(run + FAILURE_FLAGS, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
        store8(run + FAILURE_SIZE, length)
        memset(run + FAILURE_BYTES, NOP, 15)
        memcpy(run + FAILURE_BYTES, s + S.INSN_BYTES, length)
    memset(run + INTERNAL_DATA + 8 * words, 0, 8 * FAILURE_INFO)
    store32(run + NDATA, words + FAILURE_INFO)


@compiled
def fail_emulation(s):
    """handle_emulation_failure: #UD, and the client is told unless it was user mode (LEAVE) or always, if it asked."""
    if load64(load64(s + S.VM) + EXIT_ON_EMULATION_ERROR) == 0:
        store64(s + S.EXC_VECTOR, S.UD)
        store64(s + S.EXC_HAS_ERROR, 0)
        store64(s + S.EXC_PENDING, 1)
        if load64(s + S.CPL) != 0:
            return AGAIN
    report_emulation_failure(s)
    return LEAVE


@compiled
def report_debug(s):
    """KVM_EXIT_DEBUG."""
    run = load64(s + RUN_PAGE)
    store32(run + EXIT_REASON, EXIT_DEBUG)
    store32(run + DEBUG_EXCEPTION, load64(s + S.EXIT_ARGS))
    store64(run + DEBUG_PC, load64(s + S.CS + S.BASE) + load64(s + S.RIP))
    if load64(s + S.EXIT_ARGS) == S.DB:
        store64(run + DEBUG_DR6, load64(s + S.EXIT_ARGS + 8))
        store64(run + DEBUG_DR7, load64(s + S.EXIT_ARGS + 16))


@compiled
def leave(s, reason, result):
    """An exit without details."""
    store32(load64(s + RUN_PAGE) + EXIT_REASON, reason)
    store64(s + RESULT, result)
    return LEAVE


@compiled
def finish_pio(s):
    call(s, COMPLETE_PIO)
    return ONCE_MORE if load64(s + S.PIO_STATE) == S.IO_DONE else AGAIN


@compiled
def next_mmio_write(s):
    """Go through the queue of MMIO writes up to one that is the client's: LEAVE; or AGAIN."""
    done = load64(s + MMIO_DONE)
    while done < load64(s + S.MMIO_WRITES):
        fragment = s + S.MMIO_QUEUE + FRAGMENT * done
        if device(s, MMIO_WRITE, load64(fragment), load64(fragment + 8), fragment + 16) == 0:
            store64(s + MMIO_DONE, done)
            report_mmio_write(s)
            return LEAVE
        done += 1
    store64(s + S.MMIO_WRITES, 0)
    return AGAIN


@compiled
def convert(s, reason):
    """What run() left for: LEAVE with RESULT (or SERVICE in it), AGAIN, or ONCE_MORE."""
    store64(s + RESULT, 0)
    if reason == S.EXIT_PIO:
        if port_access(s):
            return finish_pio(s)
        report_pio(s)
    elif reason == S.EXIT_MMIO_READ:
        if mmio_read(s):
            return ONCE_MORE
        report_mmio(s, load64(s + S.MMIO_GPA), load64(s + S.MMIO_SIZE), 0, 0)
        store64(s + COMPLETION, W.COMPLETE_MMIO_READ)
    elif reason == S.EXIT_MMIO_WRITE:
        store64(s + MMIO_DONE, 0)
        return next_mmio_write(s)
    elif reason == S.EXIT_HLT:
        store64(s + S.INTR_SHADOW, 0)
        if load64(s + LAPIC) == 0 and load64(s + HLT_IN_GUEST) == 0:
            return leave(s, EXIT_HLT, 0)
        store64(s + MP_STATE, HALTED)
        return AGAIN
    elif reason == S.EXIT_SHUTDOWN:
        return leave(s, EXIT_SHUTDOWN, 0)
    elif reason == S.EXIT_MEMORY_FAULT:
        run = load64(s + RUN_PAGE)
        store64(run + FAULT_FLAGS, load64(s + S.FAULT_FLAGS))
        store64(run + FAULT_GPA, load64(s + S.FAULT_GPA))
        store64(run + FAULT_SIZE, load64(s + S.FAULT_SIZE))
        return leave(s, EXIT_MEMORY_FAULT, -load64(s + S.FAULT_ERRNO))
    elif reason == S.EXIT_EFAULT:
        poisoned = load64(s + S.FAULT_ERRNO) == EHWPOISON
        store64(s + RESULT, service(s, W.NEEDS_POISON) if poisoned else -load64(s + S.FAULT_ERRNO))
    elif reason == S.EXIT_RDMSR:
        if read_apic_msr(s):
            return AGAIN
        store64(s + RESULT, service(s, W.NEEDS_RDMSR))
    elif reason == S.EXIT_WRMSR:
        if write_apic_msr(s):
            return AGAIN
        store64(s + RESULT, service(s, W.NEEDS_WRMSR))
    elif reason == S.EXIT_CR8:
        # A lower priority lets interrupts through: the client's APIC has to know.
        return leave(s, EXIT_SET_TPR, 0) if load64(s + LAPIC) == 0 else AGAIN
    elif reason == S.EXIT_HYPERCALL:
        if call(s, PV_HYPERCALL):
            return AGAIN
        store64(s + RESULT, service(s, W.NEEDS_HYPERCALL))
    elif reason == S.EXIT_EMULATION_FAILURE:
        return fail_emulation(s)
    elif reason == S.EXIT_INTERRUPTED:
        return leave(s, EXIT_INTR, -EINTR)
    elif reason == S.EXIT_DEBUG:
        report_debug(s)
    else:
        return AGAIN
    return LEAVE
