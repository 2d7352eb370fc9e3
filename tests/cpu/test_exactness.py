"""Whether x * y + z is exact: next to rational arithmetic."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from kvmfs.jit.cpu.exactness import FRACTION, fused_is_exact
from kvmfs.jit.raw import PLAIN, s64
from numba import njit

FORMATS = {32: ("<I", "<f"), 64: ("<Q", "<d")}


def value(word: int, bits: int) -> Fraction:
    """The number that a finite pattern means."""
    fraction = FRACTION[bits]
    exponent, significand = word >> fraction & (1 << bits - 1 - fraction) - 1, word & (1 << fraction) - 1
    found = Fraction(significand | (1 << fraction if exponent else 0))
    found *= Fraction(2) ** (max(exponent, 1) - ((1 << bits - 2 - fraction) - 1) - fraction)
    return -found if word >> bits - 1 else found


def is_exact(number: Fraction, precision: int) -> bool:
    numerator = abs(number.numerator)
    return (numerator >> (numerator & -numerator).bit_length() - 1).bit_length() <= precision if numerator else True


def pattern(rng: random.Random, bits: int) -> int:
    """A finite number: any, one of few bits, or one at the edge of its significand."""
    fraction, word = FRACTION[bits], rng.getrandbits(bits)
    kind = rng.randrange(4)
    if kind == 0:
        word &= ~((1 << rng.randrange(fraction + 1)) - 1)
    elif kind == 1:
        word = rng.choice([0, 1, 2, 1 << fraction - 1, (1 << fraction) - 1, 1 << fraction])
    infinite = (1 << bits - 1 - fraction) - 1
    return word ^ (1 << fraction) if word >> fraction & infinite == infinite else word


def cases(bits: int) -> Iterator[tuple[int, int, int]]:
    """x, y, z; in every other case z all but cancels x * y."""
    rng, (integer, real) = random.Random(bits), FORMATS[bits]
    for number in range(4000):
        x, y, z = (pattern(rng, bits) for _ in range(3))
        if number & 1:
            product = value(x, bits) * value(y, bits)
            if 0 < abs(product) < 2**100:
                z = struct.unpack(integer, struct.pack(real, -float(product)))[0] + rng.choice([0, 0, 1, 2, 1 << 20])
        yield x, y, z


def callable_from_python(function: Callable[..., int]) -> Callable[..., int]:
    if PLAIN:
        return function
    return njit("int64(int64,int64,int64,int64,int64)")(lambda x, y, z, n, d: function(x, y, z, n, d))


@pytest.mark.parametrize("bits", [32, 64])
def test_as_rational_arithmetic(bits: int) -> None:
    function = callable_from_python(fused_is_exact(bits))
    for x, y, z in cases(bits):
        product, last = value(x, bits) * value(y, bits), value(z, bits)
        opposite = int((product < 0) != (last < 0))
        expected = is_exact(product + last, FRACTION[bits] + 1)
        assert bool(function(s64(x), s64(y), s64(z), opposite, 0)) == expected, (hex(x), hex(y), hex(z))


def test_denormals_that_are_zeros() -> None:
    function, least = callable_from_python(fused_is_exact(64)), 1 << 52
    assert [function(least, least, 1, 0, daz) for daz in (0, 1)] == [0, 1]
