"""VCVTPS2PH: singles to half precision, by the host's own instruction under the guest's MXCSR (floating.py)."""

from .. import state as S
from ..build import compiled
from ..machine_code import immediate_copies, machine_code
from ..raw import clz, ctz, load8, load16, load32, load64, memcpy, memset, store32
from .floating import ENTER, LEAVE, MASK_SHIFT, PRECISION, UNDERFLOW, begin, finish
from .operand import done, dst, src
from .record import IMM
from .vex_operand import CLOBBERS, LANE, XMM, YMM, Handlers, clear_upper, is_wide
from .wider import in_range, matters, settle

HANDLERS = Handlers()
HALF_PRECISION = 11  # bits

_lines = ("vmovups ($1), %{r}0", *ENTER, *immediate_copies("vcvtps2ph i, %{r}0, %xmm0", 4), *LEAVE)
_narrow, _wide = (
    machine_code(
        f"host_cvtps2ph_{size}",
        5,
        (*(line.replace("{r}", size) for line in _lines), "vmovups %xmm0, ($0)", "vzeroupper"),
        CLOBBERS,
    )
    for size in (XMM, YMM)
)


@compiled
def tiny(result, count):
    """Whether one of `count` half-precision numbers is denormal."""
    for i in range(count):
        half = load16(result + 2 * i)
        if half & 0x7FFF != 0 and half & 0x7C00 == 0:
            return 1
    return 0


@compiled
def is_exact(single):
    """Whether a finite single has no more bits than a half, whatever its exponent."""
    significand = single & 0x7FFFFF | (0x800000 if single >> 23 & 0xFF else 0)
    return 1 if significand == 0 or 64 - clz(significand) - ctz(significand) <= HALF_PRECISION else 0


@compiled
def precision(s, a, count, imm):
    """PE of `count` elements when one of them raises overflow or underflow."""
    one, result, found = s + S.T2 + 32, s + S.T2, 0
    memset(one, 0, LANE)
    for i in range(count):
        single = load32(a + 4 * i)
        store32(one, single)
        _narrow(result, one, one, begin(s), imm)
        own = in_range(s, tiny(result, 1))
        found |= own if own >= 0 else 0 if is_exact(single) else PRECISION
    return found


@HANDLERS.add
def vcvtps2ph(s, r):
    """To the lower half of a register, whose rest is cleared, or to a memory operand's slot."""
    result, imm, count, d, before = s + S.T2, load8(r + IMM), 8 if is_wide(r) else 4, dst(r), load64(s + S.MXCSR)
    control = begin(s)
    if is_wide(r):
        _wide(result, src(r), src(r), control, imm)
    else:
        _narrow(result, src(r), src(r), control, imm)
    if before & UNDERFLOW << MASK_SHIFT == 0 and tiny(result, count):
        store32(control, load32(control) | UNDERFLOW)  # unmasked: whether exact or not
    if finish(s, r, result, 32, 0) == 0:
        return settle(s, before, precision(s, src(r), count, imm)) if matters(s, before) else 0
    memcpy(d, result, LANE)
    clear_upper(d)
    return done(r)
