"""Steal time: how long a vCPU wanted to run and the host did not let it (record_steal_time of arch/x86/kvm/x86.c).

Part of enter's group. Where KVM takes the scheduler's account of the vCPU's thread, there are two here: that of the
client's thread, which calls KVM_RUN, and that of the thread of ours that runs the guest meanwhile. They are read from
/proc/PID/task/TID/schedstat, through descriptors that accounts.py provides.

A guest's structure is brought up to date when KVM_RUN begins, when a HLT ends, and then once in PERIOD. `preempted` is
always 0: a thread cannot tell that it has been taken off its processor while it is.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.layout import offset_of
from kvmfs.abi.para import KVM_MSR_ENABLED, KVM_STEAL_VALID_BITS, StealTime
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.mmu.group import READ_PHYS, WRITE_PHYS
from kvmfs.jit.raw import load8, load32, load64, rdtsc, store8, store32, store64, syscall
from kvmfs.kvm import accounts
from kvmfs.kvm import words as W
from kvmfs.kvm.exits import AGAIN, LEAVE, service
from kvmfs.kvm.shared_apic import copy
from kvmfs.kvm.words import Cpu, Vm

PERIOD: Final = 1 << 21
"""Ticks of the time stamp counter: about a millisecond."""
SYS_PREAD64: Final = 17
SPACE: Final = ord(" ")
TEXT_SIZE: Final = 64  # of a schedstat file: three numbers


STEAL, STEAL_DUE, STEAL_LAST = Cpu.STEAL, Cpu.STEAL_DUE, Cpu.STEAL_LAST
CALLER, THREAD, CALLER_ACCOUNT, CALLER_DELAY = Cpu.CALLER, Cpu.THREAD, Cpu.CALLER_ACCOUNT, Cpu.CALLER_DELAY
ACCOUNTS, RESULT = Vm.ACCOUNTS, Cpu.RESULT
COUNT, FIRST, ACCOUNT_SIZE = accounts.Table.COUNT, accounts.Table.FIRST, accounts.Account.SIZE
TID, FD, LAST = accounts.Account.TID, accounts.Account.FD, accounts.Account.LAST
VERSION, PREEMPTED = offset_of(StealTime, "version"), offset_of(StealTime, "preempted")
ENABLED = KVM_MSR_ENABLED
ADDRESS: Final = KVM_STEAL_VALID_BITS - (1 << 64)
UNKNOWN: Final = -1
NEVER: Final = -2


@compiled
def account_of(s, tid):
    """The thread's account, or 0."""
    table = load64(load64(s + S.VM) + ACCOUNTS)
    for index in range(load64(table + COUNT)):
        account = table + FIRST + ACCOUNT_SIZE * index
        if load64(account + TID) == tid:
            return account
    return 0


@compiled
def run_delay(s, account):
    """Nanoseconds that the thread waited for a processor; UNKNOWN: Python has to look; NEVER: it cannot be told."""
    if account == 0:
        return UNKNOWN
    if load64(account + FD) < 0:
        return NEVER
    length = syscall(SYS_PREAD64, load64(account + FD), s + S.T0, TEXT_SIZE, 0, 0, 0)
    at = 0
    while at < length and load8(s + S.T0 + at) != SPACE:  # the time that it ran
        at += 1
    if at >= length:
        return UNKNOWN
    at += 1
    value = 0
    while at < length and load8(s + S.T0 + at) != SPACE:
        value = 10 * value + load8(s + S.T0 + at) - ord("0")
        at += 1
    return value


@compiled
def grown(at, now):
    """By how much a word has fallen behind; it catches up."""
    before = load64(at)
    store64(at, now)
    return now - before


@compiled
def write_steal(s, stolen):
    """Add to the guest's structure, whose version is odd meanwhile."""
    gpa = load64(s + STEAL) & ADDRESS
    if copy(s, READ_PHYS, gpa, VERSION + 4) != 0:
        return
    steal, version = load64(s + S.T0) + stolen, load32(s + S.T0 + VERSION)
    version += 1 + (version & 1)
    store8(s + S.T0, 0)
    if copy(s, WRITE_PHYS, gpa + PREEMPTED, 1) != 0:
        return
    store32(s + S.T0, version)
    copy(s, WRITE_PHYS, gpa + VERSION, 4)
    store64(s + S.T0, steal)
    copy(s, WRITE_PHYS, gpa, 8)
    store32(s + S.T0, version + 1)
    copy(s, WRITE_PHYS, gpa + VERSION, 4)


@compiled
def is_steal_due(s):
    if load64(s + STEAL) & ENABLED == 0:
        return 0
    return 1 if load64(s + STEAL_DUE) != 0 or rdtsc() - load64(s + STEAL_LAST) > PERIOD else 0


@compiled
def record_steal(s):
    """AGAIN to go on, or LEAVE: Python is to find the threads' accounts."""
    if load64(s + CALLER_ACCOUNT) == 0 or load64(load64(s + CALLER_ACCOUNT) + TID) != load64(s + CALLER):
        store64(s + CALLER_ACCOUNT, account_of(s, load64(s + CALLER)))
        store64(s + CALLER_DELAY, run_delay(s, load64(s + CALLER_ACCOUNT)))
    own = account_of(s, load64(s + THREAD))
    callers, ours = run_delay(s, load64(s + CALLER_ACCOUNT)), run_delay(s, own)
    if callers == UNKNOWN:
        store64(s + CALLER_ACCOUNT, 0)  # of an earlier thread with this number
    if callers == UNKNOWN or ours == UNKNOWN:
        store64(s + RESULT, service(s, W.NEEDS_ACCOUNTS))
        return LEAVE
    stolen = 0
    if callers >= 0:
        stolen += grown(s + CALLER_DELAY, callers)
    if ours >= 0:
        stolen += grown(own + LAST, ours)
    store64(s + STEAL_DUE, 0)
    store64(s + STEAL_LAST, rdtsc())
    write_steal(s, max(stolen, 0))
    return AGAIN
