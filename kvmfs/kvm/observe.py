"""What KVM_RUN notes of its end for those who look on: counters, a trace. Part of enter's group."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import errno

from kvmfs.abi.exits import Exit
from kvmfs.abi.layout import PAGE_SIZE, offset_of
from kvmfs.abi.run import Run
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.mmu.layout import EHWPOISON
from kvmfs.jit.raw import (
    atomic_add,
    atomic_xchg,
    load32,
    load64,
    memcpy,
    pause,
    rdtsc,
    store64,
)
from kvmfs.kvm import inspection, ring
from kvmfs.kvm.inspection import Seen
from kvmfs.kvm.ring import Record, Ring
from kvmfs.kvm.words import Cpu

# numba wants plain globals
RUN_PAGE, RESULT, ID = Cpu.RUN, Cpu.RESULT, Cpu.ID
EXITED, TRACE, STARTED, NO_EXIT = Seen.EXITED, Seen.TRACE, Seen.STARTED, inspection.NO_EXIT
HEAD, TAIL, READER, LOST, TSC_KHZ, RECORDS = Ring.HEAD, Ring.TAIL, Ring.READER, Ring.LOST, Ring.TSC_KHZ, Ring.RECORDS
SLOT, SLOTS, MASK, PATIENCE = ring.SLOT, ring.SLOTS, ring.MASK, ring.PATIENCE_KHZ
R_COMMIT, R_KIND, R_LENGTH, R_START, R_END = Record.COMMIT, Record.KIND, Record.LENGTH, Record.START, Record.END
R_WHO, R_RESULT, R_CMD, R_ARG, R_RIP = Record.WHO, Record.RESULT, Record.CMD, Record.ARG, Record.RIP
R_INSTRUCTIONS, R_DETAILS, DETAILS_SIZE = Record.INSTRUCTIONS, Record.DETAILS, Record.DETAILS_SIZE
R_PIO, PIO_SIZE, KIND_EXIT, DATA_SIZE = Record.PIO, Record.PIO_SIZE, ring.EXIT, SLOT - Record.DATA
EXIT_REASON, DETAILS = offset_of(Run, "exit_reason"), offset_of(Run, "io.direction")
INTR, IO, PIO_PAGE = int(Exit.INTR), int(Exit.IO), PAGE_SIZE
EFAULT, EINTR = errno.EFAULT, errno.EINTR
SPINS = 256


@compiled
def exit_reason(s):
    """What KVM_RUN, about to return RESULT, left for: NO_EXIT when it never got as far."""
    result = load64(s + RESULT)
    if result == -EINTR:
        return INTR
    # The page is the client's: a reason may be anything.
    reason = load32(load64(s + RUN_PAGE) + EXIT_REASON)
    if (result != 0 and result != -EFAULT and result != -EHWPOISON) or reason > NO_EXIT:
        return NO_EXIT
    return reason


@compiled
def note_start(s):
    """KVM_RUN begins."""
    if load64(s + TRACE) != 0:
        store64(s + STARTED, rdtsc())


@compiled
def note_end(s):
    """KVM_RUN is about to return RESULT."""
    reason = exit_reason(s)
    counter = s + EXITED + 8 * reason
    store64(counter, load64(counter) + 1)
    if load64(s + TRACE) != 0:
        trace_exit(s, reason)


@compiled
def reserve(at, slots):
    """Take slots of a ring; wait for the reader, if there is one, where they are not read yet."""
    slot = atomic_add(at + HEAD, slots)
    patience = 0
    while slot + slots - load64(at + TAIL) > SLOTS:
        if load64(at + READER) == 0:
            break
        now = rdtsc()
        if patience == 0:
            patience = now + PATIENCE * load64(at + TSC_KHZ)
        if now > patience:
            atomic_add(at + LOST, 1)
            break
        for _ in range(SPINS):
            pause()
    return slot


@compiled
def commit(at, slot):
    return atomic_xchg(at + RECORDS + SLOT * (slot & MASK), slot + 1)


@compiled
def trace_exit(s, reason):
    at, run = load64(s + TRACE), load64(s + RUN_PAGE)
    slot = reserve(at, 1)
    record = at + RECORDS + SLOT * (slot & MASK)
    started = load64(s + STARTED)
    now = rdtsc()
    store64(record + R_KIND, KIND_EXIT)
    store64(record + R_LENGTH, DATA_SIZE)
    store64(record + R_START, started if started != 0 else now)
    store64(record + R_END, now)
    store64(record + R_WHO, load64(s + ID))
    store64(record + R_RESULT, load64(s + RESULT))
    store64(record + R_CMD, reason)
    store64(record + R_ARG, 0)
    store64(record + R_RIP, load64(s + S.RIP))
    store64(record + R_INSTRUCTIONS, load64(s + S.INSTRUCTIONS))
    memcpy(record + R_DETAILS, run + DETAILS, DETAILS_SIZE)
    if reason == IO:
        memcpy(record + R_PIO, run + PIO_PAGE, PIO_SIZE)
    commit(at, slot)
