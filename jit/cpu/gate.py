"""Where gates lead: code segments, the stacks of inner levels, frames (SDM vol. 3, 5.8 and 6.12).

Call gates, interrupt gates and trap gates share this, and other far transfers some of it. NEW_CS, NEW_SS, NEW_RIP and
NEW_RSP hold the transfer in the making: until commit() nothing has happened. `ext` is the EXT bit of error codes.
"""

from .. import state as S
from ..build import compiled
from ..mmu.group import WRITE_SLOW
from ..mmu.walk import canonical
from ..raw import call4, load16, load32, load64, lshr, store64, ult, zext32
from .access import outside, set_rsp
from .descriptor import (
    attributes,
    copy_segment,
    data_descriptor,
    load_segment,
    nullify_stack,
    read_descriptor,
    selector_fault,
)
from .supervisor import IMPLICIT, derive_mode, raise_at, read_system


@compiled
def code_is_64(s):
    """Whether NEW_CS is a 64-bit code segment."""
    return 1 if load64(s + S.EFER) & S.EFER_LMA and load64(s + S.NEW_CS + S.ATTR) >> 13 & 1 else 0


@compiled
def leads_outside(s):
    """Whether NEW_RIP is beyond NEW_CS's limit, or not canonical."""
    rip = load64(s + S.NEW_RIP)
    if code_is_64(s):
        return 0 if canonical(s, rip) else 1
    return ult(load64(s + S.NEW_CS + S.LIMIT), rip)


@compiled
def gate_code(s, selector, ext):
    """NEW_CS <- the code segment that a gate names: 1, or 0 to leave."""
    if selector & 0xFFFC == 0:
        return raise_at(s, S.GP, ext, 1)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    attr = attributes(load64(s + S.T1))
    not_64 = load64(s + S.HFLAGS) & S.MODE_LONG and attr >> 13 & 3 != 1
    if found == 2 or attr & 0x18 != 0x18 or (attr >> 5 & 3) > load64(s + S.CPL) or not_64:
        return selector_fault(s, S.GP, selector, ext)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.NP, selector, ext)
    return load_segment(s, s + S.NEW_CS, selector, load64(s + S.T1))


@compiled
def level_of(s):
    """The privilege level that NEW_CS is run at by way of a gate."""
    attr = load64(s + S.NEW_CS + S.ATTR)
    return load64(s + S.CPL) if attr & 4 else attr >> 5 & 3


# Stacks


@compiled
def current_stack(s):
    copy_segment(s + S.NEW_SS, s + S.SS)
    store64(s + S.NEW_RSP, load64(s + S.RSP))
    return 1


@compiled
def read_tss(s, at, size, ext):
    """T3 <- a part of the TSS: 1, or 0 to leave."""
    if at + size - 1 > load64(s + S.TR + S.LIMIT):
        return selector_fault(s, S.TS, load64(s + S.TR + S.SEL), ext)
    return read_system(s, load64(s + S.TR + S.BASE) + at, size, s + S.T3)


@compiled
def ist_stack(s, number, ext):
    """NEW_RSP <- an entry of the interrupt stack table."""
    if read_tss(s, 28 + 8 * number, 8, ext) == 0:
        return 0
    store64(s + S.NEW_RSP, load64(s + S.T3))
    return 1


@compiled
def inner_stack(s, level, ext):
    """NEW_SS:NEW_RSP <- the stack that the TSS has for a level: 1, or 0 to leave."""
    if load64(s + S.HFLAGS) & S.MODE_LONG:
        nullify_stack(s, s + S.NEW_SS, level, level)
        if read_tss(s, 4 + 8 * level, 8, ext) == 0:
            return 0
        store64(s + S.NEW_RSP, load64(s + S.T3))
        return 1
    if load64(s + S.TR + S.ATTR) & 8:
        if read_tss(s, 4 + 8 * level, 6, ext) == 0:
            return 0
        stack, selector = load32(s + S.T3), load16(s + S.T3 + 4)
    else:
        if read_tss(s, 2 + 4 * level, 4, ext) == 0:
            return 0
        stack, selector = load16(s + S.T3), load16(s + S.T3 + 2)
    store64(s + S.NEW_RSP, stack)
    if selector & 0xFFFC == 0:
        return raise_at(s, S.TS, ext, 1)
    if data_descriptor(s, selector, level, 1, S.TS, ext) == 0:
        return 0
    return load_segment(s, s + S.NEW_SS, selector, load64(s + S.T1))


# Frames


@compiled
def put(at, size, value):
    """Append an element to a frame that is made from its lowest address up; where the next one goes."""
    store64(at, value)
    return at + size


@compiled
def push_frame(s, end, size, level, error):
    """Push FRAME up to `end`, elements of `size` bytes, on NEW_SS:NEW_RSP for code at `level`: 1, or 0 to leave.

    Each element has its place checked, so that a stack may wrap in between. #SS(error) if one has none.
    """
    write, rights = load64(load64(s + S.FUNCTIONS) + 8 * WRITE_SLOW), 0 if level == 3 else IMPLICIT
    top, seg = load64(s + S.NEW_RSP), s + S.NEW_SS
    if load64(s + S.HFLAGS) & S.MODE_LONG:
        top -= end - (s + S.FRAME)
        store64(s + S.NEW_RSP, top)
        return call4(write, s, top, (end - (s + S.FRAME)) | rights, s + S.FRAME)
    attr, limit, at = load64(seg + S.ATTR), load64(seg + S.LIMIT), end
    mask = 0xFFFFFFFF if attr >> 14 & 1 else 0xFFFF
    while at != s + S.FRAME:
        at -= size
        top = (top - size) & mask
        if outside(attr, limit, top, size):
            return raise_at(s, S.SS_FAULT, error, 1)
        if call4(write, s, zext32(load64(seg + S.BASE) + top), size | rights, at) == 0:
            return 0
    store64(s + S.NEW_RSP, top)
    return 1


@compiled
def commit(s, level):
    """Go where NEW_CS:NEW_RIP and NEW_SS:NEW_RSP say."""
    selector = load64(s + S.NEW_CS + S.SEL)
    copy_segment(s + S.CS, s + S.NEW_CS)
    store64(s + S.CS + S.SEL, selector & 0xFFFC | level)
    copy_segment(s + S.SS, s + S.NEW_SS)
    store64(s + S.RIP, load64(s + S.NEW_RIP))
    derive_mode(s)
    set_rsp(s, load64(s + S.NEW_RSP))
    return 1


@compiled
def gate_offset(low, high, size):
    """Where a gate of 16, 32 or 64 bits leads: `size` 2, 4 or 8; `high`: its upper 8 bytes."""
    if size == 2:
        return low & 0xFFFF
    offset = low & 0xFFFF | lshr(low, 32) & 0xFFFF0000
    return offset | high << 32 if size == 8 else offset
