"""Segment registers and far control transfers. 64-bit mode; what needs another mode is reported unimplemented."""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load64, lshr, memset, store16, store64, zext32
from .access import effective, noncanonical, peek_value, read_mem, set_rsp
from .flags import rflags, set_arithmetic
from .operand import dst, fault, leave_next, leave_to, rip_here, src
from .record import AUX, IMM, OSIZE
from .supervisor import derive_mode, load_hidden, nullify, read_descriptor, write_system

group = Group("segment", __name__)

CHANGEABLE = S.TF | S.IF | S.DF | S.NT | S.RF | S.AC | S.ID | S.VIF | S.VIP | S.IOPL


@compiled
def not_here(s, r):
    """A form of the instruction that this CPU does not implement."""
    memset(s + S.INSN_BYTES, 0, 16)
    store64(s + S.INSN_LENGTH, 0)
    store64(s + S.RIP, rip_here(s, r))
    store64(s + S.EXIT, S.EXIT_UNIMPLEMENTED)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@compiled
def set_accessed(s, selector, low):
    """Set the accessed bit of a code or data descriptor in memory: 1, or 0 to leave."""
    if lshr(low, 40) & 1:
        return 1
    table = load64(s + S.LDTR + S.BASE) if selector & 4 else load64(s + S.GDTR_BASE)
    store64(s + S.T3, lshr(low, 40) & 0xFF | 1)
    return write_system(s, table + (selector & 0xFFF8) + 5, 1, s + S.T3)


@compiled
def load_data_segment(s, r, seg, selector):
    """MOV/POP to ES DS FS GS SS in protected mode (SDM vol. 2, MOV): 1, or 0 with a fault raised."""
    store64(s + S.RIP, rip_here(s, r))
    is_ss, cpl, rpl = seg == s + S.SS, load64(s + S.CPL), selector & 3
    if selector & 0xFFFC == 0:
        if is_ss and (load64(s + S.HFLAGS) & S.MODE_CODE64 == 0 or cpl == 3 or rpl != cpl):
            return fault(s, r, S.GP, 0, 1)
        nullify(s, seg, selector)
        if is_ss:
            store64(seg + S.ATTR, 1 << 16 | cpl << 5)
        return 1
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    low = load64(s + S.T1)
    attr = lshr(low, 40)
    kind, dpl = attr & 0x1F, attr >> 5 & 3
    if found == 2 or kind & 0x10 == 0:
        return fault(s, r, S.GP, selector & 0xFFFC, 1)
    if is_ss:
        if rpl != cpl or kind & 0xA != 2 or dpl != cpl:
            return fault(s, r, S.GP, selector & 0xFFFC, 1)
        if attr >> 7 & 1 == 0:
            return fault(s, r, S.SS_FAULT, selector & 0xFFFC, 1)
    else:
        conforming, code = kind & 0xC == 0xC, kind & 8
        if (code and kind & 2 == 0) or (not conforming and (rpl > dpl or cpl > dpl)):
            return fault(s, r, S.GP, selector & 0xFFFC, 1)
        if attr >> 7 & 1 == 0:
            return fault(s, r, S.NP, selector & 0xFFFC, 1)
    if set_accessed(s, selector, low) == 0:
        return 0
    load_hidden(s, seg, selector, low | 1 << 40)
    return 1


@group.add
def mov_to_seg(s, r):
    """MOV Sreg, r/m16; AUX is the register's number."""
    number, selector = load8(r + AUX), load64(src(r)) & 0xFFFF
    if number == 1 or number > 5:
        return fault(s, r, S.UD, 0, 0)
    seg = s + S.SEGMENTS + S.SEGMENT_SIZE * number
    if load64(s + S.HFLAGS) & S.MODE_PROTECTED == 0:
        return not_here(s, r)
    if load_data_segment(s, r, seg, selector) == 0:
        return 0
    if seg == s + S.SS:
        store64(s + S.INTR_SHADOW, 2)
        store64(s + S.SHADOW_SET, 1)
    derive_mode(s)
    return leave_next(s, r)


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


def _load_system(target, available):
    """LLDT, LTR: a system descriptor of 16 bytes in long mode."""

    def handler(s, r):
        store64(s + S.RIP, rip_here(s, r))
        selector = load64(src(r)) & 0xFFFF
        seg = s + target
        if selector & 0xFFFC == 0:
            if available != 2:
                return fault(s, r, S.GP, 0, 1)
            nullify(s, seg, selector)
            return leave_next(s, r)
        if selector & 4:
            return fault(s, r, S.GP, selector & 0xFFFC, 1)
        found = read_descriptor(s, selector, s + S.T1)
        if found == 0:
            return 0
        low = load64(s + S.T1)
        attr = lshr(low, 40)
        if found == 2 or attr & 0x1F != available:
            return fault(s, r, S.GP, selector & 0xFFFC, 1)
        if attr >> 7 & 1 == 0:
            return fault(s, r, S.NP, selector & 0xFFFC, 1)
        high = 0
        if load64(s + S.HFLAGS) & S.MODE_LONG:
            found = read_descriptor(s, selector + 8, s + S.T2)
            if found == 0:
                return 0
            high = load64(s + S.T2)
            if found == 2 or lshr(high, 40) & 0x1F:
                return fault(s, r, S.GP, selector & 0xFFFC, 1)
        if available == 9:  # LTR marks the TSS busy
            low |= 1 << 41
            store64(s + S.T3, lshr(low, 40) & 0xFF)
            if write_system(s, load64(s + S.GDTR_BASE) + (selector & 0xFFF8) + 5, 1, s + S.T3) == 0:
                return 0
        load_hidden(s, seg, selector, low)
        store64(seg + S.BASE, load64(seg + S.BASE) | zext32(high) << 32)
        return leave_next(s, r)

    return handler


group.add(_load_system(S.LDTR, 2), "lldt")
group.add(_load_system(S.TR, 9), "ltr")


@compiled
def load_code(s, r, selector, target):
    """CS for a far return or jump within the privilege level given by the selector's RPL: 1, or 0 with a fault."""
    if selector & 0xFFFC == 0:
        return fault(s, r, S.GP, 0, 1)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    attr = lshr(load64(s + S.T1), 40)
    rpl, dpl = selector & 3, attr >> 5 & 3
    conforming = attr & 4
    if found == 2 or attr & 0x18 != 0x18 or (conforming and dpl > rpl) or (not conforming and dpl != rpl):
        return fault(s, r, S.GP, selector & 0xFFFC, 1)
    if attr >> 13 & 1 and attr >> 14 & 1:
        return fault(s, r, S.GP, selector & 0xFFFC, 1)
    if attr >> 7 & 1 == 0:
        return fault(s, r, S.NP, selector & 0xFFFC, 1)
    return 1


@compiled
def far_return(s, r, size, release, with_flags):
    """RETF and IRET in long mode: pop RIP, CS (RFLAGS), and RSP, SS where IRET or a privilege change has them."""
    store64(s + S.RIP, rip_here(s, r))
    cpl = load64(s + S.CPL)
    if peek_value(s, r, 0, size) == 0:
        return 0
    target = load64(s + S.T3)
    if peek_value(s, r, size, size) == 0:
        return 0
    selector = load64(s + S.T3) & 0xFFFF
    flags = rflags(s)
    depth = 2 * size
    if with_flags:
        if peek_value(s, r, depth, size) == 0:
            return 0
        flags = load64(s + S.T3)
        depth += size
    depth += release
    rpl = selector & 3
    if rpl < cpl:
        return fault(s, r, S.GP, selector & 0xFFFC, 1)
    if load_code(s, r, selector, target) == 0:
        return 0
    code = load64(s + S.T1)
    to64 = lshr(code, 53) & 1
    outer = rpl != cpl or (with_flags and load64(s + S.HFLAGS) & S.MODE_CODE64)
    stack, stack_selector = load64(s + S.RSP) + depth, 0
    if outer:
        if peek_value(s, r, depth, size) == 0:
            return 0
        stack = load64(s + S.T3)
        if peek_value(s, r, depth + size, size) == 0:
            return 0
        stack_selector = load64(s + S.T3) & 0xFFFF
    if to64 and noncanonical(s, target, 1):
        return fault(s, r, S.GP, 0, 1)
    low = 0
    if outer:
        if stack_selector & 0xFFFC == 0:
            if to64 == 0 or rpl == 3 or stack_selector & 3 != rpl:
                return fault(s, r, S.GP, 0, 1)
        else:
            found = read_descriptor(s, stack_selector, s + S.T2)
            if found == 0:
                return 0
            low = load64(s + S.T2)
            attr = lshr(low, 40)
            if found == 2 or stack_selector & 3 != rpl or attr & 0x1A != 0x12 or (attr >> 5 & 3) != rpl:
                return fault(s, r, S.GP, stack_selector & 0xFFFC, 1)
            if attr >> 7 & 1 == 0:
                return fault(s, r, S.SS_FAULT, stack_selector & 0xFFFC, 1)
    load_hidden(s, s + S.CS, selector, code | 1 << 40)
    if outer:
        if stack_selector & 0xFFFC == 0:
            nullify(s, s + S.SS, stack_selector)
            store64(s + S.SS + S.ATTR, 1 << 16 | rpl << 5)
        else:
            load_hidden(s, s + S.SS, stack_selector, low | 1 << 40)
    if with_flags:
        allowed = CHANGEABLE & ~(S.VIF | S.VIP | S.IOPL | S.IF)
        if cpl == 0:
            allowed |= S.VIF | S.VIP | S.IOPL
        if cpl <= (load64(s + S.RFLAGS) >> 12 & 3):
            allowed |= S.IF
        if size == 2:
            allowed &= 0xFFFF
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~allowed | flags & allowed)
        set_arithmetic(s, flags)
        store64(s + S.NMI_MASKED, 0)
    if rpl > cpl:  # data segments that the outer level may not use become null (SDM vol. 2, RET)
        for number in (0, 3, 4, 5):
            seg = s + S.SEGMENTS + S.SEGMENT_SIZE * number
            attr = load64(seg + S.ATTR)
            if (attr >> 5 & 3) < rpl and attr & 0xC != 0xC:
                nullify(s, seg, 0)
    derive_mode(s)
    set_rsp(s, stack + (release if outer and not with_flags else 0))
    return leave_to(s, target if size == 8 else zext32(target))


@group.add
def iret(s, r):
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return not_here(s, r)
    if load64(s + S.RFLAGS) & S.NT:
        return fault(s, r, S.GP, 0, 1)
    return far_return(s, r, load8(r + OSIZE), 0, 1)


@group.add
def ret_far(s, r):
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return not_here(s, r)
    return far_return(s, r, load8(r + OSIZE), 0, 0)


@group.add
def ret_far_imm(s, r):
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return not_here(s, r)
    return far_return(s, r, load8(r + OSIZE), load64(r + IMM) & 0xFFFF, 0)


@group.add
def jmp_far_mem(s, r):
    """JMP m16:16/32/64 to a code segment of the same level."""
    size = load8(r + OSIZE)
    la = effective(s, r, size + 2, 0)
    if load64(s + S.LEAVE) != 0 or load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        return 0 if load64(s + S.LEAVE) != 0 else not_here(s, r)
    store64(s + S.T0, 0)
    if read_mem(s, r, la, size, s + S.T0) == 0 or read_mem(s, r, la + size, 2, s + S.T2) == 0:
        return 0
    target, selector, cpl = load64(s + S.T0), load64(s + S.T2) & 0xFFFF, load64(s + S.CPL)
    if selector & 0xFFFC == 0:
        return fault(s, r, S.GP, 0, 1)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    code = load64(s + S.T1)
    attr = lshr(code, 40)
    if found != 2 and attr & 0x10 == 0:
        return not_here(s, r)  # call gates, task gates
    dpl, conforming = attr >> 5 & 3, attr & 4
    denied = dpl > cpl if conforming else selector & 3 > cpl or dpl != cpl
    if found == 2 or attr & 8 == 0 or denied:
        return fault(s, r, S.GP, selector & 0xFFFC, 1)
    if attr >> 7 & 1 == 0:
        return fault(s, r, S.NP, selector & 0xFFFC, 1)
    if lshr(code, 53) & 1 and noncanonical(s, target, 1):
        return fault(s, r, S.GP, 0, 1)
    load_hidden(s, s + S.CS, selector & 0xFFFC | cpl, code | 1 << 40)
    derive_mode(s)
    return leave_to(s, target)
