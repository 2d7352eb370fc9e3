"""Segment registers: loads and stores of them, LDTR and TR, and the instructions that look at descriptors."""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load64, store16, store64, zext32
from .access import effective, pop_value, push_value, read_mem, read_pointer, set_rsp, write_mem
from .canonical import keepable
from .descriptor import (
    attributes,
    data_descriptor,
    load_hidden,
    load_real,
    load_segment,
    nullify,
    nullify_stack,
    read_descriptor,
    selector_fault,
    table,
)
from .flags import set_zf
from .operand import PUT, done, dst, fault, leave_next, rip_here, src
from .record import AUX, OSIZE
from .supervisor import derive_mode, write_system

group = Group("segment", __name__)

NAMES = ("es", "cs", "ss", "ds", "fs", "gs")


@compiled
def take_segment(s, r, seg, selector):
    """A data segment register's new selector (SDM vol. 2, MOV): 1, or 0 with a fault raised."""
    store64(s + S.RIP, rip_here(s, r))
    if load64(s + S.HFLAGS) & S.MODE_PROTECTED == 0:
        return load_real(s, seg, selector)
    stack, level = 1 if seg == s + S.SS else 0, load64(s + S.CPL)
    if selector & 0xFFFC == 0:
        if stack == 0:
            nullify(s, seg, selector)
            return 1
        if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0 or level == 3 or selector & 3 != level:
            return fault(s, r, S.GP, 0, 1)
        nullify_stack(s, seg, selector, level)
        return 1
    if data_descriptor(s, selector, level, stack, S.GP, 0) == 0:
        return 0
    return load_segment(s, seg, selector, load64(s + S.T1))


@compiled
def shadow(s, seg):
    """MOV and POP to SS hold interrupts off until the next instruction has set the stack pointer."""
    if seg == s + S.SS:
        store64(s + S.INTR_SHADOW, 2)
        store64(s + S.SHADOW_SET, 1)


@group.add
def mov_to_seg(s, r):
    """MOV Sreg, r/m16; AUX is the register's number."""
    number, selector = load8(r + AUX), load64(src(r)) & 0xFFFF
    if number == 1 or number > 5:
        return fault(s, r, S.UD, 0, 0)
    seg = s + S.SEGMENTS + S.SEGMENT_SIZE * number
    if take_segment(s, r, seg, selector) == 0:
        return 0
    shadow(s, seg)
    derive_mode(s)
    return leave_next(s, r)


def _push(seg):
    """A 32-bit push writes 16 bits alone, as processors since the Pentium 4 do (SDM vol. 2, PUSH)."""

    def handler(s, r):
        size, selector, old = load8(r + OSIZE), load64(s + seg + S.SEL), load64(s + S.RSP)
        if size != 4:
            return leave_next(s, r) if push_value(s, r, selector, size) else 0
        set_rsp(s, old - 2)
        if push_value(s, r, selector, 2) == 0:
            store64(s + S.RSP, old)
            return 0
        return leave_next(s, r)

    return handler


def _pop(seg):
    def handler(s, r):
        old = load64(s + S.RSP)
        if pop_value(s, r, load8(r + OSIZE)) == 0:
            return 0
        if take_segment(s, r, s + seg, load64(s + S.T3) & 0xFFFF) == 0:
            store64(s + S.RSP, old)
            return 0
        shadow(s, s + seg)
        derive_mode(s)
        return leave_next(s, r)

    return handler


def _load_pointer(seg):
    """LDS and company: the offset is at the operand, the selector behind it."""

    def handler(s, r):
        size = load8(r + OSIZE)
        if read_pointer(s, r, size, s + S.T0, s + S.T2) == 0:
            return 0
        if take_segment(s, r, s + seg, load64(s + S.T2) & 0xFFFF) == 0:
            return 0
        if size == 2:
            store16(dst(r), load64(s + S.T0))
        else:
            store64(dst(r), load64(s + S.T0))
        derive_mode(s)
        return leave_next(s, r)

    return handler


for _number, _name in enumerate(NAMES):
    _seg = S.SEGMENTS + S.SEGMENT_SIZE * _number
    group.add(_push(_seg), f"push_{_name}")
    if _name != "cs":
        group.add(_pop(_seg), f"pop_{_name}")
        group.add(_load_pointer(_seg), f"l{_name}")


@group.add
def mov_from_seg(s, r):
    """MOV r/m, Sreg: a register is written zero-extended to the operand size."""
    number = load8(r + AUX)
    if number > 5:
        return fault(s, r, S.UD, 0, 0)
    return put_selector(s, r, load64(s + S.SEGMENTS + S.SEGMENT_SIZE * number + S.SEL))


@compiled
def put_selector(s, r, value):
    """Write a 16-bit value to a register at the operand size, or to the scratch slot of a 16-bit store."""
    if load8(r + OSIZE) == 2:
        store16(dst(r), value)
    else:
        store64(dst(r), value)
    return r + 64


@group.add
def sldt(s, r):
    if umip_forbids(s):
        return fault(s, r, S.GP, 0, 1)
    return put_selector(s, r, load64(s + S.LDTR + S.SEL))


@group.add
def str_(s, r):
    if umip_forbids(s):
        return fault(s, r, S.GP, 0, 1)
    return put_selector(s, r, load64(s + S.TR + S.SEL))


@compiled
def umip_forbids(s):
    """CR4.UMIP keeps SGDT SIDT SLDT STR SMSW from user mode."""
    return 1 if load64(s + S.CPL) != 0 and load64(s + S.CR4) & S.CR4_UMIP else 0


LDT, TSS16, TSS32 = 2, 1, 9  # descriptor types


def _load_system(target, available):
    """LLDT, LTR: a system descriptor, of 16 bytes in long mode."""

    def handler(s, r):
        store64(s + S.RIP, rip_here(s, r))
        selector, seg = load64(src(r)) & 0xFFFF, s + target
        if selector & 0xFFFC == 0:
            if available != LDT:
                return fault(s, r, S.GP, 0, 1)
            nullify(s, seg, selector)
            return leave_next(s, r)
        if selector & 4:
            return selector_fault(s, S.GP, selector, 0)
        found = read_descriptor(s, selector, s + S.T1)
        if found == 0:
            return 0
        low = load64(s + S.T1)
        attr, long = attributes(low), load64(s + S.HFLAGS) & S.MODE_LONG
        good = attr & 0x1F == available or (attr & 0x1F == TSS16 and available == TSS32 and long == 0)
        if found == 2 or not good:
            return selector_fault(s, S.GP, selector, 0)
        if attr >> 7 & 1 == 0:
            return selector_fault(s, S.NP, selector, 0)
        high = 0
        if long:
            found = read_descriptor(s, selector + 8, s + S.T2)
            if found == 0:
                return 0
            high = load64(s + S.T2)
            if found == 2 or attributes(high) & 0x1F or keepable(high << 32) == 0:
                return selector_fault(s, S.GP, selector, 0)
        if available != LDT:  # LTR marks the TSS busy
            low |= 1 << 41
            store64(s + S.T3, attributes(low))
            if write_system(s, table(s, selector) + (selector & 0xFFF8) + 5, 1, s + S.T3) == 0:
                return 0
        load_hidden(s, seg, selector, low)
        store64(seg + S.BASE, load64(seg + S.BASE) | zext32(high) << 32)
        return leave_next(s, r)

    return handler


group.add(_load_system(S.LDTR, LDT), "lldt")
group.add(_load_system(S.TR, TSS32), "ltr")


# Looking at descriptors: ZF says whether it may be used; nothing faults but the access to the table.

LAR_TYPES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12
LAR_TYPES_LONG = 1 << 2 | 1 << 9 | 1 << 11 | 1 << 12
LSL_TYPES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 9 | 1 << 11
LSL_TYPES_LONG = 1 << 2 | 1 << 9 | 1 << 11


@compiled
def visible(s, selector):
    """T1 <- a descriptor that CPL and RPL may see: 1; 0 with LEAVE set; 2 when they may not, or there is none."""
    if selector & 0xFFFC == 0:
        return 2
    found = read_descriptor(s, selector, s + S.T1)
    if found != 1:
        return found
    attr = attributes(load64(s + S.T1))
    dpl = attr >> 5 & 3
    conforming = attr & 0x1C == 0x1C
    return 1 if conforming or (dpl >= load64(s + S.CPL) and dpl >= selector & 3) else 2


def _verify(write):
    """VERR, VERW."""

    def handler(s, r):
        store64(s + S.RIP, rip_here(s, r))
        found = visible(s, load64(dst(r)) & 0xFFFF)
        if found == 0:
            return 0
        kind = attributes(load64(s + S.T1)) & 0x1F
        fits = kind & 0x1A == 0x12 if write else kind & 0x10 != 0 and kind & 0xA != 8
        set_zf(s, 1 if found == 1 and fits else 0)
        return done(r)

    return handler


def _describe(width, types, types_long, of_limit):
    """LAR, LSL: the destination is written only when ZF is set."""
    put = PUT[width]

    def handler(s, r):
        store64(s + S.RIP, rip_here(s, r))
        found = visible(s, load64(src(r)) & 0xFFFF)
        if found == 0:
            return 0
        low = load64(s + S.T1)
        kind = attributes(low) & 0x1F
        known = (types_long if load64(s + S.EFER) & S.EFER_LMA else types) >> kind | kind >> 4
        if found == 2 or known & 1 == 0:
            set_zf(s, 0)
            return done(r)
        if of_limit:
            load_hidden(s, s + S.NEW_SS, 0, low)
            put(dst(r), load64(s + S.NEW_SS + S.LIMIT))
        else:
            put(dst(r), low >> 32 & 0xFFFF00)  # with bits 19 to 16 of the limit, as on AMD's processors
        set_zf(s, 1)
        return done(r)

    return handler


group.add(_verify(False), "verr")
group.add(_verify(True), "verw")
for _width in (16, 32, 64):
    group.add(_describe(_width, LAR_TYPES, LAR_TYPES_LONG, False), f"lar{_width}")
    group.add(_describe(_width, LSL_TYPES, LSL_TYPES_LONG, True), f"lsl{_width}")


@compiled
def adjusted(selector, wanted):
    """A selector with its RPL raised to that of another, or -1 if it is as high already."""
    rpl = wanted & 3
    return selector & 0xFFFC | rpl if selector & 3 < rpl else -1


@group.add
def arpl(s, r):
    selector = adjusted(load64(dst(r)) & 0xFFFF, load64(src(r)))
    if selector >= 0:
        store16(dst(r), selector)
    set_zf(s, 1 if selector >= 0 else 0)
    return done(r)


@group.add
def arpl_mem(s, r):
    """The operand is read, and only if the RPL changes has it to be one that can be written, as on AMD's processors."""
    la = effective(s, r, 2, 0)
    store64(s + S.T0, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 2, s + S.T0) == 0:
        return 0
    selector = adjusted(load64(s + S.T0), load64(src(r)))
    if selector >= 0:
        store64(s + S.T0, selector)
        la = effective(s, r, 2, 1)
        if load64(s + S.LEAVE) != 0 or write_mem(s, r, la, 2, s + S.T0) == 0:
            return 0
    set_zf(s, 1 if selector >= 0 else 0)
    return leave_next(s, r)
