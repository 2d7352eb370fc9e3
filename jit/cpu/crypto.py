"""AES, SHA, carry-less multiplication and Galois-field instructions, by the host's: offered only where it has them.

dst = f(dst, src) on XMM slots, and f(third, src) on one lane or two of a VEX register. An immediate that selects has a
primitive for each choice; one that is XORed into the result is 0 in the primitive.
"""

from collections.abc import Callable

from ..build import Group, compiled
from ..machine_code import machine_code
from ..raw import load8, load32, load64, store32, store64
from .operand import done, dst, src
from .record import IMM
from .sse_move import XMM0
from .vex_integer import by_immediate, three_operands

group = Group("crypto", __name__)

CLOBBERS = ("xmm0", "xmm1", "xmm2")
BYTES = 0x0101010101010101

TWO_OPERANDS = (
    "aesenc", "aesenclast", "aesdec", "aesdeclast", "aesimc", "gf2p8mulb",
    "sha1nexte", "sha1msg1", "sha1msg2", "sha256msg1", "sha256msg2",
)  # fmt: skip


def _host(name: str, text: str) -> Callable:
    """op(d, a, b): xmm1 is a and the result, xmm2 is b."""
    lines = ("movdqu ($1), %xmm1", "movdqu ($2), %xmm2", text, "movdqu %xmm1, ($0)")
    return machine_code(f"host_{name}", 3, lines, CLOBBERS)


def _two_operands(operation):
    def handler(s, r):
        d = dst(r)
        operation(d, d, src(r))
        return done(r)

    return handler


for _name in TWO_OPERANDS:
    _operation = _host(_name, f"{_name} %xmm2, %xmm1")
    group.add(_two_operands(_operation), _name)
    if not _name.startswith("sha"):
        group.add(three_operands(_operation), f"v{_name}")

_rounds = machine_code(
    "host_sha256rnds2",
    4,
    (
        "movdqu ($1), %xmm1",
        "movdqu ($2), %xmm2",
        "movdqu ($3), %xmm0",
        "sha256rnds2 %xmm2, %xmm1",
        "movdqu %xmm1, ($0)",
    ),
    CLOBBERS,
)


@group.add
def sha256rnds2(s, r):
    """XMM0 has the two words of the message and constants."""
    d = dst(r)
    _rounds(d, d, src(r), s + XMM0)
    return done(r)


# With an immediate: f(s, d, a, b, imm) -----

_sha1_rounds = [_host(f"sha1rnds4_{i}", f"sha1rnds4 $${i}, %xmm2, %xmm1") for i in range(4)]
_round0, _round1, _round2, _round3 = _sha1_rounds
_products = [_host(f"pclmulqdq_{i}", f"pclmulqdq $${i}, %xmm2, %xmm1") for i in (0x00, 0x01, 0x10, 0x11)]
_low_low, _high_low, _low_high, _high_high = _products
_key = _host("aeskeygenassist", "aeskeygenassist $$0, %xmm2, %xmm1")


def _sha1rnds4(s, d, a, b, imm):
    function = imm & 3
    if function == 0:
        _round0(d, a, b)
    elif function == 1:
        _round1(d, a, b)
    elif function == 2:
        _round2(d, a, b)
    else:
        _round3(d, a, b)


def _pclmulqdq(s, d, a, b, imm):
    """Bit 0 selects the half of a, bit 4 that of b."""
    if imm & 0x11 == 0:
        _low_low(d, a, b)
    elif imm & 0x11 == 0x01:
        _high_low(d, a, b)
    elif imm & 0x11 == 0x10:
        _low_high(d, a, b)
    else:
        _high_high(d, a, b)


def _aeskeygenassist(s, d, a, b, imm):
    """The round constant goes into the two rotated words."""
    _key(d, a, b)
    store32(d + 4, load32(d + 4) ^ imm)
    store32(d + 12, load32(d + 12) ^ imm)


def _affine(name):
    operation = _host(name, f"{name} $$0, %xmm2, %xmm1")

    def body(s, d, a, b, imm):
        """The immediate is added, that is XORed, to each byte of the product."""
        operation(d, a, b)
        store64(d, load64(d) ^ imm * BYTES)
        store64(d + 8, load64(d + 8) ^ imm * BYTES)

    return body


def _immediate(body):
    def handler(s, r):
        d = dst(r)
        body(s, d, d, src(r), load8(r + IMM))
        return done(r)

    return handler


for _name, _body in (
    ("sha1rnds4", _sha1rnds4),
    ("pclmulqdq", _pclmulqdq),
    ("aeskeygenassist", _aeskeygenassist),
    ("gf2p8affineqb", _affine("gf2p8affineqb")),
    ("gf2p8affineinvqb", _affine("gf2p8affineinvqb")),
):
    _lane = compiled(_body)
    group.add(_immediate(_lane), _name)
    if not _name.startswith("sha"):
        group.add(by_immediate(_lane), f"v{_name}")
