"""Bit tests, scans, counts, the BMI groups and CRC32.

    bt bts btr btc {16,32,64}       dst, bit number at src, taken modulo the width
    bsf bsr {16,32,64}              dst = position in src; a zero source leaves dst as it was
    tzcnt lzcnt popcnt {16,32,64}   dst = count in src
    andn{32,64}                     dst = ~third & src
    bextr bzhi {32,64}              dst = the bits of src that third selects
    blsi blsr blsmsk {32,64}        dst = lowest set bit of src: isolated, cleared, mask up to it
    pdep pext {32,64}               dst = bits of third scattered to, or gathered from, the mask at src; no flags
    crc32_{32,64}_{8,16,32,64}      dst = CRC-32C of dst and src, named {dst}_{src}; no flags

Flags the SDM leaves undefined are as AMD processors have them: BT and its kin change CF alone; BSF and BSR set PF by
the result and clear the others; TZCNT and LZCNT keep OF and clear the others; BEXTR sets AF
and clears SF.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import clz, ctz, load8, load32, lshr, popcount, shl
from .flags import SETTERS, of, set_arithmetic, set_cf, set_result
from .operand import LOAD, PUT, done, dst, put32, src, third

group = Group("bits", __name__)


# Single bits -----


def _test(a, bit):
    return a


def _set(a, bit):
    return a | bit


def _reset(a, bit):
    return a & ~bit


def _complement(a, bit):
    return a ^ bit


def _bit_test(width, change, writes):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        d = dst(r)
        a, n = load(d), load8(src(r)) & (width - 1)
        set_cf(s, lshr(a, n) & 1)
        if writes:
            put(d, change(a, shl(1, n)))
        return done(r)

    return handler


# Scans and counts -----


def _scan(width, forward):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a = load(src(r))
        if a == 0:
            set_result(s, 0, 0, 0, 0)
        else:
            result = ctz(a) if forward else 63 - clz(a)
            set_result(s, result | 0x100, 0, 0, 0)  # not zero, and the low byte decides PF
            put(dst(r), result)
        return done(r)

    return handler


def _zeros(width, trailing):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a = load(src(r))
        result = ctz(a) if trailing else clz(a) - (64 - width)
        if a == 0:
            result = width
        set_arithmetic(s, (S.CF if a == 0 else 0) | (S.ZF if result == 0 else 0) | of(s) << 11)
        put(dst(r), result)
        return done(r)

    return handler


def _popcnt(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a = load(src(r))
        set_arithmetic(s, S.ZF if a == 0 else 0)
        put(dst(r), popcount(a))
        return done(r)

    return handler


# BMI1 and BMI2 -----


def _bls(width, name):
    load, put, extend = LOAD[width], PUT[width], SETTERS[width][3]
    carry_if_zero = 0 if name == "blsi" else 1

    def handler(s, r):
        a = load(src(r))
        if name == "blsi":
            result = a & -a
        elif name == "blsr":
            result = a & (a - 1)
        else:
            result = a ^ (a - 1)
        set_result(s, extend(result), carry_if_zero if a == 0 else carry_if_zero ^ 1, 0, 0)
        put(dst(r), result)
        return done(r)

    return handler


def _andn(width):
    load, put, after_logic = LOAD[width], PUT[width], SETTERS[width][2]

    def handler(s, r):
        result = ~load(third(r)) & load(src(r))
        after_logic(s, result)
        put(dst(r), result)
        return done(r)

    return handler


@compiled
def low_bits(a, n):
    """The n low bits of a, n up to 255."""
    return a & (shl(1, n) - 1) if n < 64 else a


def _bextr(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a, start, length = load(src(r)), load8(third(r)), load8(third(r) + 1)
        result = low_bits(lshr(a, start) if start < width else 0, length)
        set_result(s, result & 0xFF | 0x100 if result != 0 else 0, 0, 0, 1)  # SF = 0
        put(dst(r), result)
        return done(r)

    return handler


def _bzhi(width):
    load, put, extend = LOAD[width], PUT[width], SETTERS[width][3]

    def handler(s, r):
        n = load8(third(r))
        result = low_bits(load(src(r)), n)
        set_result(s, extend(result), 1 if n >= width else 0, 0, 0)
        put(dst(r), result)
        return done(r)

    return handler


def _parallel(width, deposit):
    """PDEP and PEXT, a step for each bit of the mask."""
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        a, mask = load(third(r)), load(src(r))
        result, bit = 0, 1
        while mask != 0:
            lowest = shl(1, ctz(mask))
            if deposit and a & bit != 0:
                result |= lowest
            if not deposit and a & lowest != 0:
                result |= bit
            mask ^= lowest
            bit = shl(bit, 1)
        put(dst(r), result)
        return done(r)

    return handler


CASTAGNOLI = 0x82F63B78  # CRC-32C's polynomial, bits reversed


def _crc32(width):
    load = LOAD[width]

    def handler(s, r):
        d = dst(r)
        crc, data = load32(d), load(src(r))
        for i in range(width):
            bit = (crc ^ lshr(data, i)) & 1
            crc = lshr(crc, 1) ^ (CASTAGNOLI & -bit)
        put32(d, crc)
        return done(r)

    return handler


for _width in (16, 32, 64):
    for _name, _change in (("bt", _test), ("bts", _set), ("btr", _reset), ("btc", _complement)):
        group.add(_bit_test(_width, compiled(_change), _name != "bt"), f"{_name}{_width}")
    group.add(_scan(_width, forward=True), f"bsf{_width}")
    group.add(_scan(_width, forward=False), f"bsr{_width}")
    group.add(_zeros(_width, trailing=True), f"tzcnt{_width}")
    group.add(_zeros(_width, trailing=False), f"lzcnt{_width}")
    group.add(_popcnt(_width), f"popcnt{_width}")
    if _width > 16:
        for _name in ("blsi", "blsr", "blsmsk"):
            group.add(_bls(_width, _name), f"{_name}{_width}")
        group.add(_andn(_width), f"andn{_width}")
        group.add(_bextr(_width), f"bextr{_width}")
        group.add(_bzhi(_width), f"bzhi{_width}")
        group.add(_parallel(_width, deposit=True), f"pdep{_width}")
        group.add(_parallel(_width, deposit=False), f"pext{_width}")
for _width, _from in ((32, 8), (32, 16), (32, 32), (64, 8), (64, 64)):
    group.add(_crc32(_from), f"crc32_{_width}_{_from}")
