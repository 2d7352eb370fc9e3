"""Multiplication and division.

    mul imul div idiv {8,16,32,64}   rDX:rAX (AX for 8 bits) by the operand at src; #DE leaves registers as they were
    imul2_{16,32,64}                 dst *= src
    imul3_{16,32,64}                 dst = src * IMM
    mulx{32,64}                      dst:third = rDX * src (dst the high half); no flags
    adcx adox {32,64}                dst += src + CF (OF); changes that flag alone

Flags the SDM leaves undefined are as AMD processors have them: multiplications keep SF, ZF, AF and PF; divisions keep
CF and OF, set AF and clear SF, ZF and PF.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load16, load64, lshr, s64, shl, sload16, smulh, store16, udiv, udiv128, ule, ult, umulh
from .flags import SETTERS, cf, of, set_cf_of, set_result
from .operand import LOAD, PUT, SLOAD, WIDTHS, done, dst, fault, src, third
from .record import IMM

group = Group("muldiv", __name__)


def _product(width, signed):
    """rDX:rAX = rAX * src. CF and OF: the high half is more than an extension of the low one."""
    load, put = (SLOAD if signed else LOAD)[width], PUT[width]
    extend = SETTERS[width][3]

    def handler(s, r):
        a, b = load(s + S.RAX), load(src(r))
        low = a * b
        if width == 64:
            high = smulh(a, b) if signed else umulh(a, b)
            lost = high != (-lshr(low, 63) if signed else 0)
        else:
            high = low >> width if signed else lshr(low, width)
            lost = low != extend(low) if signed else high != 0
        if width == 8:
            store16(s + S.RAX, low)
        else:
            put(s + S.RAX, low)
            put(s + S.RDX, high)
        carry = 1 if lost else 0
        set_cf_of(s, carry, carry)
        return done(r)

    return handler


@compiled
def _quotient_flags(s):
    set_result(s, 1, cf(s), of(s), 1)


def _div(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        d = load(src(r))
        low = load(s + S.RAX)
        high = lshr(load16(s + S.RAX), 8) if width == 8 else load(s + S.RDX)
        if ule(d, high):  # the quotient has more than `width` bits, or d is 0
            return fault(s, r, S.DE, 0, 0)
        if width == 64 and high != 0:
            quotient = udiv128(high, low, d)
        else:
            quotient = udiv(low if width == 64 else shl(high, width) | low, d)
        rest = low - quotient * d
        if width == 8:
            store16(s + S.RAX, (rest & 0xFF) << 8 | quotient)
        else:
            put(s + S.RAX, quotient)
            put(s + S.RDX, rest)
        _quotient_flags(s)
        return done(r)

    return handler


def _idiv(width):
    """By magnitudes. The quotient is truncated towards 0 and the remainder has the dividend's sign."""
    load, put = SLOAD[width], PUT[width]
    unsigned = LOAD[width]
    limit = s64(1 << (width - 1))

    def handler(s, r):
        d = load(src(r))
        if width == 8:
            low = sload16(s + S.RAX)
        elif width == 64:
            low = load64(s + S.RAX)
        else:
            low = shl(load(s + S.RDX), width) | unsigned(s + S.RAX)
        high = load64(s + S.RDX) if width == 64 else low >> 63
        negative = 1 if high < 0 else 0
        magnitude = -low if negative else low
        above = 0
        if width == 64:
            above = ~high + (1 if low == 0 else 0) if negative else high
        divisor = -d if d < 0 else d
        if ule(divisor, above):
            return fault(s, r, S.DE, 0, 0)
        quotient = udiv(magnitude, divisor) if above == 0 else udiv128(above, magnitude, divisor)
        opposite = negative ^ (1 if d < 0 else 0)
        if not ult(quotient, limit + opposite):
            return fault(s, r, S.DE, 0, 0)
        rest = magnitude - quotient * divisor
        quotient = -quotient if opposite else quotient
        rest = -rest if negative else rest
        if width == 8:
            store16(s + S.RAX, (rest & 0xFF) << 8 | quotient & 0xFF)
        else:
            put(s + S.RAX, quotient)
            put(s + S.RDX, rest)
        _quotient_flags(s)
        return done(r)

    return handler


def _imul(width, immediate):
    load, put = SLOAD[width], PUT[width]
    extend = SETTERS[width][3]

    def handler(s, r):
        d = dst(r)
        a = load(src(r))
        b = load64(r + IMM) if immediate else load(d)
        low = a * b
        lost = smulh(a, b) != -lshr(low, 63) if width == 64 else low != extend(low)
        carry = 1 if lost else 0
        put(d, low)
        set_cf_of(s, carry, carry)
        return done(r)

    return handler


def _mulx(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a, b = load(s + S.RDX), load(src(r))
        low = a * b
        put(third(r), low)  # first: dst wins when both are one register
        put(dst(r), umulh(a, b) if width == 64 else lshr(low, 32))
        return done(r)

    return handler


def _add_with(width, flag):
    """ADCX and ADOX: two independent carry chains."""
    load, put = LOAD[width], PUT[width]
    overflow_chain = flag == "of"

    def handler(s, r):
        d = dst(r)
        a, b = load(d), load(src(r))
        result = a + b + (of(s) if overflow_chain else cf(s))
        carry = lshr((a & b) | ((a | b) & ~result), width - 1) & 1
        if overflow_chain:
            set_cf_of(s, cf(s), carry)
        else:
            set_cf_of(s, carry, of(s))
        put(d, result)
        return done(r)

    return handler


for _width in WIDTHS:
    group.add(_product(_width, signed=False), f"mul{_width}")
    group.add(_product(_width, signed=True), f"imul{_width}")
    group.add(_div(_width), f"div{_width}")
    group.add(_idiv(_width), f"idiv{_width}")
    if _width > 8:
        group.add(_imul(_width, immediate=False), f"imul2_{_width}")
        group.add(_imul(_width, immediate=True), f"imul3_{_width}")
    if _width > 16:
        group.add(_mulx(_width), f"mulx{_width}")
        group.add(_add_with(_width, "cf"), f"adcx{_width}")
        group.add(_add_with(_width, "of"), f"adox{_width}")
