"""Segment descriptors: where they lie, what they say, and the checks before a segment register takes one.

The rules are those of SDM vol. 2, MOV, RET and vol. 3, 5.5 to 5.8 and 8.3. A selector's fault has the selector as its
error code, without its RPL and with the EXT bit `ext`; `vector` is #GP, or #TS when a task switch loads the register.
"""

from .. import state as S
from ..build import compiled
from ..raw import load64, lshr, store64
from .supervisor import raise_at, read_system, write_system

UNUSABLE = 1 << 16
REAL_DATA, V86_DATA = 0x93, 0xF3  # attributes of a segment as real mode begins with it, and of all in virtual-8086 mode


@compiled
def selector_fault(s, vector, selector, ext):
    return raise_at(s, vector, selector & 0xFFFC | ext, 1)


@compiled
def read_descriptor(s, selector, pointer):
    """The 8 bytes of a GDT or LDT descriptor to `pointer`: 1; 0 with LEAVE set; 2 when it lies beyond the limit."""
    local = selector & 4
    if local and load64(s + S.LDTR + S.ATTR) & UNUSABLE:
        return 2
    limit = load64(s + S.LDTR + S.LIMIT) if local else load64(s + S.GDTR_LIMIT)
    if (selector & 0xFFF8) + 7 > limit:
        return 2
    return read_system(s, table(s, selector) + (selector & 0xFFF8), 8, pointer)


@compiled
def table(s, selector):
    """Linear address of the descriptor table that the selector means."""
    return load64(s + S.LDTR + S.BASE) if selector & 4 else load64(s + S.GDTR_BASE)


@compiled
def attributes(low):
    """A descriptor's attributes as a segment record has them; bits 8 to 11 are a part of the limit, and ignored."""
    return lshr(low, 40)


@compiled
def load_hidden(s, seg, selector, low):
    """Fill a segment record from a descriptor's low 8 bytes."""
    base = lshr(low, 16) & 0xFFFFFF | (lshr(low, 56) & 0xFF) << 24
    limit = low & 0xFFFF | (lshr(low, 48) & 0xF) << 16
    attr = lshr(low, 40) & 0xF0FF
    if attr >> 15 & 1:
        limit = limit << 12 | 0xFFF
    store64(seg + S.SEL, selector)
    store64(seg + S.BASE, base)
    store64(seg + S.LIMIT, limit)
    store64(seg + S.ATTR, attr)
    return 0


@compiled
def load_segment(s, seg, selector, low):
    """The same for a code or data segment, whose accessed bit is set in memory: 1, or 0 to leave."""
    if lshr(low, 40) & 1 == 0:
        low |= 1 << 40
        store64(s + S.T3, lshr(low, 40))
        if write_system(s, table(s, selector) + (selector & 0xFFF8) + 5, 1, s + S.T3) == 0:
            return 0
    load_hidden(s, seg, selector, low)
    return 1


@compiled
def copy_segment(to, from_):
    for word in range(0, S.SEGMENT_SIZE, 8):
        store64(to + word, load64(from_ + word))


@compiled
def load_real(s, seg, selector):
    """Real mode changes base and selector alone, so that limits set in protected mode stay; virtual-8086 mode all."""
    attr = load64(seg + S.ATTR) & ~UNUSABLE | 0x90
    if load64(s + S.RFLAGS) & S.VM86:
        store64(seg + S.LIMIT, 0xFFFF)
        attr = V86_DATA
    store64(seg + S.SEL, selector)
    store64(seg + S.BASE, selector << 4)
    store64(seg + S.ATTR, attr)
    return 1


@compiled
def nullify(s, seg, selector):
    """A null selector: the segment is unusable."""
    store64(seg + S.SEL, selector)
    store64(seg + S.BASE, 0)
    store64(seg + S.LIMIT, 0)
    store64(seg + S.ATTR, UNUSABLE)
    return 0


@compiled
def nullify_stack(s, seg, selector, level):
    """A null stack segment of 64-bit mode: its DPL is still CPL."""
    nullify(s, seg, selector)
    store64(seg + S.ATTR, UNUSABLE | level << 5)
    return 0


@compiled
def data_descriptor(s, selector, level, stack, vector, ext):
    """T1 <- the descriptor that a data segment register (SS: `stack`) may take at CPL `level`: 1, or 0 to leave.

    The selector is not null.
    """
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    attr = attributes(load64(s + S.T1))
    kind, dpl, rpl = attr & 0x1F, attr >> 5 & 3, selector & 3
    bad = found == 2 or kind & 0x10 == 0
    if stack:
        bad = bad or rpl != level or kind & 0xA != 2 or dpl != level
    else:
        conforming, unreadable = kind & 0xC == 0xC, kind & 0xA == 8
        bad = bad or unreadable or (not conforming and (rpl > dpl or level > dpl))
    if bad:
        return selector_fault(s, vector, selector, ext)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.SS_FAULT if stack else S.NP, selector, ext)
    return 1


@compiled
def code_descriptor(s, selector, vector, ext):
    """T1 <- the descriptor of a code segment to be run at the selector's RPL (returns, tasks): 1, or 0 to leave."""
    if selector & 0xFFFC == 0:
        return selector_fault(s, vector, 0, ext)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    attr = attributes(load64(s + S.T1))
    dpl, rpl = attr >> 5 & 3, selector & 3
    denied = dpl > rpl if attr & 4 else dpl != rpl
    if found == 2 or attr & 0x18 != 0x18 or denied or mixed(s, attr):
        return selector_fault(s, vector, selector, ext)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.NP, selector, ext)
    return 1


@compiled
def mixed(s, attr):
    """Long mode has no code segment that is of 64 and of 32 bits."""
    return 1 if load64(s + S.EFER) & S.EFER_LMA and attr >> 13 & 3 == 3 else 0
