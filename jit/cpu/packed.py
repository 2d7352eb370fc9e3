"""What the packed-integer instructions compute, as lane operations: name -> (lane bits, f(dst, src) -> result)."""

from __future__ import annotations

from collections.abc import Callable

LANE = {"b": 8, "w": 16, "d": 32, "q": 64}
PACKED: dict[str, tuple[int, Callable]] = {}
SHIFTS: dict[str, tuple[int, Callable]] = {}  # f(dst, count), count less than the lane's bits


def _packed(name: str, bits: int):
    def enter(body: Callable) -> Callable:
        PACKED[name] = (bits, body)
        return body

    return enter


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _saturating(bits: int, signed: bool, combine: Callable) -> Callable:
    """combine() on lanes of twice the width, brought back within the limits of the narrow ones."""

    def body(x, y):
        wide = combine(x.widen(2 * bits, signed), y.widen(2 * bits, signed))
        return wide.clamp(*_limits(bits, signed)).narrow(bits)

    return body


def _plus(x, y):
    return x + y


def _minus(x, y):
    return x - y


for _suffix, _bits in LANE.items():
    PACKED[f"padd{_suffix}"] = (_bits, _plus)
    PACKED[f"psub{_suffix}"] = (_bits, _minus)
    PACKED[f"pcmpeq{_suffix}"] = (_bits, lambda x, y: x.equal(y))
    PACKED[f"pcmpgt{_suffix}"] = (_bits, lambda x, y: x.greater(y, True))
    SHIFTS[f"psll{_suffix}"] = (_bits, lambda x, n: x.left(n))
    SHIFTS[f"psrl{_suffix}"] = (_bits, lambda x, n: x.right(n))
    SHIFTS[f"psra{_suffix}"] = (_bits, lambda x, n: x.arithmetic_right(n))
    if _bits < 64:
        for _sign, _signed in (("s", True), ("u", False)):
            PACKED[f"pmin{_sign}{_suffix}"] = (_bits, lambda x, y, signed=_signed: x.minimum(y, signed))
            PACKED[f"pmax{_sign}{_suffix}"] = (_bits, lambda x, y, signed=_signed: x.maximum(y, signed))
        PACKED[f"pabs{_suffix}"] = (_bits, lambda x, y: y.maximum(-y, True))
        PACKED[f"psign{_suffix}"] = (_bits, lambda x, y: (-x).where(y.negative(), x) & ~y.equal(y.constant(0)))
    if _bits < 32:
        for _sign, _signed in (("s", True), ("us", False)):
            PACKED[f"padd{_sign}{_suffix}"] = (_bits, _saturating(_bits, _signed, _plus))
            PACKED[f"psub{_sign}{_suffix}"] = (_bits, _saturating(_bits, _signed, _minus))
del SHIFTS["psllb"], SHIFTS["psrlb"], SHIFTS["psrab"], SHIFTS["psraq"]

PACKED["pand"] = (64, lambda x, y: x & y)
PACKED["pandn"] = (64, lambda x, y: ~x & y)
PACKED["por"] = (64, lambda x, y: x | y)
PACKED["pxor"] = (64, lambda x, y: x ^ y)


# Averages and products -----


def _average(x, y):
    bits = x.bits
    wide = x.widen(2 * bits, False) + y.widen(2 * bits, False)
    return (wide + wide.constant(1)).right(1).narrow(bits)


PACKED["pavgb"], PACKED["pavgw"] = (8, _average), (16, _average)


def _product(x, y, signed=True):
    return x.widen(32, signed) * y.widen(32, signed)


PACKED["pmullw"] = (16, lambda x, y: x * y)
PACKED["pmulld"] = (32, lambda x, y: x * y)
PACKED["pmulhw"] = (16, lambda x, y: _product(x, y).right(16).narrow(16))
PACKED["pmulhuw"] = (16, lambda x, y: _product(x, y, False).right(16).narrow(16))


@_packed("pmulhrsw", 16)
def _round_high(x, y):
    scaled = _product(x, y).arithmetic_right(14)
    return (scaled + scaled.constant(1)).right(1).narrow(16)


PACKED["pmuludq"] = (64, lambda x, y: (x & x.constant(0xFFFFFFFF)) * (y & y.constant(0xFFFFFFFF)))
PACKED["pmuldq"] = (64, lambda x, y: x.left(32).arithmetic_right(32) * y.left(32).arithmetic_right(32))


@_packed("pmaddwd", 16)
def _multiply_add_words(x, y):
    products = _product(x, y)
    return products.even() + products.odd()


@_packed("pmaddubsw", 8)
def _multiply_add_bytes(x, y):
    products = x.widen(32, False) * y.widen(32, True)
    return (products.even() + products.odd()).clamp(*_limits(16, True)).narrow(16)


@_packed("psadbw", 8)
def _sum_of_differences(x, y):
    apart = (x.maximum(y, False) - x.minimum(y, False)).cast(64)
    byte = apart.constant(0xFF)
    total = apart & byte
    for shift in range(8, 64, 8):
        total = total + (apart.right(shift) & byte)
    return total


# Neighbours, widths and order -----


def _horizontal(combine: Callable) -> Callable:
    return lambda x, y: combine(x.even(y), x.odd(y))


for _suffix in ("w", "d"):
    PACKED[f"phadd{_suffix}"] = (LANE[_suffix], _horizontal(_plus))
    PACKED[f"phsub{_suffix}"] = (LANE[_suffix], _horizontal(_minus))
PACKED["phaddsw"] = (16, _horizontal(_saturating(16, True, _plus)))
PACKED["phsubsw"] = (16, _horizontal(_saturating(16, True, _minus)))


def _pack(bits: int, signed: bool) -> Callable:
    """Signed lanes of `bits` of both operands, saturated into half their width."""

    def body(x, y):
        both = x.pick(range(2 * x.count), y)
        return both.clamp(*_limits(bits // 2, signed)).narrow(bits // 2)

    return body


for _sign, _signed in (("s", True), ("u", False)):
    PACKED[f"pack{_sign}swb"] = (16, _pack(16, _signed))
    PACKED[f"pack{_sign}sdw"] = (32, _pack(32, _signed))


def _interleave(high: bool) -> Callable:
    def body(x, y):
        half = x.count // 2
        start = half if high else 0
        return x.pick([lane for i in range(start, start + half) for lane in (i, x.count + i)], y)

    return body


for _suffix, _bits in (("bw", 8), ("wd", 16), ("dq", 32), ("qdq", 64)):
    PACKED[f"punpckl{_suffix}"] = (_bits, _interleave(high=False))
    PACKED[f"punpckh{_suffix}"] = (_bits, _interleave(high=True))


def _extend(bits: int, signed: bool) -> Callable:
    return lambda x, y: y.pick(range(128 // bits)).widen(bits, signed)


for _from, _to in ("bw", "bd", "bq", "wd", "wq", "dq"):
    PACKED[f"pmovsx{_from}{_to}"] = (LANE[_from], _extend(LANE[_to], True))
    PACKED[f"pmovzx{_from}{_to}"] = (LANE[_from], _extend(LANE[_to], False))

PACKED["movddup"] = (64, lambda x, y: y.pick([0, 0]))
PACKED["movsldup"] = (32, lambda x, y: y.pick([0, 0, 2, 2]))
PACKED["movshdup"] = (32, lambda x, y: y.pick([1, 1, 3, 3]))
