"""The six arithmetic flags, kept lazily in two words.

FLAG_RESULT is the last result, sign-extended from its operand size: ZF is "it is 0", SF its sign, PF the parity of its
low byte. FLAG_AUX holds the rest: bit 63 is CF, bit 62 is CF^OF (the carry into the sign bit), bit 3 is AF. So that any
combination can be loaded (POPF, SAHF), two corrections are XORed in: bit 0 to SF, bits 8..15 to the byte of PF.
"""

from .. import state as S
from ..build import compiled
from ..raw import load64, lshr, popcount, s64, sext8, sext16, sext32, shl, store64

SIGN_EXTEND = {8: sext8, 16: sext16, 32: sext32, 64: None}
CARRIES = s64(3 << 62)


@compiled
def cf(s):
    return lshr(load64(s + S.FLAG_AUX), 63)


@compiled
def of(s):
    aux = load64(s + S.FLAG_AUX)
    return (lshr(aux, 63) ^ lshr(aux, 62)) & 1


@compiled
def zf(s):
    return 1 if load64(s + S.FLAG_RESULT) == 0 else 0


@compiled
def sf(s):
    return (lshr(load64(s + S.FLAG_RESULT), 63) ^ load64(s + S.FLAG_AUX)) & 1


@compiled
def pf(s):
    return ~popcount((load64(s + S.FLAG_RESULT) ^ (load64(s + S.FLAG_AUX) >> 8)) & 0xFF) & 1


@compiled
def af(s):
    return (load64(s + S.FLAG_AUX) >> 3) & 1


@compiled
def arithmetic(s):
    """The six flags as RFLAGS bits."""
    return cf(s) | pf(s) << 2 | af(s) << 4 | zf(s) << 6 | sf(s) << 7 | of(s) << 11


@compiled
def rflags(s):
    """The whole register."""
    return load64(s + S.RFLAGS) | arithmetic(s)


@compiled
def set_arithmetic(s, value):
    """Load the six flags from RFLAGS bits."""
    carry, overflow = value & 1, value >> 11 & 1
    store64(s + S.FLAG_RESULT, 0 if value & S.ZF else 0x100)
    parity_fix = 0 if value & S.PF else 1
    aux = shl(carry, 63) | shl(carry ^ overflow, 62) | (value >> 4 & 1) << 3 | parity_fix << 8 | value >> 7 & 1
    store64(s + S.FLAG_AUX, aux)


@compiled
def set_cf_of(s, carry, overflow):
    """Replace CF and OF, keep the others."""
    aux = load64(s + S.FLAG_AUX) & ~CARRIES
    store64(s + S.FLAG_AUX, aux | shl(carry, 63) | shl(carry ^ overflow, 62))


@compiled
def set_cf(s, carry):
    """Replace CF alone."""
    set_cf_of(s, carry, of(s))


@compiled
def set_zf(s, value):
    """Replace ZF alone (CMPXCHG8B, LAR, VERR ...)."""
    set_arithmetic(s, arithmetic(s) & ~S.ZF | value << 6)


@compiled
def set_result(s, result, carry, overflow, adjust):
    """All six: ZF, SF and PF of a result sign-extended from its width, the others as given (0 or 1)."""
    store64(s + S.FLAG_RESULT, result)
    store64(s + S.FLAG_AUX, shl(carry, 63) | shl(carry ^ overflow, 62) | adjust << 3)


def make_setters(width):
    """(after_add, after_sub, after_logic, sign_extend) for an operand width in bits.

    after_add(s, a, b, result) and after_sub take operands as loaded (upper bits beyond the width do not matter) and the
    result with any upper bits; a carry or borrow in is accounted for by the result itself.
    """
    up = 64 - width
    sext = SIGN_EXTEND[width]

    @compiled
    def extend(value):
        return value if sext is None else sext(value)

    @compiled
    def after_add(s, a, b, result):
        carries = (a & b) | ((a | b) & ~result)
        store64(s + S.FLAG_RESULT, extend(result))
        store64(s + S.FLAG_AUX, (shl(carries, up) & CARRIES) | (carries & 8))

    @compiled
    def after_sub(s, a, b, result):
        borrows = (~a & b) | ((~a | b) & result)
        store64(s + S.FLAG_RESULT, extend(result))
        store64(s + S.FLAG_AUX, (shl(borrows, up) & CARRIES) | (borrows & 8))

    @compiled
    def after_logic(s, result):
        store64(s + S.FLAG_RESULT, extend(result))
        store64(s + S.FLAG_AUX, 0)

    return after_add, after_sub, after_logic, extend


SETTERS = {width: make_setters(width) for width in (8, 16, 32, 64)}
