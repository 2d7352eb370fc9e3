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

from kvmfs.abi.layout import offset_of
from kvmfs.abi.run import (
    KVM_SYNC_X86_VALID_FIELDS,
    Run,
)
from kvmfs.abi.vcpu import KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.cpu.debug import group as debug_group
from kvmfs.jit.cpu.debug import leave_if_due
from kvmfs.jit.cpu.run import group as run_group
from kvmfs.jit.mmu.group import TLB_INIT
from kvmfs.jit.mmu.tlb import acknowledge_flush, enter_guest, leave_guest
from kvmfs.jit.raw import (
    atomic_and,
    atomic_or,
    load8,
    load64,
    lshr,
    memcpy,
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
from kvmfs.kvm.attend import (
    SYS_FUTEX,
    attend,
    block,
    inject_interrupt,
    interruptible,
    pic_in_kernel,
    wants_window,
)
from kvmfs.kvm.bus_error import on_bus_error, this_thread
from kvmfs.kvm.client_watch import mappings_changed
from kvmfs.kvm.counting import REQUESTED_WINDOW, count, count_exit
from kvmfs.kvm.dirty_pages import RESERVE
from kvmfs.kvm.exits import (
    AGAIN,
    EXIT_DIRTY_RING_FULL,
    EXIT_INTR,
    EXIT_REASON,
    EXIT_SHUTDOWN,
    EXIT_UNKNOWN,
    EXIT_WINDOW,
    LEAVE,
    MMIO_DATA,
    ONCE_MORE,
    PIO_PAGE,
    convert,
    leave,
    next_mmio_write,
    service,
)
from kvmfs.kvm.observe import commit, note_end, note_start, reserve
from kvmfs.kvm.platform import COMPLETE_PIO, FRAGMENT, call
from kvmfs.kvm.shared_apic import share_apic, unshare_apic
from kvmfs.kvm.steal import is_steal_due, record_steal
from kvmfs.kvm.words import Cpu, Vm

group = Group("enter", __name__)

RUN, STEP, RESET_CODE = (run_group.slot(name) for name in ("run", "step", "reset_code"))
RETIRE = debug_group.slot("retire")

SERVICE, EINTR, EINVAL, EAGAIN = W.SERVICE, errno.EINTR, errno.EINVAL, errno.EAGAIN
FUTEX_WAKE_PRIVATE: Final = 129
SYS_SCHED_YIELD: Final = 24
SPINS: Final = 64

# Words of the blocks; numba wants them as plain globals
RUN_PAGE, PHASE, RESULT, WANTED = Cpu.RUN, Cpu.PHASE, Cpu.RESULT, Cpu.WANTED
HAS_RUN, LAPIC, MP_STATE, COMPLETION = Cpu.HAS_RUN, Cpu.LAPIC, Cpu.MP_STATE, Cpu.COMPLETION
APIC_EVENTS, TRIPLE_FAULT, MMIO_DONE = Cpu.APIC_EVENTS, Cpu.TRIPLE_FAULT, Cpu.MMIO_DONE
EVENT_LOG, TO_LOG = Cpu.EVENT_LOG, Cpu.TO_LOG
CLOCK_DUE, STEAL_DUE = Cpu.CLOCK_DUE, Cpu.STEAL_DUE
RING, RING_MASK, RING_SOFT, RING_STOP = Cpu.RING, Cpu.RING_MASK, Cpu.RING_SOFT, Cpu.RING_STOP
THREAD, BUS_ERROR = Cpu.THREAD, Cpu.BUS_ERROR
RING_DIRTY, RING_RESET = Cpu.RING_DIRTY, Cpu.RING_RESET
IRQCHIP, VCPUS, VCPU_COUNT = Vm.IRQCHIP, Vm.VCPUS, Vm.VCPU_COUNT

# struct kvm_run
REQUEST_WINDOW, IMMEDIATE_EXIT = offset_of(Run, "request_interrupt_window"), offset_of(Run, "immediate_exit")
FLAGS, CR8, APIC_BASE = (offset_of(Run, f) for f in ("flags", "cr8", "apic_base"))
VALID_REGS, DIRTY_REGS = offset_of(Run, "kvm_valid_regs"), offset_of(Run, "kvm_dirty_regs")
MSR_ERROR, MSR_DATA = offset_of(Run, "msr.error"), offset_of(Run, "msr.data")
HYPERCALL_RET = offset_of(Run, "hypercall.ret")
READY, IF_FLAG = offset_of(Run, "ready_for_interrupt_injection"), offset_of(Run, "if_flag")

RUNNABLE, HALTED, UNINITIALIZED = KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED


@compiled
def run_one(s):
    """Execute the instruction at RIP and nothing else, no event either: EXIT, or EXIT_NONE when it is done."""
    store64(s + S.EXIT, S.EXIT_NONE)
    enter_guest(s)
    while True:
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        store64(s + S.MMIO_USED, 0)
        how = call(s, STEP)
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
def answer_msr(s, reads):
    """The client has answered for an MSR: #GP if it said so (complete_fast_msr_access)."""
    run = load64(s + RUN_PAGE)
    if load8(run + MSR_ERROR):
        store64(s + S.EXC_VECTOR, S.GP)
        store64(s + S.EXC_ERROR, 0)
        store64(s + S.EXC_HAS_ERROR, 1)
        store64(s + S.EXC_PENDING, 1)
        return
    if reads:
        value = load64(run + MSR_DATA)
        store64(s + S.RAX, zext32(value))
        store64(s + S.RDX, lshr(value, 32))
    call(s, RETIRE)


# Ending -----


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
        if load64(s + EVENT_LOG) and load64(s + TO_LOG):
            store64(s + TO_LOG, 0)
            return service(s, W.NEEDS_EVENT_LOG)
        store64(s + PHASE, W.PHASE_LOGGED)
    if load64(s + PHASE) == W.PHASE_LOGGED:
        if load64(run + VALID_REGS) != 0:
            return service(s, W.NEEDS_SYNC_OUT)
        store64(s + PHASE, W.PHASE_STORED)
    save(s)
    note_end(s)
    store64(s + PHASE, W.PHASE_START)
    return load64(s + RESULT)


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
        store64(s + MMIO_DONE, load64(s + MMIO_DONE) + 1)
        if next_mmio_write(s) == LEAVE:
            return LEAVE
    elif what == W.COMPLETE_HYPERCALL:
        result = load64(run + HYPERCALL_RET)
        store64(s + S.RAX, result if load64(s + S.HFLAGS) & S.MODE_CODE64 else zext32(result))
        call(s, RETIRE)
    elif what == W.COMPLETE_RDMSR or what == W.COMPLETE_WRMSR:
        answer_msr(s, what == W.COMPLETE_RDMSR)
    return convert(s, S.EXIT_DEBUG) if leave_if_due(s) else AGAIN


@compiled
def once_more(s):
    """Execute the instruction whose data is there now."""
    reason = run_one(s)
    return AGAIN if reason == S.EXIT_NONE else settle(s, reason)


@compiled
def settle(s, reason):
    """convert(), with the instructions that devices of ours gave data for executed to their end."""
    how = convert(s, reason)
    while how == ONCE_MORE:
        reason = run_one(s)
        how = AGAIN if reason == S.EXIT_NONE else convert(s, reason)
    return how


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
    if mappings_changed(load64(s + S.VM)):
        store64(s + RESULT, service(s, W.NEEDS_NEW_MAPPINGS))
        return LEAVE
    store64(s + THREAD, this_thread())
    store64(s + STEAL_DUE, 1)
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
def ring_is_full(s):
    """kvm_dirty_ring_soft_full."""
    return load64(s + RING) != 0 and load64(s + RING_DIRTY) - load64(s + RING_RESET) >= load64(s + RING_SOFT)


@compiled
def run_guest(s):
    """Run: EXIT. An instruction that the dirty ring has hardly room for is put off, to be executed after the exit."""
    store64(s + RING_STOP, load64(s + RING_MASK) + 1 - RESERVE)
    reason = call(s, RUN)
    store64(s + RING_STOP, load64(s + RING_MASK) + 1)
    count_exit(s, reason)
    return reason


@compiled
def can_be_repeated(s, reason):
    """Whether nothing is lost when this exit is not made: the guest comes here again."""
    if reason == S.EXIT_PIO:
        return load64(s + S.PIO_STATE) == S.IO_PENDING and load64(s + S.PIO_STRING) == 0
    return reason == S.EXIT_KICKED or reason == S.EXIT_MMIO_READ


@compiled
def go(s):
    """vcpu_run, once: AGAIN, or LEAVE with RESULT."""
    if load64(s + S.REQUEST) & S.REQ_KICK:
        atomic_and(s + S.REQUEST, ~S.REQ_KICK)  # before a look at what it is for
    if attend(s) == LEAVE:
        return LEAVE
    if load64(s + MP_STATE) != RUNNABLE:
        store64(s + STEAL_DUE, 1)
        return AGAIN if block(s) else leave(s, EXIT_INTR, -EINTR)
    if ring_is_full(s):
        return leave(s, EXIT_DIRTY_RING_FULL, 0)
    if load64(s + CLOCK_DUE) != 0:
        store64(s + RESULT, service(s, W.NEEDS_CLOCK))
        return LEAVE
    if is_steal_due(s) and record_steal(s) == LEAVE:
        return LEAVE
    if load64(s + TRIPLE_FAULT) != 0:
        store64(s + TRIPLE_FAULT, 0)
        return leave(s, EXIT_SHUTDOWN, 0)
    window = wants_window(s)
    if window and interruptible(s):
        count(s, REQUESTED_WINDOW)
        return leave(s, EXIT_WINDOW, 0)
    window |= inject_interrupt(s)
    store64(s + S.IRQ_WINDOW, window)
    if window | load64(s + S.NMI_PENDING):
        atomic_or(s + S.REQUEST, S.REQ_EVENT)
    share_apic(s)
    reason = run_guest(s)
    unshare_apic(s)
    if load64(s + BUS_ERROR) != 0 and can_be_repeated(s, reason):
        store64(s + RESULT, service(s, W.NEEDS_REPAIR))
        return LEAVE
    return settle(s, reason)


@group.add
def enter(s):
    """KVM_RUN: the result, -errno, or SERVICE."""
    if load64(s + PHASE) == W.PHASE_START:
        note_start(s)
        if begin(s) == LEAVE:
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


group.add(on_bus_error)


@group.add
def ring_reserve(ring, slots):
    return reserve(ring, slots)


@group.add
def ring_commit(ring, slot):
    return commit(ring, slot)


@group.add
def host_tsc():
    return rdtsc()
