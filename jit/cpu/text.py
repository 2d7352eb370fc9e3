"""SSE4.2 string comparisons PCMPxSTRx, by the host's own; offered where it has them.

dst and src are the two strings, IMM the control; results go to ECX or XMM0, and to the flags. The explicit lengths are
RAX and RDX with REX.W or VEX.W, else EAX and EDX.
"""

from collections.abc import Callable

from .. import state as S
from ..build import Group, compiled
from ..machine_code import immediate_copies, machine_code
from ..raw import load8, load64, memcpy, sext32, store64, zext32
from .flags import set_arithmetic
from .operand import done, dst, src
from .record import IMM, OSIZE
from .vex_operand import clear_upper

group = Group("text", __name__)

LONGEST = 16  # no string is longer, in elements; the sign of a length does not matter
MASK, INDEX, FLAGS = 0, 16, 24  # of the result in T2


def _host(name: str) -> Callable:
    """op(result, first, second, lengths, imm)."""
    copies = [
        line.replace("%rax", "%rsi").replace("%rdx", "%rdi") for line in immediate_copies(f"{name} i, %xmm2, %xmm1", 4)
    ]
    lines = (
        "movdqu ($1), %xmm1", "movdqu ($2), %xmm2", "movq ($3), %rax", "movq 8($3), %rdx", *copies,
        "movdqu %xmm0, ($0)", f"movq %rcx, {INDEX}($0)", "lahf", "seto %al", "movzwl %ax, %eax",
        f"movq %rax, {FLAGS}($0)",
    )  # fmt: skip
    return machine_code(f"host_{name}", 5, lines, ("xmm0", "xmm1", "xmm2", "rax", "rcx", "rdx", "rsi", "rdi"))


@compiled
def clipped(value, size):
    """A length of the operand size, cut to what the instruction tells apart."""
    length = value if size == 8 else sext32(value)
    return LONGEST if length > LONGEST or length < -LONGEST else length


def _compare(operation):
    """f(s, r): the result to T2, the flags to where they belong."""

    def body(s, r):
        size, lengths = load8(r + OSIZE), s + S.T3
        store64(lengths, clipped(load64(s + S.RAX), size))
        store64(lengths + 8, clipped(load64(s + S.RDX), size))
        operation(s + S.T2, dst(r), src(r), lengths, load8(r + IMM))
        flags = load64(s + S.T2 + FLAGS)
        set_arithmetic(s, flags >> 8 & (S.CF | S.ZF | S.SF) | (S.OF if flags & 1 else 0))

    return compiled(body)


def _index(compare):
    def handler(s, r):
        compare(s, r)
        store64(s + S.RCX, zext32(load64(s + S.T2 + INDEX)))
        return done(r)

    return handler


def _mask(compare, clears):
    def handler(s, r):
        compare(s, r)
        memcpy(s + S.VEC, s + S.T2 + MASK, 16)
        if clears:
            clear_upper(s + S.VEC)
        return done(r)

    return handler


for _kind in ("pcmpestr", "pcmpistr"):
    group.add(_index(_compare(_host(f"{_kind}i"))), f"{_kind}i")
    _body = _compare(_host(f"{_kind}m"))
    group.add(_mask(_body, clears=False), f"{_kind}m")
    group.add(_mask(_body, clears=True), f"v{_kind}m")
