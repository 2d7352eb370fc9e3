"""Shuffles and byte shifts by an immediate, PSHUFB, and searches: handlers by name, for the group in sse_move.py.

dst may be src: all is read before anything is written.
"""

from collections.abc import Callable

from .. import state as S
from ..raw import load8, load16, load32, load64, memcpy, memset, store64
from .operand import done, dst, src
from .record import IMM

SHUFFLES: dict[str, Callable] = {}


def shuffle(handler: Callable) -> Callable:
    SHUFFLES[handler.__name__] = handler
    return handler


@shuffle
def pshufd(s, r):
    a, imm = src(r), load8(r + IMM)
    low = load32(a + (imm & 3) * 4) | load32(a + (imm >> 2 & 3) * 4) << 32
    high = load32(a + (imm >> 4 & 3) * 4) | load32(a + (imm >> 6) * 4) << 32
    store64(dst(r), low)
    store64(dst(r) + 8, high)
    return done(r)


def _shuffle_words(half):
    """PSHUFLW, PSHUFHW: the words of one half; the other half is copied."""

    def handler(s, r):
        a, imm = src(r) + half, load8(r + IMM)
        words = load16(a + (imm & 3) * 2) | load16(a + (imm >> 2 & 3) * 2) << 16
        words |= load16(a + (imm >> 4 & 3) * 2) << 32 | load16(a + (imm >> 6) * 2) << 48
        store64(dst(r) + (half ^ 8), load64(src(r) + (half ^ 8)))
        store64(dst(r) + half, words)
        return done(r)

    return handler


SHUFFLES["pshuflw"] = _shuffle_words(0)
SHUFFLES["pshufhw"] = _shuffle_words(8)


@shuffle
def shufps(s, r):
    a, b, imm = dst(r), src(r), load8(r + IMM)
    low = load32(a + (imm & 3) * 4) | load32(a + (imm >> 2 & 3) * 4) << 32
    high = load32(b + (imm >> 4 & 3) * 4) | load32(b + (imm >> 6) * 4) << 32
    store64(a, low)
    store64(a + 8, high)
    return done(r)


@shuffle
def shufpd(s, r):
    a, b, imm = dst(r), src(r), load8(r + IMM)
    low, high = load64(a + (imm & 1) * 8), load64(b + (imm >> 1 & 1) * 8)
    store64(a, low)
    store64(a + 8, high)
    return done(r)


@shuffle
def pshufb(s, r):
    a, b = dst(r), src(r)
    low = high = 0
    for i in range(8):
        p, q = load8(b + i), load8(b + 8 + i)
        low |= (load8(a + (p & 15)) if p < 128 else 0) << 8 * i
        high |= (load8(a + (q & 15)) if q < 128 else 0) << 8 * i
    store64(a, low)
    store64(a + 8, high)
    return done(r)


def _byte_window(name):
    """dst = 16 bytes of a longer row: from byte IMM of dst:src (PALIGNR) or 0:dst, from byte 16 - IMM of dst:0."""

    def handler(s, r):
        d, n, row = dst(r), load8(r + IMM), s + S.T2
        if name == "palignr":
            memcpy(row, src(r), 16)
            memset(row + 32, 0, 32)
            n = n if n < 32 else 32
        else:
            memset(row, 0, 64)
            n = n if n < 16 else 16
        memcpy(row if name == "psrldq" else row + 16, d, 16)
        memcpy(d, row + (16 - n if name == "pslldq" else n), 16)
        return done(r)

    return handler


for _name in ("palignr", "pslldq", "psrldq"):
    SHUFFLES[_name] = _byte_window(_name)


@shuffle
def mpsadbw(s, r):
    """Eight sums of absolute differences: 4 bytes of src against the windows of dst from byte 0 or 4 on."""
    imm, row = load8(r + IMM), s + S.T2
    memcpy(row, dst(r), 16)
    block, first = src(r) + 4 * (imm & 3), row + (imm & 4)
    low = high = 0
    for i in range(4):
        p, q = 0, 0
        for j in range(4):
            p += abs(load8(first + i + j) - load8(block + j))
            q += abs(load8(first + 4 + i + j) - load8(block + j))
        low |= p << 16 * i
        high |= q << 16 * i
    store64(dst(r), low)
    store64(dst(r) + 8, high)
    return done(r)


@shuffle
def phminposuw(s, r):
    """The least word of src, and its place."""
    a, least, place = src(r), 0x10000, 0
    for i in range(8):
        word = load16(a + 2 * i)
        if word < least:
            least, place = word, i
    store64(dst(r), least | place << 16)
    store64(dst(r) + 8, 0)
    return done(r)
