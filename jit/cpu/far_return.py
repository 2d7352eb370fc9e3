"""Going back by far RET and IRET (SDM vol. 2): in real and virtual-8086 mode, to the same or an outer level, into
virtual-8086 mode.
"""

from .. import state as S
from ..build import compiled
from ..raw import load64, store64, zext32
from .access import peek_value, set_rsp
from .descriptor import (
    UNUSABLE,
    code_descriptor,
    copy_segment,
    data_descriptor,
    load_real,
    load_segment,
    nullify_stack,
    selector_fault,
)
from .flags import set_arithmetic
from .gate import commit, current_stack, leads_outside
from .operand import fault, leave_to, rip_here
from .supervisor import derive_mode

# What IRET and POPF may change besides the arithmetic flags; VM is for IRET alone, and of its own
CHANGEABLE = S.TF | S.IF | S.DF | S.NT | S.RF | S.AC | S.ID | S.VIF | S.VIP | S.IOPL


@compiled
def pop_frame(s, r, size, with_flags):
    """NEW_RIP, NEW_CS's selector, and for IRET the flags in T0, from the stack, RSP unchanged: 1, or 0 to leave.

    The last is read first, as AMD's processors do: its fault is the one that is raised.
    """
    store64(s + S.RIP, rip_here(s, r))
    if with_flags:
        if peek_value(s, r, 2 * size, size) == 0:
            return 0
        store64(s + S.T0, load64(s + S.T3))
    if peek_value(s, r, size, size) == 0:
        return 0
    store64(s + S.NEW_CS + S.SEL, load64(s + S.T3) & 0xFFFF)
    if peek_value(s, r, 0, size) == 0:
        return 0
    store64(s + S.NEW_RIP, load64(s + S.T3))
    return 1


@compiled
def set_flags(s, value, allowed, size):
    """The arithmetic flags and those in `allowed`, the upper half only from more than 16 bits."""
    if size == 2:
        allowed &= 0xFFFF
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~allowed | value & allowed)
    set_arithmetic(s, value)


@compiled
def return_real(s, r, size, depth):
    """RET and IRET of real and virtual-8086 mode, CS:IP popped already: 1, or 0 to leave."""
    selector = load64(s + S.NEW_CS + S.SEL)
    copy_segment(s + S.NEW_CS, s + S.CS)
    load_real(s, s + S.NEW_CS, selector)
    if leads_outside(s):
        return fault(s, r, S.GP, 0, 1)
    copy_segment(s + S.CS, s + S.NEW_CS)
    set_rsp(s, load64(s + S.RSP) + depth)
    leave_to(s, load64(s + S.NEW_RIP))
    return 1


@compiled
def outer_stack(s, r, size, depth, level):
    """NEW_SS:NEW_RSP <- the stack to go back to: 1, or 0 to leave. NEW_CS is there already."""
    if peek_value(s, r, depth, size) == 0:
        return 0
    stack = load64(s + S.T3)
    if peek_value(s, r, depth + size, size) == 0:
        return 0
    selector = load64(s + S.T3) & 0xFFFF
    store64(s + S.NEW_RSP, stack)
    if selector & 0xFFFC == 0:
        to64 = load64(s + S.HFLAGS) & S.MODE_LONG and load64(s + S.NEW_CS + S.ATTR) >> 13 & 1
        if to64 == 0 or level == 3 or selector & 3 != level:
            return fault(s, r, S.GP, 0, 1)
        nullify_stack(s, s + S.NEW_SS, selector, level)
        return 1
    if data_descriptor(s, selector, level, 1, S.GP, 0) == 0:
        return 0
    return load_segment(s, s + S.NEW_SS, selector, load64(s + S.T1))


@compiled
def hide_inner_data(s, level):
    """Data segments that an outer level may not use become null (SDM vol. 2, RET); a base in FS or GS stays."""
    for number in (0, 3, 4, 5):
        seg = s + S.SEGMENTS + S.SEGMENT_SIZE * number
        attr = load64(seg + S.ATTR)
        if attr & UNUSABLE == 0 and (attr >> 5 & 3) < level and attr & 0xC != 0xC:
            store64(seg + S.SEL, 0)
            store64(seg + S.LIMIT, 0)
            store64(seg + S.ATTR, UNUSABLE)


@compiled
def far_return(s, r, size, release, with_flags):
    """RETF and IRET in protected mode, CS:RIP popped already; RSP and SS too in 64-bit IRET or to an outer level."""
    cpl, selector, flags = load64(s + S.CPL), load64(s + S.NEW_CS + S.SEL), load64(s + S.T0)
    level, depth = selector & 3, (3 if with_flags else 2) * size + release
    if selector & 0xFFFC != 0 and level < cpl:
        return selector_fault(s, S.GP, selector, 0)
    if code_descriptor(s, selector, S.GP, 0) == 0:
        return 0
    if load_segment(s, s + S.NEW_CS, selector, load64(s + S.T1)) == 0:
        return 0
    pops_stack = level != cpl or (with_flags and load64(s + S.HFLAGS) & S.MODE_CODE64)
    if pops_stack:
        if outer_stack(s, r, size, depth, level) == 0:
            return 0
        if with_flags == 0:
            store64(s + S.NEW_RSP, load64(s + S.NEW_RSP) + release)
    else:
        current_stack(s)
        store64(s + S.NEW_RSP, load64(s + S.RSP) + depth)
    if leads_outside(s):
        return fault(s, r, S.GP, 0, 1)
    if with_flags:
        allowed = CHANGEABLE & ~(S.VIF | S.VIP | S.IOPL | S.IF)
        if cpl == 0:
            allowed |= S.VIF | S.VIP | S.IOPL
        if cpl <= (load64(s + S.RFLAGS) >> 12 & 3):
            allowed |= S.IF
        set_flags(s, flags, allowed, size)
        store64(s + S.NMI_MASKED, 0)
    if level > cpl:
        hide_inner_data(s, level)
    commit(s, level)
    return 0


@compiled
def return_to_v86(s, r):
    """IRET at CPL 0 with VM set in the flags that it pops: then follow ESP, SS, ES, DS, FS, GS."""
    target = zext32(load64(s + S.NEW_RIP))
    for number in range(6):
        if peek_value(s, r, 12 + 4 * number, 4) == 0:
            return 0
        store64(s + S.FRAME + 8 * number, load64(s + S.T3))
    if target > 0xFFFF:
        return fault(s, r, S.GP, 0, 1)
    set_flags(s, load64(s + S.T0), CHANGEABLE | S.VM86, 4)
    load_real(s, s + S.CS, load64(s + S.NEW_CS + S.SEL))
    load_real(s, s + S.SS, load64(s + S.FRAME + 8) & 0xFFFF)
    load_real(s, s + S.ES, load64(s + S.FRAME + 16) & 0xFFFF)
    load_real(s, s + S.DS, load64(s + S.FRAME + 24) & 0xFFFF)
    load_real(s, s + S.FS, load64(s + S.FRAME + 32) & 0xFFFF)
    load_real(s, s + S.GS, load64(s + S.FRAME + 40) & 0xFFFF)
    store64(s + S.RSP, load64(s + S.FRAME))
    store64(s + S.NMI_MASKED, 0)
    derive_mode(s)
    return leave_to(s, target)


@compiled
def restricted_v86(s):
    """Virtual-8086 mode with an IOPL below 3: IF is not the program's; with VME it has VIF in its place."""
    return 1 if load64(s + S.HFLAGS) & S.MODE_V86 and load64(s + S.RFLAGS) & S.IOPL != S.IOPL else 0


@compiled
def refused_in_v86(s, size):
    """Whether PUSHF, POPF or IRET is #GP there: but for VME's 16-bit forms (SDM vol. 3, 21.2.7)."""
    return 1 if restricted_v86(s) and (load64(s + S.CR4) & S.CR4_VME == 0 or size != 2) else 0


@compiled
def refuses_flags(s, flags):
    """Whether VME cannot take popped flags: TF, and IF while an interrupt waits for it."""
    return 1 if flags & S.TF or (flags & S.IF and load64(s + S.RFLAGS) & S.VIP) else 0


@compiled
def set_virtual_if(s, flags):
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.VIF | (S.VIF if flags & S.IF else 0))


@compiled
def iret_real(s, r, size):
    """IRET of real and virtual-8086 mode; in the latter IOPL is out of reach."""
    flags, allowed, virtual = load64(s + S.T0), CHANGEABLE & ~(S.VIF | S.VIP), restricted_v86(s)
    if virtual and refuses_flags(s, flags):
        return fault(s, r, S.GP, 0, 1)
    if load64(s + S.HFLAGS) & S.MODE_V86:
        allowed &= ~S.IOPL
    if return_real(s, r, size, 3 * size) == 0:
        return 0
    if virtual:
        allowed &= ~S.IF
        set_virtual_if(s, flags)
    set_flags(s, flags, allowed, size)
    store64(s + S.NMI_MASKED, 0)
    derive_mode(s)
    return 0
