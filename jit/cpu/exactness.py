"""Whether x * y + z has an exact result of the format's precision, were there no limit to its exponent.

Numbers are taken apart into integers: a significand, and the weight of its lowest bit as a power of two. A product has
up to 106 bits, in two words; a sum that needs more than 118 cannot be exact.
"""

from ..build import compiled
from ..raw import clz, ctz, lshr, shl, ult, umulh

FRACTION = {32: 23, 64: 52}
BIAS = {32: 127, 64: 1023}
WIDEST = 118  # bits of a sum that is made; one word is left for carry and sign


@compiled
def shifted(high, low, count):
    """The upper word of two, shifted left by 0 to 127."""
    if count == 0:
        return high
    return shl(low, count - 64) if count >= 64 else shl(high, count) | lshr(low, 64 - count)


@compiled
def shifted_low(low, count):
    """The lower word."""
    return 0 if count >= 64 else shl(low, count)


@compiled
def lowest(high, low):
    """The number of the lowest bit that is set."""
    return ctz(low) if low != 0 else 64 + ctz(high)


@compiled
def highest(high, low):
    return 127 - clz(high) if high != 0 else 63 - clz(low)


@compiled
def width(high, low):
    """How many bits there are from the highest to the lowest that is set; the number is not 0."""
    return highest(high, low) - lowest(high, low) + 1


def _parts(bits):
    """significand(word, daz), weight(word) of numbers of `bits`."""
    fraction, exponents = FRACTION[bits], (1 << bits - FRACTION[bits] - 1) - 1
    offset = BIAS[bits] + fraction

    @compiled
    def significand(word, daz):
        value, normal = word & (1 << fraction) - 1, word >> fraction & exponents != 0
        if normal:
            return value | 1 << fraction
        return 0 if daz else value

    @compiled
    def weight(word):
        exponent = word >> fraction & exponents
        return (exponent if exponent else 1) - offset

    return significand, weight


def fused_is_exact(bits):
    """f(x, y, z, negative, daz) for numbers of `bits`. negative: whether x * y and z have opposite signs."""
    significand, weight = _parts(bits)
    precision = FRACTION[bits] + 1

    def is_exact(x, y, z, negative, daz):
        a, b, c = significand(x, daz), significand(y, daz), significand(z, daz)
        high, low = umulh(a, b), a * b
        if high | low == 0:
            return 1
        if c == 0:
            return 1 if width(high, low) <= precision else 0
        at, other = weight(x) + weight(y), weight(z)
        bottom = min(at + lowest(high, low), other + ctz(c))
        if max(at + highest(high, low), other + 63 - clz(c)) - bottom >= WIDEST:
            return 0
        # Both in units of the lowest bit; what is shifted out to the right is zeros.
        if at < bottom:
            count = bottom - at
            low, high = (lshr(low, count) | shl(high, 64 - count), lshr(high, count)) if count < 64 else (
                lshr(high, count - 64), 0)  # fmt: skip
        else:
            high, low = shifted(high, low, at - bottom), shifted_low(low, at - bottom)
        if other < bottom:
            c, upper = lshr(c, bottom - other), 0
        else:
            upper, c = shifted(0, c, other - bottom), shifted_low(c, other - bottom)
        if negative:
            borrow = 1 if ult(low, c) else 0
            low, high = low - c, high - upper - borrow
            if high < 0:
                high, low = ~high + (1 if low == 0 else 0), -low
        else:
            low, high = low + c, high + upper
            high += 1 if ult(low, c) else 0
        if high | low == 0:
            return 1
        return 1 if width(high, low) <= precision else 0

    return compiled(is_exact)
