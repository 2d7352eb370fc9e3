"""Instructions of the 8086 and 80186 that 64-bit mode has dropped, and XLAT, which it has kept.

What the SDM leaves undefined: OF is cleared by all BCD instructions, SF, ZF and PF follow AL; AAM and AAD clear CF and
AF as well.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load16, load64, sext8, sext16, sext32, store8, store16, store64
from .access import effective, peek_value, push_value, read_mem, set_rsp
from .flags import af, cf, set_result
from .io import string_linear
from .operand import done, dst, fault, leave_next
from .record import IMM, OSIZE, SEG_PTR

group = Group("legacy", __name__)


# Decimal arithmetic


@compiled
def decimal(s, al, carry, adjust):
    """AL and the flags after a BCD instruction."""
    store8(s + S.RAX, al)
    set_result(s, sext8(al), carry, 0, adjust)


def _unpacked(step):
    """AAA, AAS."""

    def handler(s, r):
        ax = load16(s + S.RAX)
        adjust = 1 if ax & 15 > 9 or af(s) else 0
        ax += step * adjust
        store16(s + S.RAX, ax)
        decimal(s, ax & 15, adjust, adjust)
        return done(r)

    return handler


group.add(_unpacked(0x106), "aaa")
group.add(_unpacked(-0x106), "aas")


def _packed(sign):
    """DAA, DAS: six for a low digit that is too great or carried, sixty for the high one."""

    def handler(s, r):
        al, carry = load8(s + S.RAX), cf(s)
        adjust = 1 if al & 15 > 9 or af(s) else 0
        high = 1 if al > 0x99 or carry else 0
        borrowed = 1 if sign < 0 and adjust and al < 6 else 0
        decimal(s, al + sign * (6 * adjust + 0x60 * high), high | borrowed, adjust)
        return done(r)

    return handler


group.add(_packed(1), "daa")
group.add(_packed(-1), "das")


@group.add
def aam(s, r):
    base, al = load64(r + IMM) & 0xFF, load8(s + S.RAX)
    if base == 0:
        return fault(s, r, S.DE, 0, 0)
    store8(s + S.RAX + 1, al // base)
    decimal(s, al % base, 0, 0)
    return done(r)


@group.add
def aad(s, r):
    al = load8(s + S.RAX) + load8(s + S.RAX + 1) * (load64(r + IMM) & 0xFF)
    store16(s + S.RAX, 0)
    decimal(s, al, 0, 0)
    return done(r)


@group.add
def salc(s, r):
    """AL is filled with CF; Intel does not document it, every processor has it."""
    store8(s + S.RAX, -cf(s))
    return done(r)


# Memory


@group.add
def xlat(s, r):
    """AL <- [rBX + AL]."""
    seg = load64(r + SEG_PTR)
    store64(s + S.T0, load64(s + S.RBX) + load8(s + S.RAX))
    la = string_linear(s, r, seg if seg != 0 else s + S.DS, s + S.T0, 1, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 1, s + S.T0) == 0:
        return 0
    store8(s + S.RAX, load8(s + S.T0))
    return done(r)


@group.add
def pusha(s, r):
    """SP is pushed as it was before."""
    size, old = load8(r + OSIZE), load64(s + S.RSP)
    for number in range(8):
        value = old if number == 4 else load64(s + S.GPR + 8 * number)
        if push_value(s, r, value, size) == 0:
            store64(s + S.RSP, old)
            return 0
    return leave_next(s, r)


@group.add
def popa(s, r):
    """SP's place on the stack is skipped."""
    size = load8(r + OSIZE)
    for step in range(8):
        if peek_value(s, r, step * size, size) == 0:
            return 0
        store64(s + S.FRAME + 8 * (7 - step), load64(s + S.T3))
    for number in range(8):
        if number == 4:
            continue
        if size == 2:
            store16(s + S.GPR + 8 * number, load64(s + S.FRAME + 8 * number))
        else:
            store64(s + S.GPR + 8 * number, load64(s + S.FRAME + 8 * number))
    set_rsp(s, load64(s + S.RSP) + 8 * size)
    return done(r)


@group.add
def bound(s, r):
    """#BR unless the signed index lies between the two bounds in memory."""
    size = load8(r + OSIZE)
    la = effective(s, r, 2 * size, 0)
    store64(s + S.T0, 0)
    store64(s + S.T1, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, size, s + S.T0) == 0:
        return 0
    if read_mem(s, r, la + size, size, s + S.T1) == 0:
        return 0
    index, low, high = load64(dst(r)), load64(s + S.T0), load64(s + S.T1)
    if size == 2:
        inside = sext16(low) <= sext16(index) and sext16(index) <= sext16(high)
    else:
        inside = sext32(low) <= sext32(index) and sext32(index) <= sext32(high)
    return done(r) if inside else fault(s, r, S.BR, 0, 0)
