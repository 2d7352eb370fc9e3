"""MMX instructions: the packed operations of packed.py on 64 bits, and moves; handlers are mm_ and the SDM's name.

MMn is the fraction of the physical x87 register Rn. An instruction that uses them first makes R0 the top of the stack
and marks all registers used (the record `mmx_enter`, after what may fault); a register that is written gets a sign and
an exponent of all ones (SDM vol. 1, 9.6). Instructions that only store do so when memory has taken the operand.
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import WRITE_SLOW
from ..raw import load8, load16, load32, load64, memcpy, memset, store8, store16, store64
from .access import call_slow, effective, segmented, truncate
from .floating import begin, finish, floating
from .operand import done, dst, leave_next, put32, src
from .packed import PACKED, SHIFTS
from .record import ASIZE, IMM, OSIZE, SEG_PTR, SRC
from .sse_move import MMX_EXPONENT, byte_signs, shift, two_operands
from .vector import vector_op
from .x87 import pending
from .x87_state import set_status

group = Group("mmx", __name__)

TOP, ALL_USED = 0x3800, 0xFF
# Those of PACKED that have no MMX form
WIDER = ("pcmpeqq", "pcmpgtq", "punpcklqdq", "punpckhqdq", "packusdw", "pmulld", "pmuldq", "movddup", "movsldup")
WIDER += ("movshdup", "pminsb", "pminsd", "pminuw", "pminud", "pmaxsb", "pmaxsd", "pmaxuw", "pmaxud")


@group.add
def mmx_check(s, r):
    """Before a memory operand is read: #MF comes first."""
    return 0 if pending(s, r) else done(r)


@compiled
def enter(s):
    fsw = load16(s + S.FSW)
    if fsw & TOP:
        set_status(s, fsw & ~TOP)
    store8(s + S.FTW, ALL_USED)


@group.add
def mmx_enter(s, r):
    if pending(s, r):
        return 0
    enter(s)
    return done(r)


@group.add
def emms(s, r):
    if pending(s, r):
        return 0
    enter(s)
    store8(s + S.FTW, 0)
    return done(r)


@compiled
def write(register, value):
    store64(register, value)
    store16(register + 8, MMX_EXPONENT)


# Packed integers -----


for _name, (_bits, _body) in PACKED.items():
    if _name not in WIDER and not _name.startswith("pmov"):
        group.add(two_operands(vector_op(f"mm_{_name}", _bits, _body, size=64), size=8), f"mm_{_name}")
for _name, (_bits, _body) in SHIFTS.items():
    _operation = vector_op(f"mm_{_name}", _bits, _body, scalar=True, size=64)
    group.add(shift(_operation, _bits, _name.startswith("psra"), size=8), f"mm_{_name}")


@group.add
def mm_pshufw(s, r):
    a, imm, words = src(r), load8(r + IMM), 0
    for i in range(4):
        words |= load16(a + (imm >> 2 * i & 3) * 2) << 16 * i
    write(dst(r), words)
    return done(r)


@group.add
def mm_pshufb(s, r):
    d, a, result = dst(r), src(r), 0
    for i in range(8):
        place = load8(a + i)
        result |= (load8(d + (place & 7)) if place < 128 else 0) << 8 * i
    write(d, result)
    return done(r)


@group.add
def mm_palignr(s, r):
    """Eight bytes of dst:src from byte IMM on; beyond both are zeros."""
    d, n, row = dst(r), load8(r + IMM), s + S.T2
    memset(row, 0, 32)
    memcpy(row, src(r), 8)
    memcpy(row + 8, d, 8)
    write(d, load64(row + (n if n < 16 else 16)))
    return done(r)


@group.add
def mm_pinsrw(s, r):
    d = dst(r)
    store16(d + (load8(r + IMM) & 3) * 2, load16(src(r)))
    store16(d + 8, MMX_EXPONENT)
    return done(r)


@group.add
def mm_pextrw(s, r):
    put32(dst(r), load16(src(r) + (load8(r + IMM) & 3) * 2))
    return done(r)


@group.add
def mm_pmovmskb(s, r):
    put32(dst(r), byte_signs(load64(src(r))))
    return done(r)


# Moves -----


@group.add
def mm_movq(s, r):
    write(dst(r), load64(src(r)))
    return done(r)


@group.add
def mm_movdd(s, r):
    """MOVD from a general register or memory."""
    write(dst(r), load32(src(r)))
    return done(r)


@group.add
def mm_movdq(s, r):
    """MOVQ from a general register or memory."""
    write(dst(r), load64(src(r)))
    return done(r)


@group.add
def mm_getd(s, r):
    """MOVD to a general register."""
    put32(dst(r), load32(src(r)))
    return done(r)


@group.add
def mm_getq(s, r):
    """MOVQ to a general register."""
    store64(dst(r), load64(src(r)))
    return done(r)


@group.add
def mm_movq2dq(s, r):
    d = dst(r)
    store64(d, load64(src(r)))
    store64(d + 8, 0)
    return done(r)


@compiled
def store(s, r, size):
    """The register of ModRM reg to memory, wherever the top of the stack is yet."""
    if pending(s, r):
        return 0
    la = effective(s, r, size, 1)
    place = ((load64(r + SRC) >> 3 & 7) - (load16(s + S.FSW) >> 11)) & 7
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, WRITE_SLOW, la, size, s + S.ST + 16 * place) == 0:
        return 0
    enter(s)
    return leave_next(s, r)


@group.add
def mm_store(s, r):
    """MOVD, or MOVQ with REX.W."""
    return store(s, r, 8 if load8(r + OSIZE) == 8 else 4)


@group.add
def mm_store64(s, r):
    """MOVQ, MOVNTQ."""
    return store(s, r, 8)


@compiled
def masked_store(s, r, size):
    """Bytes of dst whose mask byte in src is negative, to where rDI points; no access for the others."""
    at, seg = truncate(load64(s + S.RDI), load8(r + ASIZE)), load64(r + SEG_PTR)
    la = segmented(s, r, seg if seg != 0 else s + S.DS, at, size, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    for i in range(size):
        if load8(src(r) + i) >= 128 and call_slow(s, r, WRITE_SLOW, la + i, 1, dst(r) + i) == 0:
            return 0
    return leave_next(s, r)


@group.add
def maskmovq(s, r):
    return masked_store(s, r, 8)


@group.add
def maskmovdqu(s, r):
    return masked_store(s, r, 16)


# Conversions: two elements in an MMX register or 8 bytes of memory -----


def _to_mmx(operation):
    def handler(s, r):
        operation(s + S.T2, s + S.T2, src(r), begin(s))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        write(dst(r), load64(s + S.T2))
        return done(r)

    return handler


def _from_mmx(operation, size):
    def handler(s, r):
        operation(s + S.T2, s + S.T2, src(r), begin(s))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        memcpy(dst(r), s + S.T2, size)
        return done(r)

    return handler


# The other elements are zeros, which convert without exceptions.
_LOW = ("movups ($1), %xmm0", "movq ($2), %xmm1")
for _name, _host, _load in (
    ("cvtps2pi", "cvtps2dq", "movq"), ("cvttps2pi", "cvttps2dq", "movq"),
    ("cvtpd2pi", "cvtpd2dq", "movups"), ("cvttpd2pi", "cvttpd2dq", "movups"),
):  # fmt: skip
    _operands = ("movups ($1), %xmm0", f"{_load} ($2), %xmm1")
    group.add(_to_mmx(floating(f"host_{_name}", f"{_host} %xmm1, %xmm0", _operands)), f"mm_{_name}")
for _name, _host, _size in (("cvtpi2ps", "cvtdq2ps", 8), ("cvtpi2pd", "cvtdq2pd", 16)):
    _operation = floating(f"host_{_name}", f"{_host} %xmm1, %xmm0", _LOW)
    group.add(_from_mmx(_operation, _size), f"mm_{_name}")
    group.add(_from_mmx(_operation, _size), _name)
