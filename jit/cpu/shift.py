"""Shifts and rotates.

    rol ror rcl rcr shl shr sar {8,16,32,64}   dst, count: low byte at src (SAL is shl)
    shld shrd {16,32,64}                       dst, src shifted in, count: low byte at third
    shlx shrx sarx rorx {32,64}                dst = src shifted by the low byte at third; no flags

The count is taken modulo 32, modulo 64 for 64-bit operands. A count of 0 changes no flag, but a 32-bit register is
written, that is its upper half cleared. What the SDM leaves undefined is as processors do it: OF after longer shifts
follows the rule for a shift by 1, applied to the result; AF is set by shifts; CF of a count beyond the operand's width
is the sign for SAR, else 0.
"""

from ..build import Group, compiled
from ..raw import load8, lshr, shl
from .flags import SETTERS, cf, set_cf_of, set_result
from .operand import LOAD, PUT, SLOAD, WIDTHS, done, dst, src, third

group = Group("shift", __name__)


def _count_mask(width):
    return 63 if width == 64 else 31


# Shifts: all flags follow -----


def _shl(width):
    load, put, extend, mask = LOAD[width], PUT[width], SETTERS[width][3], _count_mask(width)

    def handler(s, r):
        d = dst(r)
        a, n = load(d), load8(src(r)) & mask
        result = shl(a, n)
        if n != 0:
            carry = lshr(a, width - n) & 1
            set_result(s, extend(result), carry, carry ^ lshr(result, width - 1) & 1, 1)
        put(d, result)
        return done(r)

    return handler


def _shr(width, signed):
    load, put, mask = (SLOAD if signed else LOAD)[width], PUT[width], _count_mask(width)
    extend = SETTERS[width][3]

    def handler(s, r):
        d = dst(r)
        a, n = load(d), load8(src(r)) & mask
        result = a >> n if signed else lshr(a, n)
        if n != 0:
            before = a >> (n - 1) if signed else lshr(a, n - 1)
            overflow = lshr(result ^ result << 1, width - 1) & 1
            set_result(s, extend(result), before & 1, overflow, 1)
        put(d, result)
        return done(r)

    return handler


def _double(width, left):
    """SHLD and SHRD. A 16-bit operand shifted by more than 16 goes on with the second operand's bits once more."""
    load, put, extend, mask = LOAD[width], PUT[width], SETTERS[width][3], _count_mask(width)

    def handler(s, r):
        d = dst(r)
        a, b, n = load(d), load(src(r)), load8(third(r)) & mask
        if n == 0:
            put(d, a)
            return done(r)
        if left:
            result = lshr(shl(a << 32 | b << 16 | b, n), 32) if width == 16 else shl(a, n) | lshr(b, width - n)
            carry = lshr(a, width - n) & 1
            overflow = carry ^ lshr(a, width - 1 - n) & 1
        else:
            result = lshr(b << 32 | b << 16 | a, n) if width == 16 else lshr(a, n) | shl(b, width - n)
            carry = lshr(a, n - 1) & 1
            overflow = lshr(result ^ result << 1, width - 1) & 1
        set_result(s, extend(result), carry, overflow, 1)
        put(d, result)
        return done(r)

    return handler


# Rotates: CF and OF alone -----


def _rotate(width, left):
    load, put, mask = LOAD[width], PUT[width], _count_mask(width)

    def handler(s, r):
        d = dst(r)
        a, count = load(d), load8(src(r)) & mask
        n = count & (width - 1)
        result = shl(a, n) | lshr(a, width - n) if left else lshr(a, n) | shl(a, width - n)
        if count != 0:
            top = lshr(result, width - 1) & 1
            if left:
                set_cf_of(s, result & 1, result & 1 ^ top)
            else:
                set_cf_of(s, top, top ^ lshr(result, width - 2) & 1)
        put(d, result)
        return done(r)

    return handler


def _rotate_carry(width, left):
    """RCL and RCR: a rotation of width + 1 bits."""
    load, put, mask = LOAD[width], PUT[width], _count_mask(width)

    def handler(s, r):
        d = dst(r)
        a, count, carry = load(d), load8(src(r)) & mask, cf(s)
        n = count % (width + 1)
        result = a
        if n != 0 and left:
            result = shl(a, n) | shl(carry, n - 1) | lshr(lshr(a, 1), width - n)
            carry = lshr(a, width - n) & 1
        elif n != 0:
            result = lshr(a, n) | shl(carry, width - n) | shl(a << 1, width - n)
            carry = lshr(a, n - 1) & 1
        if count != 0:
            top = lshr(result, width - 1) & 1
            set_cf_of(s, carry, top ^ (carry if left else lshr(result, width - 2) & 1))
        put(d, result)
        return done(r)

    return handler


# BMI2: no flags -----


def _ror_plain(a, n, width):
    return lshr(a, n) | shl(a, width - n)


def _shl_plain(a, n, width):
    return shl(a, n)


def _shr_plain(a, n, width):
    return lshr(a, n)


def _sar_plain(a, n, width):
    return a >> n


def _flagless(width, combine, signed=False):
    load, put = (SLOAD if signed else LOAD)[width], PUT[width]

    def handler(s, r):
        put(dst(r), combine(load(src(r)), load8(third(r)) & (width - 1), width))
        return done(r)

    return handler


for _width in WIDTHS:
    group.add(_rotate(_width, left=True), f"rol{_width}")
    group.add(_rotate(_width, left=False), f"ror{_width}")
    group.add(_rotate_carry(_width, left=True), f"rcl{_width}")
    group.add(_rotate_carry(_width, left=False), f"rcr{_width}")
    group.add(_shl(_width), f"shl{_width}")
    group.add(_shr(_width, signed=False), f"shr{_width}")
    group.add(_shr(_width, signed=True), f"sar{_width}")
    if _width > 8:
        group.add(_double(_width, left=True), f"shld{_width}")
        group.add(_double(_width, left=False), f"shrd{_width}")
    if _width > 16:
        for _name, _combine in (("shlx", _shl_plain), ("shrx", _shr_plain), ("rorx", _ror_plain)):
            group.add(_flagless(_width, compiled(_combine)), f"{_name}{_width}")
        group.add(_flagless(_width, compiled(_sar_plain), signed=True), f"sarx{_width}")
