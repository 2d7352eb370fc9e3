"""Shuffles, blends and byte shifts by an immediate, and PSHUFB, on one 128-bit lane: `f(s, d, a, b, imm)`.

The SSE forms are f with d = a = dst and b = src; the VEX forms do it for each lane (vex.py). d may be a or b: all is
read before anything is written. T2 is scratch.
"""

from collections.abc import Callable

from .. import state as S
from ..build import compiled
from ..raw import load8, load16, load32, load64, memcpy, memset, store16, store32, store64

LOAD, STORE = {16: load16, 32: load32, 64: load64}, {16: store16, 32: store32, 64: store64}
SHUFFLES: dict[str, Callable] = {}
# Bits of the immediate that belong to one lane; the next lane has those above. Others use all bits in each lane.
LANE_BITS = {"shufpd": 2, "blendps": 4, "blendpd": 2, "mpsadbw": 3}


def shuffle(body: Callable) -> Callable:
    SHUFFLES[body.__name__] = compiled(body)
    return body


@shuffle
def pshufd(s, d, a, b, imm):
    low = load32(b + (imm & 3) * 4) | load32(b + (imm >> 2 & 3) * 4) << 32
    high = load32(b + (imm >> 4 & 3) * 4) | load32(b + (imm >> 6 & 3) * 4) << 32
    store64(d, low)
    store64(d + 8, high)


def _shuffle_words(half):
    """PSHUFLW, PSHUFHW: the words of one half; the other half is copied."""

    def body(s, d, a, b, imm):
        from_ = b + half
        words = load16(from_ + (imm & 3) * 2) | load16(from_ + (imm >> 2 & 3) * 2) << 16
        words |= load16(from_ + (imm >> 4 & 3) * 2) << 32 | load16(from_ + (imm >> 6 & 3) * 2) << 48
        store64(d + (half ^ 8), load64(b + (half ^ 8)))
        store64(d + half, words)

    return body


SHUFFLES["pshuflw"] = compiled(_shuffle_words(0))
SHUFFLES["pshufhw"] = compiled(_shuffle_words(8))


@shuffle
def shufps(s, d, a, b, imm):
    low = load32(a + (imm & 3) * 4) | load32(a + (imm >> 2 & 3) * 4) << 32
    high = load32(b + (imm >> 4 & 3) * 4) | load32(b + (imm >> 6 & 3) * 4) << 32
    store64(d, low)
    store64(d + 8, high)


@shuffle
def shufpd(s, d, a, b, imm):
    low, high = load64(a + (imm & 1) * 8), load64(b + (imm >> 1 & 1) * 8)
    store64(d, low)
    store64(d + 8, high)


@shuffle
def pshufb(s, d, a, b, imm):
    low = high = 0
    for i in range(8):
        p, q = load8(b + i), load8(b + 8 + i)
        low |= (load8(a + (p & 15)) if p < 128 else 0) << 8 * i
        high |= (load8(a + (q & 15)) if q < 128 else 0) << 8 * i
    store64(d, low)
    store64(d + 8, high)


def _byte_window(name):
    """16 bytes of a longer row: from byte imm of a:b (PALIGNR) or 0:a, from byte 16 - imm of a:0."""

    def body(s, d, a, b, imm):
        n, row = imm, s + S.T2
        if name == "palignr":
            memcpy(row, b, 16)
            memset(row + 32, 0, 32)
            n = n if n < 32 else 32
        else:
            memset(row, 0, 64)
            n = n if n < 16 else 16
        memcpy(row if name == "psrldq" else row + 16, a, 16)
        memcpy(d, row + (16 - n if name == "pslldq" else n), 16)

    return body


for _name in ("palignr", "pslldq", "psrldq"):
    SHUFFLES[_name] = compiled(_byte_window(_name))


def _blend(bits):
    """Lanes of b where the immediate has a 1, else of a."""
    load, store, size = LOAD[bits], STORE[bits], bits // 8

    def body(s, d, a, b, imm):
        for i in range(128 // bits):
            store(d + i * size, load((b if imm >> i & 1 else a) + i * size))

    return body


for _name, _bits in (("pblendw", 16), ("blendps", 32), ("blendpd", 64)):
    SHUFFLES[_name] = compiled(_blend(_bits))


@shuffle
def mpsadbw(s, d, a, b, imm):
    """Eight sums of four absolute differences: a block of b against overlapping blocks of a."""
    row, block = s + S.T2, load32(b + (imm & 3) * 4)
    memcpy(row, a, 16)
    memset(row + 16, 0, 8)
    start = row + (imm & 4)
    for i in range(8):
        total = 0
        for k in range(4):
            apart = load8(start + i + k) - (block >> 8 * k & 0xFF)
            total += apart if apart >= 0 else -apart
        store16(d + 2 * i, total)


@shuffle
def phminposuw(s, d, a, b, imm):
    """The smallest word of b, and where it is first."""
    best = load16(b)
    for i in range(1, 8):
        word = load16(b + 2 * i)
        if word < best & 0xFFFF:
            best = word | i << 16
    store64(d, best)
    store64(d + 8, 0)
