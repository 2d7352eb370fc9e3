"""The vCPU's software TLBs: linear page to host page, direct-mapped, one for each privilege that paging tells apart.

An entry holds a page of 4 KiB whatever the guest's page size, and grants reading, writing and fetching each by its own
tag: the write tag is there only once the D bit and the dirty log have been served. It embodies everything that the
walk looked at, so these must flush: CR0.PG and WP, CR3 (keep_global), CR4, EFER.NXE, PKRU; and select_tlb follows CPL,
RFLAGS.AC and CR4.SMAP. There is no PCID tag: a CR3 write drops what is not global, which the SDM allows.
"""

from ..breakpoint import WRITES, met_on_page
from ..build import compiled
from ..raw import atomic_and, atomic_xchg, ctz, load64, shl, store64
from ..state import (
    AC,
    BREAK_DATA,
    CPL,
    CR0,
    CR0_AM,
    CR4,
    CR4_SMAP,
    MODE,
    REQ_TLB_FLUSH,
    REQUEST,
    RFLAGS,
    TLB,
    TLB_BASE,
    TLB_FLUSHES,
    TLB_GENERATION,
    VM,
)
from .layout import (
    FETCH,
    GENERATION,
    IMPLICIT_SUPERVISOR,
    TLB_ADDEND,
    TLB_EMPTY,
    TLB_ENTRIES,
    TLB_ENTRY,
    TLB_FETCH,
    TLB_GLOBAL,
    TLB_INVALID,
    TLB_KINDS,
    TLB_LARGE,
    TLB_MAP,
    TLB_READ,
    TLB_SIZE,
    TLB_SUPERVISOR,
    TLB_SUPERVISOR_AC,
    TLB_USED,
    TLB_USER,
    TLB_WRITE,
    WRITE,
)
from .members import member

# What walk() tells about the page, besides success
PAGE_GLOBAL = 2
PAGE_LARGE = 4

_MAP_WORDS = TLB_MAP // 8
_INVLPG_REACH = 30  # log2 of the largest page


@compiled
def tlb_of(s, access):
    """Which of the three TLBs an access goes through."""
    if load64(s + CPL) == 3 and not access & IMPLICIT_SUPERVISOR:
        return TLB_USER
    if load64(s + CR4) & CR4_SMAP and (access & IMPLICIT_SUPERVISOR or not load64(s + RFLAGS) & AC):
        return TLB_SUPERVISOR
    return TLB_SUPERVISOR_AC


@compiled
def checks_alignment(s):
    """Whether misaligned accesses are #AC (SDM vol. 3, 6.15, interrupt 17)."""
    wanted = load64(s + CR0) & CR0_AM and load64(s + RFLAGS) & AC
    return 1 if wanted and load64(s + CPL) == 3 else 0


@member
def select_tlb(s):
    """Recompute TLB after CPL, RFLAGS.AC, CR0.AM or CR4.SMAP changed."""
    at = TLB_EMPTY if checks_alignment(s) else tlb_of(s, 0) * TLB_SIZE
    store64(s + TLB, load64(s + TLB_BASE) + at)
    return 0


@compiled
def _invalidate(entry):
    store64(entry + TLB_READ, TLB_INVALID)
    store64(entry + TLB_WRITE, TLB_INVALID)
    store64(entry + TLB_FETCH, TLB_INVALID)


@member
def tlb_init(s):
    """Make the memory at TLB_BASE (TLB_BYTES of it) empty TLBs."""
    base = load64(s + TLB_BASE)
    for i in range(TLB_KINDS * TLB_ENTRIES):
        _invalidate(base + i * TLB_ENTRY)
    for i in range(TLB_ENTRIES):
        _invalidate(base + TLB_EMPTY + i * TLB_ENTRY)
    for i in range(TLB_KINDS * _MAP_WORDS):
        store64(base + TLB_USED + 8 * i, 0)
        store64(base + TLB_GLOBAL + 8 * i, 0)
        store64(base + TLB_LARGE + 8 * i, 0)
    return select_tlb(s)


@member
def tlb_flush(s, keep_global):
    """Drop all entries; with keep_global (a CR3 write) only those of pages that are not global."""
    base = load64(s + TLB_BASE)
    for i in range(TLB_KINDS * _MAP_WORDS):
        kept = 0
        if keep_global:
            kept = load64(base + TLB_GLOBAL + 8 * i)
        bits = load64(base + TLB_USED + 8 * i) & ~kept
        while bits:
            # The bitmaps of the three TLBs follow one another as the TLBs do, so this counts through all of them.
            bit = ctz(bits)
            _invalidate(base + (64 * i + bit) * TLB_ENTRY)
            bits &= ~shl(1, bit)
        store64(base + TLB_USED + 8 * i, kept)
        store64(base + TLB_GLOBAL + 8 * i, kept)
        store64(base + TLB_LARGE + 8 * i, load64(base + TLB_LARGE + 8 * i) & kept)
    return 0


@compiled
def _entry_page(entry):
    """The page that an entry is about, or a value with low bits set."""
    page = load64(entry + TLB_READ)
    if page & TLB_INVALID:
        page = load64(entry + TLB_FETCH)
    return page


@member
def tlb_flush_page(s, la):
    """INVLPG: drop the page that holds `la`, global or not, and all of it when it is large."""
    base = load64(s + TLB_BASE)
    index = (la >> 12) & (TLB_ENTRIES - 1)
    for kind in range(TLB_KINDS):
        _invalidate(base + kind * TLB_SIZE + index * TLB_ENTRY)
    # The size of a large page is not kept; neighbours within the largest size go too.
    for i in range(TLB_KINDS * _MAP_WORDS):
        bits = load64(base + TLB_LARGE + 8 * i)
        while bits:
            bit = ctz(bits)
            entry = base + (64 * i + bit) * TLB_ENTRY
            if _entry_page(entry) >> _INVLPG_REACH == la >> _INVLPG_REACH:
                _invalidate(entry)
            bits &= ~shl(1, bit)
    return 0


@compiled
def fill(s, la, access, host, page):
    """Enter the translation of `la` to `host` for an access that walk() granted with `page`.

    Not of a page that data breakpoints watch.
    """
    if load64(s + BREAK_DATA) and met_on_page(s, la, WRITES):
        return
    tlb = load64(s + TLB_BASE)
    index = tlb_of(s, access) * TLB_ENTRIES + ((la >> 12) & (TLB_ENTRIES - 1))
    entry = tlb + index * TLB_ENTRY
    tag = la & ~4095
    if _entry_page(entry) != tag or load64(entry + TLB_ADDEND) != host - la:
        _invalidate(entry)
        store64(entry + TLB_ADDEND, host - la)
    if access & FETCH:
        store64(entry + TLB_FETCH, tag)
    else:
        store64(entry + TLB_READ, tag)  # what can be written can be read
        if access & WRITE:
            store64(entry + TLB_WRITE, tag)
    word, bit = (index >> 6) << 3, shl(1, index & 63)
    store64(tlb + TLB_USED + word, load64(tlb + TLB_USED + word) | bit)
    kept = load64(tlb + TLB_GLOBAL + word) & ~bit
    store64(tlb + TLB_GLOBAL + word, kept | bit if page & PAGE_GLOBAL else kept)
    small = load64(tlb + TLB_LARGE + word) & ~bit
    store64(tlb + TLB_LARGE + word, small | bit if page & PAGE_LARGE else small)


# Holding translations ----------


@member
def leave_guest(s):
    """From here on this thread uses no translation, and nobody waits for it."""
    atomic_xchg(s + MODE, 0)
    return 0


@member
def enter_guest(s):
    """Announce that this thread uses translations. 1: they changed meanwhile, and the TLBs have been flushed.

    REQ_TLB_FLUSH stays set: it is acknowledged between blocks, by acknowledge_flush.
    """
    atomic_xchg(s + MODE, 1)
    generation = load64(load64(s + VM) + GENERATION)
    if load64(s + REQUEST) & REQ_TLB_FLUSH or generation != load64(s + TLB_GENERATION):
        store64(s + TLB_GENERATION, generation)
        store64(s + TLB_FLUSHES, load64(s + TLB_FLUSHES) + 1)
        tlb_flush(s, 0)
        return 1
    return 0


@member
def acknowledge_flush(s):
    """Do what REQ_TLB_FLUSH asks for; the thread holds no host address of guest memory."""
    store64(s + TLB_GENERATION, load64(load64(s + VM) + GENERATION))
    store64(s + TLB_FLUSHES, load64(s + TLB_FLUSHES) + 1)
    tlb_flush(s, 0)
    atomic_and(s + REQUEST, ~REQ_TLB_FLUSH)
    return 0
