"""Moves, exchanges, conversions, conditional moves, and single-flag instructions.

mov{8,16,32,64}                                   dst = src
movzx{16,32,64}_{8,16}  movsx{16,32,64}_{8,16,32} dst = src extended (or cut), {to}_{from}
xchg xadd {8,16,32,64}                            dst and src, both written
cmpxchg{8,16,32,64}                               dst, src, the accumulator; on failure dst is not written
set{0..15}                                        dst (a byte) = condition holds
cmov{0..15}_{16,32,64}                            dst = src if it holds; a 32-bit dst is zero-extended anyway
bswap{16,32,64}                                   dst
movbe{16,32,64}                                   dst = src with its bytes reversed
cbw{16,32,64}  cwd{16,32,64}                      CBW CWDE CDQE, CWD CDQ CQO, named by the result's width
lahf sahf clc stc cmc cld std nop                 no operands
"""

from .. import state as S
from ..build import Group
from ..raw import bswap, load8, load64, lshr, store8, store64
from .conditions import CONDITIONS
from .flags import SETTERS, arithmetic, cf, set_arithmetic, set_cf
from .operand import LOAD, PUT, SLOAD, WIDTHS, done, dst, src

group = Group("move", __name__)


def _mov(to, load):
    put = PUT[to]

    def handler(s, r):
        put(dst(r), load(src(r)))
        return done(r)

    return handler


def _xchg(width):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        p, q = dst(r), src(r)
        a, b = load(p), load(q)
        put(p, b)
        put(q, a)
        return done(r)

    return handler


def _xadd(width):
    load, put, after_add = LOAD[width], PUT[width], SETTERS[width][0]

    def handler(s, r):
        p, q = dst(r), src(r)
        a, b = load(p), load(q)
        after_add(s, a, b, a + b)
        put(q, a)  # first: the sum wins when both are one register
        put(p, a + b)
        return done(r)

    return handler


def _cmpxchg(width):
    load, put, after_sub = LOAD[width], PUT[width], SETTERS[width][1]

    def handler(s, r):
        p, accumulator = dst(r), s + S.RAX
        a, found = load(accumulator), load(p)
        after_sub(s, a, found, a - found)
        if a == found:
            put(p, load(src(r)))
        else:
            put(accumulator, found)
        return done(r)

    return handler


def _set(holds):
    def handler(s, r):
        store8(dst(r), holds(s))
        return done(r)

    return handler


def _cmov(width, holds):
    load, put = LOAD[width], PUT[width]

    def handler(s, r):
        d = dst(r)
        put(d, load(src(r)) if holds(s) else load(d))
        return done(r)

    return handler


def _reverse(width, in_place):
    """BSWAP and MOVBE. BSWAP of 16 bits is undefined; processors clear them."""
    load, put = LOAD[width], PUT[width]
    unswappable = in_place and width == 16

    def handler(s, r):
        value = load(dst(r) if in_place else src(r))
        put(dst(r), 0 if unswappable else lshr(bswap(value), 64 - width))
        return done(r)

    return handler


def _sign_into_accumulator(width):
    """CBW, CWDE, CDQE: double the accumulator's width."""
    load, put = SLOAD[width // 2], PUT[width]

    def handler(s, r):
        put(s + S.RAX, load(s + S.RAX))
        return done(r)

    return handler


def _sign_into_data(width):
    """CWD, CDQ, CQO: rDX becomes the accumulator's sign."""
    load, put = SLOAD[width], PUT[width]

    def handler(s, r):
        put(s + S.RDX, load(s + S.RAX) >> 63)
        return done(r)

    return handler


STATUS = S.SF | S.ZF | S.AF | S.PF | S.CF  # what LAHF and SAHF carry


@group.add
def lahf(s, r):
    store8(s + S.RAX + 1, arithmetic(s) & STATUS | 2)
    return done(r)


@group.add
def sahf(s, r):
    set_arithmetic(s, arithmetic(s) & S.OF | load8(s + S.RAX + 1) & STATUS)
    return done(r)


@group.add
def clc(s, r):
    set_cf(s, 0)
    return done(r)


@group.add
def stc(s, r):
    set_cf(s, 1)
    return done(r)


@group.add
def cmc(s, r):
    set_cf(s, cf(s) ^ 1)
    return done(r)


@group.add
def cld(s, r):
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.DF)
    return done(r)


@group.add
def std(s, r):
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) | S.DF)
    return done(r)


@group.add
def nop(s, r):
    return done(r)


for _width in WIDTHS:
    group.add(_mov(_width, LOAD[_width]), f"mov{_width}")
    group.add(_xchg(_width), f"xchg{_width}")
    group.add(_xadd(_width), f"xadd{_width}")
    group.add(_cmpxchg(_width), f"cmpxchg{_width}")
    if _width > 8:
        for _from in (8, 16, 32):
            group.add(_mov(_width, SLOAD[_from]), f"movsx{_width}_{_from}")
            if _from < 32:
                group.add(_mov(_width, LOAD[_from]), f"movzx{_width}_{_from}")
        group.add(_reverse(_width, in_place=True), f"bswap{_width}")
        group.add(_reverse(_width, in_place=False), f"movbe{_width}")
        group.add(_sign_into_accumulator(_width), f"cbw{_width}")
        group.add(_sign_into_data(_width), f"cwd{_width}")
        for _code, _holds in enumerate(CONDITIONS):
            group.add(_cmov(_width, _holds), f"cmov{_code}_{_width}")
for _code, _holds in enumerate(CONDITIONS):
    group.add(_set(_holds), f"set{_code}")
