"""SSE to SSE4.1 data movement, integer and logic instructions on 16-byte operands (XMM slots or scratch).

Two-operand forms dst = f(dst, src), named as the SDM names them:

    padd psub {b,w,d,q}  padds paddus psubs psubus pavg {b,w}  pmul{lw,hw,huw,hrsw,ld,udq,dq}  pmadd{wd,ubsw}  psadbw
    pcmpeq pcmpgt {b,w,d,q}  pmin pmax {sb,sw,sd,ub,uw,ud}  pabs psign {b,w,d} (pabs: of src)
    pand pandn por pxor (ANDPS, ANDPD ... are the same)  phadd phsub {w,d}  phaddsw phsubsw
    punpckl punpckh {bw,wd,dq,qdq} (UNPCKxPS is dq, UNPCKxPD qdq)  packsswb packssdw packuswb packusdw  pshufb
    phminposuw (of src)
    psll psrl {w,d,q}  psra{w,d}: src is the address of a 64-bit count, the immediate's too
    pmovsx pmovzx {bw,bd,bq,wd,wq,dq}: dst = low lanes of src

With an immediate in IMM: pshufd pshuflw pshufhw shufps shufpd palignr pblendw blendps blendpd insertps mpsadbw
    pinsr{b,w,d,q}   dst is a vector, src a general register or slot
    pextr{b,w,d,q}   dst is a general register (32 bits written, 64 for q) or slot, src a vector
    pslldq psrldq    dst shifted by IMM bytes
By XMM0: pblendvb blendvps blendvpd

Moves:
    mov128            all 16 bytes: MOVAPS MOVUPS MOVDQA ... (memory forms: load128, store128)
    movd_xr{32,64}    dst = zero-extended src: MOVD, MOVQ to a vector, MOVQ xmm, and MOVSS, MOVSD from memory
                      (from a vector: mov32, mov64)
    movss  movsd      low 32, 64 bits of src into dst, others kept: register forms, and MOVLPS, MOVLPD from memory
    movhps            low half of src into dst's high half: MOVHPS, MOVHPD from memory, MOVLHPS
    movhlps           high half of src into dst's low half: MOVHLPS, and MOVHPS, MOVHPD to an 8-byte slot
    movddup movshdup movsldup
    pmovmskb movmskps movmskpd   dst is a general register
    ptest             ZF, CF
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load32, load64, lshr, memcpy, memset, store8, store16, store32, store64, ult
from .flags import set_arithmetic
from .operand import LOAD, PUT, done, dst, put32, src
from .packed import LANE, PACKED, SHIFTS
from .record import IMM
from .shuffle import SHUFFLES
from .vector import vector_op

group = Group("sse_move", __name__)

STORE = {8: store8, 16: store16, 32: store32, 64: store64}
XMM0 = S.VEC
MMX_EXPONENT = 0xFFFF


def two_operands(operation, size=16):
    """dst = f(dst, src) on XMM or, with 8 bytes, MMX registers: those get a sign and an exponent of all ones."""

    def handler(s, r):
        d = dst(r)
        operation(d, d, src(r))
        if size == 8:
            store16(d + 8, MMX_EXPONENT)
        return done(r)

    return handler


def shift(operation, bits, arithmetic, size=16):
    """dst shifted by the 64-bit count in src; size as above."""

    def handler(s, r):
        d, n = dst(r), load64(src(r))
        if ult(n, bits):
            operation(d, d, n)
        elif arithmetic:
            operation(d, d, bits - 1)
        else:
            memset(d, 0, size)
        if size == 8:
            store16(d + 8, MMX_EXPONENT)
        return done(r)

    return handler


for _name, (_bits, _body) in PACKED.items():
    group.add(two_operands(vector_op(_name, _bits, _body)), _name)
for _name, (_bits, _body) in SHIFTS.items():
    _operation = vector_op(_name, _bits, _body, scalar=True)
    group.add(shift(_operation, _bits, _name.startswith("psra")), _name)


# Moves -----


@group.add
def mov128(s, r):
    memcpy(dst(r), src(r), 16)
    return done(r)


def _move_zeroing(load):
    def handler(s, r):
        d, value = dst(r), load(src(r))
        store64(d, value)
        store64(d + 8, 0)
        return done(r)

    return handler


def _move_part(load, store, to, from_):
    """`load` at byte `from_` of src, stored at byte `to` of dst."""

    def handler(s, r):
        store(dst(r) + to, load(src(r) + from_))
        return done(r)

    return handler


group.add(_move_zeroing(load32), "movd_xr32")
group.add(_move_zeroing(load64), "movd_xr64")
group.add(_move_part(load32, store32, 0, 0), "movss")
group.add(_move_part(load64, store64, 0, 0), "movsd")
group.add(_move_part(load64, store64, 8, 0), "movhps")
group.add(_move_part(load64, store64, 0, 8), "movhlps")


def _shuffle(body):
    def handler(s, r):
        body(s, dst(r), dst(r), src(r), load8(r + IMM))
        return done(r)

    return handler


for _name, _body in SHUFFLES.items():
    group.add(_shuffle(_body), _name)


# Single elements, blends, masks -----


def _blend_by_sign(bits):
    """Lanes of b where the lane of the mask is negative, else of a."""
    spread = vector_op(f"spread{bits}", bits, lambda x, y: y.negative())

    def body(s, d, a, b, mask):
        wide = s + S.T2
        spread(wide, wide, mask)
        p, q = load64(wide), load64(wide + 8)
        low, high = load64(b) & p | load64(a) & ~p, load64(b + 8) & q | load64(a + 8) & ~q
        store64(d, low)
        store64(d + 8, high)

    return compiled(body)


BLENDS_BY_SIGN = {"pblendvb": _blend_by_sign(8), "blendvps": _blend_by_sign(32), "blendvpd": _blend_by_sign(64)}


def _blend_by_xmm0(body):
    def handler(s, r):
        body(s, dst(r), dst(r), src(r), s + XMM0)
        return done(r)

    return handler


def _insert(bits):
    load, store, last = LOAD[bits], STORE[bits], 128 // bits - 1

    def handler(s, r):
        store(dst(r) + (load8(r + IMM) & last) * (bits // 8), load(src(r)))
        return done(r)

    return handler


def _extract(bits):
    load, put, last = LOAD[bits], PUT[max(bits, 32)], 128 // bits - 1

    def handler(s, r):
        put(dst(r), load(src(r) + (load8(r + IMM) & last) * (bits // 8)))
        return done(r)

    return handler


for _suffix, _bits in LANE.items():
    group.add(_insert(_bits), f"pinsr{_suffix}")
    group.add(_extract(_bits), f"pextr{_suffix}")
for _name, _body in BLENDS_BY_SIGN.items():
    group.add(_blend_by_xmm0(_body), _name)


def _insertps(from_memory):
    """Memory has one element, whatever the immediate's source field says."""

    def handler(s, r):
        d, imm = dst(r), load8(r + IMM)
        store32(d + (imm >> 4 & 3) * 4, load32(src(r) + (0 if from_memory else (imm >> 6) * 4)))
        for i in range(4):
            if imm >> i & 1:
                store32(d + i * 4, 0)
        return done(r)

    return handler


group.add(_insertps(from_memory=False), "insertps")
group.add(_insertps(from_memory=True), "insertps_mem")


@compiled
def byte_signs(word):
    """The top bits of a word's 8 bytes as an 8-bit number: a product brings them together."""
    return lshr((lshr(word, 7) & 0x0101010101010101) * 0x0102040810204080, 56)


@group.add
def pmovmskb(s, r):
    a = src(r)
    put32(dst(r), byte_signs(load64(a)) | byte_signs(load64(a + 8)) << 8)
    return done(r)


@group.add
def movmskps(s, r):
    a = src(r)
    signs = load8(a + 3) >> 7 | load8(a + 7) >> 7 << 1 | load8(a + 11) >> 7 << 2 | load8(a + 15) >> 7 << 3
    put32(dst(r), signs)
    return done(r)


@group.add
def movmskpd(s, r):
    a = src(r)
    put32(dst(r), load8(a + 7) >> 7 | load8(a + 15) >> 7 << 1)
    return done(r)


@group.add
def ptest(s, r):
    d, a = dst(r), src(r)
    both = load64(d) & load64(a) | load64(d + 8) & load64(a + 8)
    only = ~load64(d) & load64(a) | ~load64(d + 8) & load64(a + 8)
    set_arithmetic(s, (S.ZF if both == 0 else 0) | (S.CF if only == 0 else 0))
    return done(r)
