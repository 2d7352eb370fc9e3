"""AVX and AVX2 instructions that move data across lanes: broadcasts, permutes, inserts, extracts, VZEROUPPER."""

from .. import state as S
from ..build import compiled
from ..raw import load8, load32, load64, memcpy, memset, store32, store64
from .operand import LOAD, done, dst, src, third
from .packed import LANE
from .record import IMM
from .shuffle import SHUFFLES
from .sse_move import STORE
from .vex_integer import by_immediate
from .vex_operand import Handlers, clear_upper, is_wide

HANDLERS = Handlers()


def _broadcast(bits):
    """VBROADCASTSS, VPBROADCASTB ...: the low element of src everywhere."""
    load, store = LOAD[bits], STORE[bits]

    def handler(s, r):
        d, value = dst(r), load(src(r))
        clear_upper(d)
        for i in range((256 if is_wide(r) else 128) // bits):
            store(d + i * bits // 8, value)
        return done(r)

    return handler


for _suffix, _bits in LANE.items():
    HANDLERS.add(_broadcast(_bits), f"vpbroadcast{_suffix}")


@HANDLERS.add
def vbroadcast128(s, r):
    d = dst(r)
    memcpy(d, src(r), 16)
    memcpy(d + 16, d, 16)
    return done(r)


@HANDLERS.add
def vinsert128(s, r):
    """third with src as the lane that IMM selects."""
    d, row = dst(r), s + S.T2
    memcpy(row, third(r), 32)
    memcpy(row + (load8(r + IMM) & 1) * 16, src(r), 16)
    memcpy(d, row, 32)
    return done(r)


@HANDLERS.add
def vextract128(s, r):
    """To a register (and the upper half is cleared) or to the slot of a memory operand."""
    d = dst(r)
    memcpy(d, src(r) + (load8(r + IMM) & 1) * 16, 16)
    clear_upper(d)
    return done(r)


@HANDLERS.add
def vperm2f128(s, r):
    """Each lane of dst: one of the four of third and src, or 0 (SDM vol. 2, VPERM2F128)."""
    imm, rows = load8(r + IMM), s + S.T2
    memcpy(rows, third(r), 32)
    memcpy(rows + 32, src(r), 32)
    for lane in range(2):
        control = imm >> 4 * lane
        if control & 8:
            memset(dst(r) + 16 * lane, 0, 16)
        else:
            memcpy(dst(r) + 16 * lane, rows + (control & 3) * 16, 16)
    return done(r)


@HANDLERS.add
def vpermd(s, r):
    """Elements of src by the indices in third; VPERMPS too."""
    d, row, indices = dst(r), s + S.T2, s + S.T3
    memcpy(row, src(r), 32)
    memcpy(indices, third(r), 32)
    for i in range(8):
        store32(d + 4 * i, load32(row + (load8(indices + 4 * i) & 7) * 4))
    return done(r)


@HANDLERS.add
def vpermq(s, r):
    """Elements of src by the immediate; VPERMPD too."""
    d, row, imm = dst(r), s + S.T2, load8(r + IMM)
    memcpy(row, src(r), 32)
    for i in range(4):
        store64(d + 8 * i, load64(row + (imm >> 2 * i & 3) * 8))
    return done(r)


def _permute_in_lanes(bits, shift):
    """VPERMILPS, VPERMILPD by a vector: elements of third's lanes by the bits of src's elements from `shift`."""
    load, store, size, last = LOAD[bits], STORE[bits], bits // 8, 128 // bits - 1

    def handler(s, r):
        d, row, control = dst(r), s + S.T2, s + S.T3
        memcpy(row, third(r), 32)
        memcpy(control, src(r), 32)
        clear_upper(d)
        for i in range((256 if is_wide(r) else 128) // bits):
            lane = row + (i * size & 16)
            store(d + size * i, load(lane + (load8(control + size * i) >> shift & last) * size))
        return done(r)

    return handler


HANDLERS.add(_permute_in_lanes(32, 0), "vpermilps")
HANDLERS.add(_permute_in_lanes(64, 1), "vpermilpd")

_shufpd = SHUFFLES["shufpd"]


def _permilpd_lane(s, d, a, b, imm):
    _shufpd(s, d, b, b, imm)


HANDLERS.add(by_immediate(compiled(_permilpd_lane), 2), "vpermilpd_imm")


@HANDLERS.add
def vzero(s, r):
    """VZEROUPPER; with VEX.L VZEROALL. Outside 64-bit mode there are eight registers."""
    for number in range(16 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 8):
        register = s + S.VEC + 64 * number
        if is_wide(r):
            memset(register, 0, 16)
        clear_upper(register)
    return done(r)
