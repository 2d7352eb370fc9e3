"""Conversions between floating-point and integer formats on XMM slots and general registers.

The suffix d or q of conversions from and to a general register is that register's size, 32 or 64 bits.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load64, memcpy, store64
from .floating import begin, finish, floating
from .operand import done, dst, src
from .sse_float import two_operands
from .wider import NARROW, inexact, matters, settle

group = Group("sse_convert", __name__)

# dst = f(src), or its low element; those to a narrower format may overflow or underflow: name -> elements
VECTOR = ("cvtps2pd", "cvtss2sd", "cvtdq2ps", "cvtdq2pd", "cvtps2dq", "cvtpd2dq", "cvttps2dq", "cvttpd2dq")
NARROWING = {"cvtpd2ps": 2, "cvtsd2ss": 1}
FROM_GENERAL = ("cvtsi2ss", "cvtsi2sd")
TO_GENERAL = ("cvtss2si", "cvtsd2si", "cvttss2si", "cvttsd2si")
SIZES = {"d": ("l", "eax"), "q": ("q", "rax")}


_element_precision = inexact(floating("host_narrow", "cvtsd2ss %xmm1, %xmm0"), NARROW, 32)


def narrowing_precision(count):
    """f(s, a): PE of `count` doubles when one of them raises overflow or underflow as a single."""

    @compiled
    def all_elements(s, a):
        found = 0
        for i in range(count):
            found |= _element_precision(s, s + S.T2 + 32, a + 8 * i)
        return found

    return all_elements


def _narrowing(operation, count):
    precision = narrowing_precision(count)

    def handler(s, r):
        d, before = dst(r), load64(s + S.MXCSR)
        operation(s + S.T2, d, src(r), begin(s))
        if finish(s, r, s + S.T2, 32, count) == 0:
            return settle(s, before, precision(s, src(r))) if matters(s, before) else 0
        memcpy(d, s + S.T2, 16)
        return done(r)

    return handler


def _to_general(operation):
    def handler(s, r):
        operation(s + S.T2, s + S.T2, src(r), begin(s))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        store64(dst(r), load64(s + S.T2))
        return done(r)

    return handler


for _name in VECTOR:
    group.add(two_operands(floating(f"host_{_name}", f"{_name} %xmm1, %xmm0")), _name)
for _name, _count in NARROWING.items():
    group.add(_narrowing(floating(f"host_{_name}", f"{_name} %xmm1, %xmm0"), _count), _name)
for _size, (_suffix, _register) in SIZES.items():
    for _name in FROM_GENERAL:
        _operation = floating(f"host_{_name}{_size}", f"{_name}{_suffix} ($2), %xmm0")
        group.add(two_operands(_operation), f"{_name}{_size}")
    for _name in TO_GENERAL:
        _operation = floating(f"host_{_name}{_size}", f"{_name} %xmm1, %{_register}", result=("movq %rax, ($0)",))
        group.add(_to_general(_operation), f"{_name}{_size}")
