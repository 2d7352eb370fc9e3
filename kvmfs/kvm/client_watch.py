"""Looking whether the client's mappings are still those that its memslots were made of.

In KVM an mmu_notifier tells of each change at once. Here nobody does, so each KVM_RUN begins by asking the kernel about
the mappings behind the memslots (PROCMAP_QUERY, half a microsecond each): what a client has unmapped, protected or
replaced before it called KVM_RUN, that run does not reach any more. Each watch is a range of the client that mappings
of one file have to hold, from a certain offset on.

With more than EVERY_RUN watches they are looked at once in PERIOD ticks of the time stamp counter only.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.jit.build import compiled
from kvmfs.jit.layout import Layout
from kvmfs.jit.raw import load32, load64, rdtsc, store64
from kvmfs.kvm.client_memory import VMA_END, VMA_FLAGS, ask_mapping, query
from kvmfs.kvm.words import Vm

EVERY_RUN: Final = 4
MAX_WATCHES: Final = 64
PERIOD: Final = 1 << 21

# struct procmap_query
VMA_START, VMA_OFFSET, INODE, MAJOR, MINOR, READABLE = 24, 56, 64, 72, 76, 1


class Watches:
    """A VM's. Python changes them with SEQUENCE odd; what a vCPU reads meanwhile it does not use."""

    _l = Layout()
    SEQUENCE = _l.u64()
    COUNT = _l.u64()
    LAST = _l.u64()  # time stamp of the last look
    FIRST = _l.u64(6 * MAX_WATCHES)  # {start, end, offset in the file at start, inode, device, flags that are needed}
    SIZE = _l.size


WATCHES = Vm.WATCHES
SEQUENCE, COUNT, LAST, FIRST, WATCH = Watches.SEQUENCE, Watches.COUNT, Watches.LAST, Watches.FIRST, 48


@compiled
def holds(vm, watch):
    """Whether the client's mappings hold what is watched; yes if that cannot be told."""
    q, at, end = query(), load64(watch), load64(watch + 8)
    offset, needed = load64(watch + 16) - at, load64(watch + 40)
    while at < end:
        asked = ask_mapping(vm, at, q)
        if asked != 0:
            return 0 if asked == -2 else 1  # ENOENT: nothing is mapped there
        if load64(q + INODE) != load64(watch + 24) or load32(q + MAJOR) << 32 | load32(q + MINOR) != load64(watch + 32):
            return 0
        if load64(q + VMA_OFFSET) - load64(q + VMA_START) != offset or load64(q + VMA_FLAGS) & needed != needed:
            return 0
        at = load64(q + VMA_END)
    return 1


@compiled
def mappings_changed(vm):
    """Whether Python has to look at the client's mappings."""
    watches = load64(vm + WATCHES)
    count, sequence = load64(watches + COUNT), load64(watches + SEQUENCE)
    if count == 0 or sequence & 1:
        return 0
    if count > EVERY_RUN:
        now = rdtsc()
        if now - load64(watches + LAST) < PERIOD:
            return 0
        store64(watches + LAST, now)
    for index in range(count):
        if holds(vm, watches + FIRST + WATCH * index) == 0:
            return 1 if load64(watches + SEQUENCE) == sequence else 0
    return 0
