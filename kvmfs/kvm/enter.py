"""KVM_RUN, compiled: kvm_arch_vcpu_ioctl_run of arch/x86/kvm/x86.c around the processor's run loop.

enter(s) does all of an ioctl that needs no Python, and what does need it in steps: it returns SERVICE with NEEDS set,
Vcpu.service() does that, and enter(s) goes on at PHASE. Its result is the ioctl's.

Completion comes first, whatever immediate_exit says: an exit for I/O leaves its instruction unfinished, and a client
that wants consistent state enters with immediate_exit set to have it finished. IN is finished by writing the
accumulator; a string or MMIO read by executing the instruction once more, alone, with the data there.

The run page is the client's as much as ours, and may change at any time: each word of it is read once.
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
    KVM_SYNC_X86_VALID_FIELDS,
    Run,
)
from kvmfs.abi.vcpu import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED
from kvmfs.abi.vm import KVM_X86_QUIRK_OUT_7E_INC_RIP
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.cpu.io import group as io_group
from kvmfs.jit.cpu.run import group as run_group
from kvmfs.jit.cpu.run import step
from kvmfs.jit.mmu.group import TLB_INIT
from kvmfs.jit.mmu.tlb import acknowledge_flush, enter_guest, leave_guest
from kvmfs.jit.raw import (
    atomic_and,
    atomic_or,
    call1,
    load8,
    load64,
    memcpy,
    memset,
    pause,
    rdtsc,
    store8,
    store16,
    store32,
    store64,
    syscall,
    zext32,
)
from kvmfs.kvm import words as W
from kvmfs.kvm.words import Cpu, Vm

group = Group("enter", __name__)

RUN, RESET_CODE = run_group.slot("run"), run_group.slot("reset_code")
RUN_ONE: Final = group.base  # the first member
COMPLETE_PIO = io_group.slot("complete_pio")

SERVICE, EINTR, EINVAL, EAGAIN = W.SERVICE, errno.EINTR, errno.EINVAL, errno.EAGAIN
SYS_FUTEX: Final = 202
FUTEX_WAIT_PRIVATE: Final = 128
FUTEX_WAKE_PRIVATE: Final = 129
SYS_SCHED_YIELD: Final = 24
SPINS: Final = 64

# Words of the blocks; numba wants them as plain globals
RUN_PAGE, PHASE, RESULT, NEEDS, WANTED = Cpu.RUN, Cpu.PHASE, Cpu.RESULT, Cpu.NEEDS, Cpu.WANTED
HAS_RUN, LAPIC, MP_STATE, COMPLETION = Cpu.HAS_RUN, Cpu.LAPIC, Cpu.MP_STATE, Cpu.COMPLETION
APIC_EVENTS, TRIPLE_FAULT, MMIO_DONE, EVENT_LOG = Cpu.APIC_EVENTS, Cpu.TRIPLE_FAULT, Cpu.MMIO_DONE, Cpu.EVENT_LOG
IRQCHIP, QUIRKS_OFF, EXIT_ON_EMULATION_ERROR = Vm.IRQCHIP, Vm.DISABLED_QUIRKS, Vm.EXIT_ON_EMULATION_ERROR
VCPUS, VCPU_COUNT = Vm.VCPUS, Vm.VCPU_COUNT

# struct kvm_run
REQUEST_WINDOW, IMMEDIATE_EXIT = offset_of(Run, "request_interrupt_window"), offset_of(Run, "immediate_exit")
EXIT_REASON, READY, IF_FLAG = (offset_of(Run, f) for f in ("exit_reason", "ready_for_interrupt_injection", "if_flag"))
FLAGS, CR8, APIC_BASE = (offset_of(Run, f) for f in ("flags", "cr8", "apic_base"))
VALID_REGS, DIRTY_REGS = offset_of(Run, "kvm_valid_regs"), offset_of(Run, "kvm_dirty_regs")
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
HYPERCALL_RET = offset_of(Run, "hypercall.ret")
PIO_PAGE: Final = PAGE_SIZE

EXIT_UNKNOWN, EXIT_IO, EXIT_MMIO, EXIT_HLT = int(Exit.UNKNOWN), int(Exit.IO), int(Exit.MMIO), int(Exit.HLT)
EXIT_INTR, EXIT_SHUTDOWN, EXIT_INTERNAL_ERROR = int(Exit.INTR), int(Exit.SHUTDOWN), int(Exit.INTERNAL_ERROR)
EXIT_MEMORY_FAULT, EXIT_DEBUG, EXIT_WINDOW = int(Exit.MEMORY_FAULT), int(Exit.DEBUG), int(Exit.IRQ_WINDOW_OPEN)
SUBERROR_EMULATION = int(InternalError.EMULATION)
FAILURE_INFO: Final = 5  # words that KVM's vendor modules fill in
NOP: Final = 0x90

RUNNABLE, HALTED, UNINITIALIZED = KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED
FRAGMENT: Final = 24  # of MMIO: gpa, size, data
QUIRK_PORT: Final = 0x7E

# go(): how to proceed
LEAVE, AGAIN = 0, 1


@compiled
def call(s, slot):
    return call1(load64(load64(s + S.FUNCTIONS) + 8 * slot), s)


@group.add
def run_one(s):
    """Execute the instruction at RIP and nothing else, no event either: EXIT, or EXIT_NONE when it is done."""
    store64(s + S.EXIT, S.EXIT_NONE)
    enter_guest(s)
    while True:
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        store64(s + S.MMIO_USED, 0)
        step(s)
        how = load64(s + S.LEAVE)
        if how != S.LEAVE_RETRY:
            break
        store64(s + S.MMIO_WRITES, 0)
        if load64(s + S.REQUEST) & S.REQ_TLB_FLUSH:
            acknowledge_flush(s)
    if how == S.LEAVE_NEXT and load64(s + S.MMIO_WRITES) != 0:
        store64(s + S.EXIT, S.EXIT_MMIO_WRITE)
    leave_guest(s)
    return load64(s + S.EXIT)


@compiled
def skip_instruction(s):
    """kvm_skip_emulated_instruction."""
    rip = load64(s + S.RIP) + load64(s + S.INSN_LENGTH)
    store64(s + S.RIP, rip if load64(s + S.HFLAGS) & S.MODE_CODE64 else zext32(rip))
    store64(s + S.INTR_SHADOW, 0)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.RF)


# Ending -----


@compiled
def service(s, what):
    """Back to Python."""
    store64(s + NEEDS, what)
    return SERVICE


@compiled
def interruptible(s):
    """kvm_vcpu_ready_for_interrupt_injection of a VM whose interrupt controller is the client's."""
    blocked = load64(s + S.INTR_SHADOW) | load64(s + S.INTR_INJECTED) | load64(s + S.NMI_INJECTED)
    blocked |= load64(s + S.EXC_INJECTED) | load64(s + S.EXC_PENDING) | load64(s + S.INTR_REQUEST)
    return 1 if load64(s + S.RFLAGS) & S.IF and blocked == 0 else 0


@compiled
def pic_in_kernel(s):
    return load64(load64(s + S.VM) + IRQCHIP) == W.IRQCHIP_KERNEL


@compiled
def save(s):
    """post_kvm_run_save."""
    run = load64(s + RUN_PAGE)
    store8(run + IF_FLAG, 1 if load64(s + S.RFLAGS) & S.IF else 0)
    store64(run + CR8, load64(s + S.CR8))
    store64(run + APIC_BASE, load64(s + S.APIC_BASE))
    store8(run + READY, 1 if pic_in_kernel(s) else interruptible(s))


@compiled
def finish(s):
    """The ioctl's end with RESULT, with stops in Python for what that has to add."""
    run = load64(s + RUN_PAGE)
    if load64(s + PHASE) < W.PHASE_ENDING:
        store64(s + PHASE, W.PHASE_ENDING)
    if load64(s + PHASE) == W.PHASE_ENDING:
        if load64(s + EVENT_LOG) and load64(s + S.EXIT) == S.EXIT_MEMORY_FAULT and load64(s + RESULT) < 0:
            store64(s + S.EXIT, S.EXIT_NONE)
            return service(s, W.NEEDS_EVENT_LOG)
        store64(s + PHASE, W.PHASE_LOGGED)
    if load64(s + PHASE) == W.PHASE_LOGGED:
        if load64(run + VALID_REGS) != 0:
            return service(s, W.NEEDS_SYNC_OUT)
        store64(s + PHASE, W.PHASE_STORED)
    save(s)
    store64(s + PHASE, W.PHASE_START)
    return load64(s + RESULT)


# Exits -----


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
    if load64(load64(s + S.VM) + EXIT_ON_EMULATION_ERROR) == 0:
        # The client may go on: the guest then gets #UD (handle_emulation_failure).
        store64(s + S.EXC_VECTOR, S.UD)
        store64(s + S.EXC_HAS_ERROR, 0)
        store64(s + S.EXC_PENDING, 1)


@compiled
def report_debug(s):
    """KVM_EXIT_DEBUG."""
    run = load64(s + RUN_PAGE)
    store32(run + EXIT_REASON, EXIT_DEBUG)
    store32(run + DEBUG_EXCEPTION, load64(s + S.EXIT_ARGS))
    store64(run + DEBUG_PC, load64(s + S.CS + S.BASE) + load64(s + S.RIP))
    store64(run + DEBUG_DR6, load64(s + S.EXIT_ARGS + 8))
    store64(run + DEBUG_DR7, load64(s + S.DR7))


@compiled
def leave(s, reason, result):
    """An exit without details."""
    store32(load64(s + RUN_PAGE) + EXIT_REASON, reason)
    store64(s + RESULT, result)
    return LEAVE


@compiled
def convert(s, reason):
    """What run() left for: LEAVE with RESULT (or SERVICE in it), or AGAIN."""
    store64(s + RESULT, 0)
    if reason == S.EXIT_PIO:
        report_pio(s)
    elif reason == S.EXIT_MMIO_READ:
        report_mmio(s, load64(s + S.MMIO_GPA), load64(s + S.MMIO_SIZE), 0, 0)
        store64(s + COMPLETION, W.COMPLETE_MMIO_READ)
    elif reason == S.EXIT_MMIO_WRITE:
        store64(s + MMIO_DONE, 0)
        report_mmio_write(s)
    elif reason == S.EXIT_HLT:
        if load64(s + LAPIC) == 0:
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
        store64(s + RESULT, -load64(s + S.FAULT_ERRNO))
    elif reason == S.EXIT_RDMSR:
        store64(s + RESULT, service(s, W.NEEDS_RDMSR))
    elif reason == S.EXIT_WRMSR:
        store64(s + RESULT, service(s, W.NEEDS_WRMSR))
    elif reason == S.EXIT_HYPERCALL:
        store64(s + RESULT, service(s, W.NEEDS_HYPERCALL))
    elif reason == S.EXIT_UNIMPLEMENTED:
        report_emulation_failure(s)
    elif reason == S.EXIT_INTERRUPTED:
        return leave(s, EXIT_INTR, -EINTR)
    elif reason == S.EXIT_IRQ_WINDOW:
        return leave(s, EXIT_WINDOW, 0)
    elif reason == S.EXIT_DEBUG:
        report_debug(s)
    else:
        return AGAIN
    return LEAVE


# Beginning -----


@compiled
def complete(s):
    """Finish the instruction that the last exit left: AGAIN to go on, or LEAVE with RESULT."""
    what, run = load64(s + COMPLETION), load64(s + RUN_PAGE)
    store64(s + COMPLETION, W.COMPLETE_NONE)
    store64(s + RESULT, 0)
    if what == W.COMPLETE_PIO:
        if load64(s + S.PIO_IN) != 0:
            memcpy(s + S.PIO_DATA, run + PIO_PAGE, load64(s + S.PIO_SIZE) * load64(s + S.PIO_COUNT))
        call(s, COMPLETE_PIO)
        if load64(s + S.PIO_STATE) == S.IO_DONE:
            return once_more(s)
    elif what == W.COMPLETE_MMIO_READ:
        reads = load64(s + S.MMIO_READS)
        fragment = s + S.MMIO_CACHE + FRAGMENT * reads
        store64(fragment, load64(s + S.MMIO_GPA))
        store64(fragment + 8, load64(s + S.MMIO_SIZE))
        store64(fragment + 16, load64(run + MMIO_DATA))
        store64(s + S.MMIO_READS, reads + 1)
        store64(s + S.MMIO_STATE, S.IO_DONE)
        return once_more(s)
    elif what == W.COMPLETE_MMIO_WRITE:
        done = load64(s + MMIO_DONE) + 1
        store64(s + MMIO_DONE, done)
        if done < load64(s + S.MMIO_WRITES):
            report_mmio_write(s)
            return LEAVE
        store64(s + S.MMIO_WRITES, 0)
    elif what == W.COMPLETE_HYPERCALL:
        result = load64(run + HYPERCALL_RET)
        store64(s + S.RAX, result if load64(s + S.HFLAGS) & S.MODE_CODE64 else zext32(result))
        skip_instruction(s)
    return AGAIN


@compiled
def once_more(s):
    """Execute the instruction whose data is there now."""
    reason = call(s, RUN_ONE)
    return AGAIN if reason == S.EXIT_NONE else convert(s, reason)


@compiled
def wait(s):
    """Sleep until REQUEST has a reason not to: its bits."""
    while True:
        requests = load64(s + S.REQUEST)
        if requests & (S.REQ_STOP | S.REQ_EVENT):
            return requests
        syscall(SYS_FUTEX, s + S.REQUEST, FUTEX_WAIT_PRIVATE, requests, 0, 0, 0)


@compiled
def has_event(s):
    """Whether something ends a HLT: kvm_vcpu_has_events."""
    if load64(s + S.EXC_PENDING) != 0:
        return 1
    if load64(s + S.NMI_PENDING) != 0 and load64(s + S.NMI_MASKED) == 0:
        return 1
    return 1 if load64(s + S.INTR_REQUEST) != 0 and load64(s + S.RFLAGS) & S.IF else 0


@compiled
def block(s):
    """vcpu_block: 0 when a signal is to be served, else 1 and the vCPU may run, or not."""
    if load64(s + MP_STATE) != HALTED or has_event(s) == 0:
        if wait(s) & S.REQ_STOP:
            atomic_and(s + S.REQUEST, ~S.REQ_STOP)
            return 0
        atomic_and(s + S.REQUEST, ~S.REQ_EVENT)
    if load64(s + MP_STATE) == HALTED and has_event(s):
        store64(s + MP_STATE, RUNNABLE)
    return 1


@compiled
def begin(s):
    """Up to where the client's registers are needed: AGAIN to go on, or LEAVE with RESULT."""
    run = load64(s + RUN_PAGE)
    if load64(s + APIC_EVENTS) != 0:
        store64(s + RESULT, service(s, W.NEEDS_APIC_EVENTS))
        return LEAVE
    store64(s + WANTED, 0 if load8(run + IMMEDIATE_EXIT) else 1)
    store16(run + FLAGS, 0)
    if load64(s + MP_STATE) == UNINITIALIZED:
        if load64(s + WANTED) == 0:
            store64(s + RESULT, -EINTR)
        elif block(s) == 0:
            return leave(s, EXIT_INTR, -EINTR)
        else:
            store64(s + RESULT, -EAGAIN)
        return LEAVE
    dirty = load64(run + DIRTY_REGS)
    if (load64(run + VALID_REGS) | dirty) & ~KVM_SYNC_X86_VALID_FIELDS:
        store64(s + RESULT, -EINVAL)
        return LEAVE
    if dirty != 0:
        store64(s + RESULT, service(s, W.NEEDS_SYNC_IN))
        return LEAVE
    store64(s + PHASE, W.PHASE_SYNCED)
    return AGAIN


@compiled
def prepare(s):
    """From the client's registers to the guest: AGAIN to go on, or LEAVE with RESULT."""
    run = load64(s + RUN_PAGE)
    if load64(s + LAPIC) == 0:
        cr8 = load64(run + CR8)
        if cr8 & ~0xF:
            store64(s + RESULT, -EINVAL)
            return LEAVE
        store64(s + S.CR8, cr8)
    if complete(s) == LEAVE:
        return LEAVE
    if load64(s + WANTED) == 0:
        store64(s + RESULT, -EINTR)
        return LEAVE
    if load64(s + HAS_RUN) == 0:
        call(s, TLB_INIT)
        call(s, RESET_CODE)
        store64(s + HAS_RUN, 1)
    store32(run + EXIT_REASON, EXIT_UNKNOWN)
    store64(s + PHASE, W.PHASE_RUNNING)
    return AGAIN


@compiled
def go(s):
    """vcpu_run, once: AGAIN, or LEAVE with RESULT."""
    run = load64(s + RUN_PAGE)
    if load64(s + MP_STATE) != RUNNABLE:
        return AGAIN if block(s) else leave(s, EXIT_INTR, -EINTR)
    if load64(s + TRIPLE_FAULT) != 0:
        store64(s + TRIPLE_FAULT, 0)
        return leave(s, EXIT_SHUTDOWN, 0)
    window = 1 if load8(run + REQUEST_WINDOW) and not pic_in_kernel(s) else 0
    if window and interruptible(s):
        return leave(s, EXIT_WINDOW, 0)
    store64(s + S.IRQ_WINDOW, window)
    if window | load64(s + S.INTR_REQUEST) | load64(s + S.NMI_PENDING):
        atomic_or(s + S.REQUEST, S.REQ_EVENT)
    return convert(s, call(s, RUN))


@group.add
def enter(s):
    """KVM_RUN: the result, -errno, or SERVICE."""
    if load64(s + PHASE) == W.PHASE_START and begin(s) == LEAVE:
        return served_or_finished(s)
    if load64(s + PHASE) == W.PHASE_SYNCED and prepare(s) == LEAVE:
        return served_or_finished(s)
    if load64(s + PHASE) == W.PHASE_RUNNING:
        while go(s) == AGAIN:
            pass
    return served_or_finished(s)


@compiled
def served_or_finished(s):
    return SERVICE if load64(s + RESULT) == SERVICE else finish(s)


# Called by other threads -----


@group.add
def request(s, bits):
    """Set REQUEST bits, and wake the vCPU if it waits."""
    before = atomic_or(s + S.REQUEST, bits)
    syscall(SYS_FUTEX, s + S.REQUEST, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0)
    return before


@group.add
def flush_translations(vm):
    """Have all vCPUs drop their translations; return when none runs on old ones."""
    table, count = load64(vm + VCPUS), load64(vm + VCPU_COUNT)
    for index in range(count):
        atomic_or(load64(table + 8 * index) + S.REQUEST, S.REQ_TLB_FLUSH)
    for index in range(count):
        s = load64(table + 8 * index)
        while load64(s + S.MODE) != 0 and load64(s + S.REQUEST) & S.REQ_TLB_FLUSH:
            for _ in range(SPINS):
                pause()
            syscall(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
    return 0


@group.add
def host_tsc():
    return rdtsc()
