"""Breakpoints as the debug registers hold them (SDM vol. 3, 18.2.4): which are armed, and what meets them.

A page that data breakpoints watch never gets into the TLB, so that every access to it comes through watch() and the
others cost nothing. An instruction that meets one is executed again, alone: a trap has to come right after it.
"""

from .build import compiled
from .mmu.layout import IMPLICIT_SUPERVISOR, WRITE
from .raw import atomic_or, load64, shl, store64, ult
from .state import (
    BREAK_ADDRESS,
    BREAK_CODE,
    BREAK_CONTROL,
    BREAK_DATA,
    BREAK_HITS,
    CR4,
    CR4_DE,
    HFLAGS,
    LEAVE,
    LEAVE_RETRY,
    MODE_STEP,
    REQ_DEBUG,
    REQUEST,
)

# Kinds of access, as masks over R/W fields of DR7: 0 execution, 1 writes, 2 I/O, 3 reads and writes
EXECUTION, WRITES, PORTS, READS = 1, 2 | 8, 4, 8
COUNT = 4


@compiled
def is_armed(s, number, kinds):
    """Whether breakpoint `number` is enabled, and for one of `kinds`."""
    control = load64(s + BREAK_CONTROL)
    kind = shl(1, control >> (16 + 4 * number) & 3)
    return control >> 2 * number & 3 != 0 and kind & kinds != 0


@compiled
def reach(s, number):
    """Bytes that breakpoint `number` covers: its LEN field."""
    field = load64(s + BREAK_CONTROL) >> (18 + 4 * number) & 3
    return 8 if field == 2 else field + 1


@compiled
def address(s, number):
    """The first of them: LEN aligns."""
    return load64(s + BREAK_ADDRESS + 8 * number) & -reach(s, number)


@compiled
def met(s, at, size, kinds):
    """DR6 bits of the armed breakpoints of `kinds` that share a byte with [at, at + size)."""
    hits = 0
    for number in range(COUNT):
        if is_armed(s, number, kinds):
            first = address(s, number)
            if ult(at - first, reach(s, number)) or ult(first - at, size):
                hits |= shl(1, number)
    return hits


@compiled
def met_on_page(s, la, kinds):
    """The same for the whole page of `la`."""
    return met(s, la & -4096, 4096, kinds)


@compiled
def derive_breakpoints(s):
    """BREAK_CODE and BREAK_DATA from BREAK_CONTROL."""
    code, data = 0, 0
    for number in range(COUNT):
        if is_armed(s, number, EXECUTION):
            code = 1
        if is_armed(s, number, WRITES):
            data = 1
    store64(s + BREAK_CODE, code)
    store64(s + BREAK_DATA, data)
    return 0


@compiled
def note(s, hits):
    """Breakpoints are met by something that cannot be begun again."""
    if hits != 0:
        store64(s + BREAK_HITS, load64(s + BREAK_HITS) | hits)
        atomic_or(s + REQUEST, REQ_DEBUG)
    return 1


@compiled
def watch(s, la, size, access):
    """Data breakpoints for an access with the flags of mmu/layout.py: 1, or 0 to leave and execute it alone."""
    hits = met(s, la, size, WRITES if access & WRITE else READS)
    if hits == 0:
        return 1
    if access & IMPLICIT_SUPERVISOR:
        return note(s, hits)
    if load64(s + HFLAGS) & MODE_STEP == 0:
        store64(s + HFLAGS, load64(s + HFLAGS) | MODE_STEP)
        store64(s + LEAVE, LEAVE_RETRY)
        return 0
    store64(s + BREAK_HITS, load64(s + BREAK_HITS) | hits)
    return 1


@compiled
def watch_port(s, port, size):
    """DR6 bits of I/O breakpoints, which CR4.DE enables."""
    if load64(s + CR4) & CR4_DE == 0:
        return 0
    return met(s, port, size, PORTS)
