"""VEX forms of the SSE integer and move instructions, and of their AVX2 kin that stay within a lane."""

from .. import state as S
from ..raw import load8, load32, load64, memcpy, memset, store32, store64, ult
from .flags import set_arithmetic
from .operand import LOAD, done, dst, put32, src, third
from .packed import LANE, PACKED, SHIFTS
from .record import IMM
from .shuffle import LANE_BITS, SHUFFLES
from .sse_move import BLENDS_BY_SIGN, STORE, byte_signs
from .vector import vector_op
from .vex_operand import Handlers, clear_upper, fourth, is_wide

HANDLERS = Handlers()


# Lane by lane -----


def three_operands(operation):
    """dst = operation(third, src) in each lane."""

    def handler(s, r):
        d, a, b = dst(r), third(r), src(r)
        operation(d, a, b)
        if is_wide(r):
            operation(d + 16, a + 16, b + 16)
        else:
            clear_upper(d)
        return done(r)

    return handler


def _extend(operation, source):
    """VPMOVSX, VPMOVZX: each lane from `source` bytes; the upper one first, for dst may be src."""

    def handler(s, r):
        d, b = dst(r), src(r)
        if is_wide(r):
            operation(d + 16, b + source, b + source)
            operation(d, b, b)
        else:
            operation(d, b, b)
            clear_upper(d)
        return done(r)

    return handler


def _shift(operation, bits, arithmetic):
    """dst = third shifted by the 64-bit count at src."""

    def handler(s, r):
        d, a, n = dst(r), third(r), load64(src(r))
        if ult(n, bits) or arithmetic:
            count = n if ult(n, bits) else bits - 1
            operation(d, a, count)
            if is_wide(r):
                operation(d + 16, a + 16, count)
        else:
            memset(d, 0, 32)
        if is_wide(r) == 0:
            clear_upper(d)
        return done(r)

    return handler


def by_immediate(body, lane_bits=0):
    def handler(s, r):
        d, a, b, imm = dst(r), third(r), src(r), load8(r + IMM)
        body(s, d, a, b, imm)
        if is_wide(r):
            body(s, d + 16, a + 16, b + 16, imm >> lane_bits)
        else:
            clear_upper(d)
        return done(r)

    return handler


def _by_mask(body):
    def handler(s, r):
        d, a, b, mask = dst(r), third(r), src(r), fourth(r)
        wide = is_wide(r)
        memcpy(s + S.T3, mask, 32)  # dst may be the mask
        body(s, d, a, b, s + S.T3)
        if wide:
            body(s, d + 16, a + 16, b + 16, s + S.T3 + 16)
        else:
            clear_upper(d)
        return done(r)

    return handler


for _name, (_bits, _body) in PACKED.items():
    _operation = vector_op(_name, _bits, _body)
    if _name.startswith(("pmovsx", "pmovzx")):
        HANDLERS.add(_extend(_operation, 16 * _bits // LANE[_name[-1]]), f"v{_name}")
    else:
        HANDLERS.add(three_operands(_operation), f"v{_name}")
for _name, (_bits, _body) in SHIFTS.items():
    _operation = vector_op(_name, _bits, _body, scalar=True)
    HANDLERS.add(_shift(_operation, _bits, _name.startswith("psra")), f"v{_name}")
for _name, _bits, _kind in (("psllv", 32, "left"), ("psrlv", 32, "right"), ("psrav", 32, "arithmetic")):
    for _suffix, _width in (("d", 32), ("q", 64)):
        _operation = vector_op(_name, _width, lambda x, y, kind=_kind: x.shifted(y, kind))
        if (_name, _suffix) != ("psrav", "q"):
            HANDLERS.add(three_operands(_operation), f"v{_name}{_suffix}")
for _name, _body in SHUFFLES.items():
    HANDLERS.add(by_immediate(_body, LANE_BITS.get(_name, 0)), f"v{_name}")
for _name, _body in BLENDS_BY_SIGN.items():
    HANDLERS.add(_by_mask(_body), f"v{_name}")


# Moves -----


@HANDLERS.add
def vmov128(s, r):
    d = dst(r)
    memcpy(d, src(r), 16)
    clear_upper(d)
    return done(r)


@HANDLERS.add
def vmov256(s, r):
    memcpy(dst(r), src(r), 32)
    return done(r)


def _move_zeroing(load):
    def handler(s, r):
        d, value = dst(r), load(src(r))
        store64(d, value)
        store64(d + 8, 0)
        clear_upper(d)
        return done(r)

    return handler


def _merge(load, store, to, from_):
    """dst = third with `load` at byte `from_` of src at byte `to`."""

    def handler(s, r):
        d, value = dst(r), load(src(r) + from_)
        memcpy(d, third(r), 16)
        store(d + to, value)
        clear_upper(d)
        return done(r)

    return handler


HANDLERS.add(_move_zeroing(load32), "vmovd_xr32")
HANDLERS.add(_move_zeroing(load64), "vmovd_xr64")
HANDLERS.add(_merge(load32, store32, 0, 0), "vmovss")
HANDLERS.add(_merge(load64, store64, 0, 0), "vmovsd")
HANDLERS.add(_merge(load64, store64, 8, 0), "vmovhps")
HANDLERS.add(_merge(load64, store64, 0, 8), "vmovhlps")


def _insert(bits):
    load, store, last = LOAD[bits], STORE[bits], 128 // bits - 1

    def handler(s, r):
        d, value = dst(r), load(src(r))
        memcpy(d, third(r), 16)
        store(d + (load8(r + IMM) & last) * (bits // 8), value)
        clear_upper(d)
        return done(r)

    return handler


for _suffix, _bits in LANE.items():
    HANDLERS.add(_insert(_bits), f"vpinsr{_suffix}")


def _insertps(from_memory):
    """Memory has one element, whatever the immediate's source field says."""

    def handler(s, r):
        d, imm = dst(r), load8(r + IMM)
        value = load32(src(r) + (0 if from_memory else (imm >> 6) * 4))
        memcpy(d, third(r), 16)
        store32(d + (imm >> 4 & 3) * 4, value)
        for i in range(4):
            if imm >> i & 1:
                store32(d + i * 4, 0)
        clear_upper(d)
        return done(r)

    return handler


HANDLERS.add(_insertps(from_memory=False), "vinsertps")
HANDLERS.add(_insertps(from_memory=True), "vinsertps_mem")


# Masks and tests -----


@HANDLERS.add
def vpmovmskb(s, r):
    a = src(r)
    signs = byte_signs(load64(a)) | byte_signs(load64(a + 8)) << 8
    if is_wide(r):
        signs |= byte_signs(load64(a + 16)) << 16 | byte_signs(load64(a + 24)) << 24
    put32(dst(r), signs)
    return done(r)


def _sign_mask(size):
    def handler(s, r):
        a, signs = src(r), 0
        for i in range((32 if is_wide(r) else 16) // size):
            signs |= load8(a + size * i + size - 1) >> 7 << i
        put32(dst(r), signs)
        return done(r)

    return handler


HANDLERS.add(_sign_mask(4), "vmovmskps")
HANDLERS.add(_sign_mask(8), "vmovmskpd")


def _test(mask):
    """ZF: no bit of src and dst; CF: no bit of src without that of dst. `mask`: the bits that count."""

    def handler(s, r):
        a, b, both, only = dst(r), src(r), 0, 0
        for i in range(4 if is_wide(r) else 2):
            x, y = load64(a + 8 * i), load64(b + 8 * i)
            both |= x & y
            only |= ~x & y
        set_arithmetic(s, (S.ZF if both & mask == 0 else 0) | (S.CF if only & mask == 0 else 0))
        return done(r)

    return handler


HANDLERS.add(_test(-1), "vptest")
HANDLERS.add(_test(-0x7FFFFFFF80000000), "vtestps")  # bits 63 and 31
HANDLERS.add(_test(-0x8000000000000000), "vtestpd")
