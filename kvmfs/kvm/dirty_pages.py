"""Dirty pages, compiled: bitmaps of memslots, and the rings of vCPUs (virt/kvm/dirty_ring.c).

A page's bit in its memslot's bitmap stands for what a writable SPTE is in KVM: while it is set, vCPUs may have
translations for writing to the page. Whoever clears bits has all translations dropped afterwards. Without a ring the
bitmap is the log. With rings nobody but this module looks at it, and the vCPU that sets a bit puts the page into its
ring; so a page is in a ring once until it has been reset.

The ring lies in the pages that the client maps, who writes there as it likes: what is read from it is checked.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.memory import KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET
from kvmfs.jit import state as S
from kvmfs.jit.build import Group
from kvmfs.jit.mmu.layout import SLOT_DIRTY, SLOT_ID
from kvmfs.jit.raw import atomic_and, atomic_or, atomic_xchg, load32, load64, lshr, shl, store32, store64, ult
from kvmfs.kvm.words import Cpu

group = Group("dirty", __name__)

RING, RING_MASK, RING_SOFT, RING_STOP = Cpu.RING, Cpu.RING_MASK, Cpu.RING_SOFT, Cpu.RING_STOP
RING_DIRTY, RING_RESET = Cpu.RING_DIRTY, Cpu.RING_RESET

# struct kvm_dirty_gfn
ENTRY, SLOT, OFFSET = 16, 4, 8
F_DIRTY, F_RESET = KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET

RESERVE: Final = 32
"""Entries that an instruction which has to be finished can count on: it touches two pages, and pages of paging
structures for them and for its code."""

# A VM's table of bitmaps, by slot id
BITMAP, PAGES = 0, 8
BITMAP_ENTRY: Final = 16


@group.add
def mark_in_ring(s, slot, page):
    """layout.MARK_DIRTY of a VM with rings. 0: the ring is almost full, and the vCPU has been told to leave."""
    used = load64(s + RING_DIRTY) - load64(s + RING_RESET)
    if used >= load64(s + RING_STOP):
        atomic_or(s + S.REQUEST, S.REQ_KICK)
        return 0
    bit = shl(1, page & 63)
    if atomic_or(load64(slot + SLOT_DIRTY) + ((page >> 6) << 3), bit) & bit:
        return 1  # another vCPU has just put it into its own
    index = load64(s + RING_DIRTY)
    entry = load64(s + RING) + ENTRY * (index & load64(s + RING_MASK))
    store64(entry + OFFSET, page)
    atomic_xchg(entry, F_DIRTY | shl(load64(slot + SLOT_ID), 32))  # flags and slot, once the page is there
    store64(s + RING_DIRTY, index + 1)
    if used + 1 >= load64(s + RING_SOFT):
        atomic_or(s + S.REQUEST, S.REQ_KICK)
    return 1


@group.add
def reset_ring(s, bitmaps, slots):
    """kvm_dirty_ring_reset: take back the entries that the client has harvested; how many that were.

    bitmaps: address of {bitmap, number of pages} by slot id, `slots` of them.
    """
    count = 0
    while load64(s + RING_RESET) != load64(s + RING_DIRTY):
        entry = load64(s + RING) + ENTRY * (load64(s + RING_RESET) & load64(s + RING_MASK))
        if load32(entry) & F_RESET == 0:
            break
        slot, page = load32(entry + SLOT), load64(entry + OFFSET)
        store32(entry, 0)
        atomic_xchg(s + RING_RESET, load64(s + RING_RESET) + 1)
        count += 1
        if ult(slot, slots):
            bitmap = load64(bitmaps + BITMAP_ENTRY * slot + BITMAP)
            if bitmap != 0 and ult(page, load64(bitmaps + BITMAP_ENTRY * slot + PAGES)):
                atomic_and(bitmap + (lshr(page, 6) << 3), ~shl(1, page & 63))
    return count


@group.add
def take_dirty(bitmap, words, into):
    """Move a bitmap's words `into` another place, leaving zeros: 1 if a bit was set."""
    found = 0
    for i in range(words):
        word = load64(bitmap + 8 * i)
        if word != 0:
            word = atomic_xchg(bitmap + 8 * i, 0)
            found = 1
        store64(into + 8 * i, word)
    return found


@group.add
def clear_dirty(bitmap, words, mask):
    """Clear the bits that are set in `mask`, as many words: 1 if one of them was set."""
    found = 0
    for i in range(words):
        bits = load64(mask + 8 * i)
        if bits != 0 and atomic_and(bitmap + 8 * i, ~bits) & bits:
            found = 1
    return found
