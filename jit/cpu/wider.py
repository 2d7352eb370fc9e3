"""PE beside an unmasked overflow or underflow of SSE instructions.

Such an exception tells of a result that is rounded to the format's precision but not to its range, so it is inexact or
not as that result is (SDM vol. 1, 4.9.1.4 to 4.9.1.6). The x87 unit computes it: its precision can be the format's, and
its exponent is wider. This is done once an exception is known to be raised, an element at a time.
"""

from collections.abc import Callable

from .. import state as S
from ..build import compiled
from ..machine_code import machine_code
from ..raw import load16, load32, load64, store16, store64
from .floating import BEFORE, FLAGS, MASK_SHIFT, OVERFLOW, PRECISION, UNDERFLOW, begin, is_tiny

BY_PRECISION = {32: ("s", 0x3F), 64: ("l", 0x23F)}  # operand size of the mnemonic, control word: all masked


def _unit(name: str, lines: tuple[str, ...]) -> Callable:
    """name(words, a, b): words are {u16 control word, the host's meanwhile, status word}."""
    before, after = ("fnstcw 2($0)", "fnclex", "fldcw ($0)"), ("fnstsw 4($0)", "fstp %st(0)", "fnclex", "fldcw 2($0)")
    return machine_code(name, 3, (*before, *lines, *after), ())


def _operation(stem: str, bits: int) -> Callable:
    size, _ = BY_PRECISION[bits]
    return _unit(f"wider_{stem}{bits}", (f"fld{size} ($1)", f"f{stem}{size} ($2)"))


OPERATIONS = {(stem, bits): _operation(stem, bits) for stem in ("add", "sub", "mul", "div") for bits in (32, 64)}
NARROW = _unit("wider_narrow", ("fldl ($2)", "fld1", "fmulp"))  # a double in single precision


@compiled
def in_range(s, tiny):
    """PE of one element that has just been made, -1 if it raises overflow or underflow and this tells nothing."""
    flags, raised = load32(s + S.T3) & FLAGS | (UNDERFLOW if tiny else 0), ~(load64(s + S.MXCSR) >> MASK_SHIFT)
    return -1 if flags & raised & (OVERFLOW | UNDERFLOW) else flags & PRECISION


def inexact(scalar: Callable, unit: Callable, bits: int) -> Callable:
    """f(s, a, b): the PE that one element contributes; `scalar` is the SSE instruction, `unit` the same here."""
    control = BY_PRECISION[bits][1]

    @compiled
    def element(s, a, b):
        result, words = s + S.T2, s + S.T3 + 16
        scalar(result, a, b, begin(s))
        found = in_range(s, is_tiny(load64(result) if bits == 64 else load32(result), bits))
        if found >= 0:
            return found
        store16(words, control | (load64(s + S.MXCSR) >> 13 & 3) << 10)
        unit(words, a, b)
        return load16(words + 4) & PRECISION

    return element


@compiled
def matters(s, before):
    """Whether the exceptions just raised, `before` being MXCSR then, leave PE to be found out."""
    raised = ~(before >> MASK_SHIFT) & FLAGS
    return 1 if load32(s + S.T3) & FLAGS & raised & BEFORE == 0 and raised & (OVERFLOW | UNDERFLOW) else 0


@compiled
def settle(s, before, precision):
    """PE as it was before, or as the elements say."""
    store64(s + S.MXCSR, load64(s + S.MXCSR) & ~PRECISION | before & PRECISION | precision)
    return 0
