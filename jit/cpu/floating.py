"""SSE floating point on the host's own unit: one instruction under the guest's MXCSR, and what became of it.

The instruction runs with every exception masked. Its flags then tell which it detected, and whether the guest wants one
of them raised, before anything is committed (SDM vol. 1, 11.5). Two things differ when an exception is unmasked: one
that is found before the operation keeps the flags of those found after it from being set, in all elements; and
underflow means that a result is tiny, whether exact or not, and is not flushed to zero (vol. 1, 4.9.1.5, 10.2.3.3).
What PE is beside an unmasked overflow or underflow, wider.py finds out.

A primitive made here is op(out, a, b, control) over addresses, control being {u32 MXCSR, u32 the host's meanwhile}.
"""

from collections.abc import Callable, Sequence

from .. import state as S
from ..build import compiled
from ..machine_code import immediate_copies, machine_code
from ..raw import load32, load64, lshr, shl, store32, store64
from .operand import fault

INVALID, DENORMAL, ZERO_DIVIDE, OVERFLOW, UNDERFLOW, PRECISION = (1 << bit for bit in range(6))
FLAGS, BEFORE = 0x3F, INVALID | DENORMAL | ZERO_DIVIDE
MASKS, MASK_SHIFT, FLUSH_TO_ZERO = 0x1F80, 7, 1 << 15

CLOBBERS = ("xmm0", "xmm1", "rax", "rdx")
ENTER, LEAVE = ("stmxcsr 4($3)", "ldmxcsr ($3)"), ("stmxcsr ($3)", "ldmxcsr 4($3)")


OPERANDS, RESULT = ("movups ($1), %xmm0", "movups ($2), %xmm1"), ("movups %xmm0, ($0)",)


def floating(
    name: str, instruction: str, operands: Sequence[str] = OPERANDS, result: Sequence[str] = RESULT
) -> Callable:
    """The primitive for an instruction on xmm0 and xmm1 with the result in xmm0; `operands` and `result` move them."""
    return machine_code(name, 4, (*operands, *ENTER, instruction, *LEAVE, *result), CLOBBERS)


def by_immediate(name: str, instruction: str) -> Callable:
    """The same with a fifth argument, the immediate, which the instruction's text has as `i`: 256 copies of it."""
    copies = immediate_copies(instruction, 4)
    return machine_code(name, 5, (*OPERANDS, *ENTER, *copies, *LEAVE, *RESULT), CLOBBERS)


@compiled
def begin(s):
    """The control words for one instruction, in T3: their address."""
    mxcsr, control = load64(s + S.MXCSR), s + S.T3
    keep = ~FLAGS if mxcsr & UNDERFLOW << MASK_SHIFT else ~(FLAGS | FLUSH_TO_ZERO)
    store32(control, mxcsr & keep | MASKS)
    return control


@compiled
def all_masked(s):
    return 1 if load64(s + S.MXCSR) & MASKS == MASKS else 0


@compiled
def is_tiny(value, bits):
    """Whether a result is denormal; it was not 0 before rounding either, or UNDERFLOW would tell."""
    magnitude = shl(value, 65 - bits)
    return 1 if magnitude != 0 and lshr(magnitude, 53 if bits == 64 else 56) == 0 else 0


@compiled
def underflows(result, bits, count):
    """Whether one of `count` elements of `bits` is tiny."""
    for i in range(count):
        value = load64(result + 8 * i) if bits == 64 else load32(result + 4 * i)
        if is_tiny(value, bits):
            return 1
    return 0


@compiled
def finish(s, r, result, bits, count):
    """1 with the flags in MXCSR: the result may be committed; 0 with #XM raised, #UD without CR4.OSXMMEXCPT.

    bits, count: the elements at `result` that the operation may have made tiny.
    """
    mxcsr, flags = load64(s + S.MXCSR), load32(s + S.T3) & FLAGS
    if mxcsr & MASKS == MASKS:
        store64(s + S.MXCSR, mxcsr | flags)
        return 1
    raised = ~(mxcsr >> MASK_SHIFT) & FLAGS
    if flags & raised & BEFORE:
        flags &= BEFORE
    elif raised & UNDERFLOW and underflows(result, bits, count):
        flags |= UNDERFLOW
    store64(s + S.MXCSR, mxcsr | flags)
    if flags & raised:
        return fault(s, r, S.XM if load64(s + S.CR4) & S.CR4_OSXMMEXCPT else S.UD, 0, 0)
    return 1
