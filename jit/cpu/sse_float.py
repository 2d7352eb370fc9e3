"""SSE to SSE4.1 floating-point arithmetic and comparison: dst = f(dst, src) on XMM slots, by the SDM's names."""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load32, load64, memcpy, memset
from .flags import set_arithmetic
from .floating import all_masked, begin, by_immediate, finish, floating
from .operand import done, dst, src
from .record import IMM
from .wider import OPERATIONS, inexact, matters, settle

group = Group("sse_float", __name__)

ALL, PACKED, SINGLE = ("ps", "pd", "ss", "sd"), ("ps", "pd"), ("ps", "ss")
ELEMENTS = {"ps": (32, 4), "pd": (64, 2), "ss": (32, 1), "sd": (64, 1)}  # bits, how many

# Instruction -> its types. The results of the first may overflow or be tiny; those of the others not.
ARITHMETIC = {"add": ALL, "mul": ALL, "sub": ALL, "div": ALL, "addsub": PACKED, "hadd": PACKED, "hsub": PACKED}
OTHER = {"sqrt": ALL, "min": ALL, "max": ALL, "rcp": SINGLE, "rsqrt": SINGLE}
IMMEDIATE = {"cmp": ALL, "round": ALL}
COMPARE = ("comiss", "comisd", "ucomiss", "ucomisd")


def two_operands(operation):
    """dst = f(dst, src), or f(src), whose results cannot be tiny nor too large."""

    def handler(s, r):
        d = dst(r)
        operation(s + S.T2, d, src(r), begin(s))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        memcpy(d, s + S.T2, 16)
        return done(r)

    return handler


def precision(stem, elements):
    """f(s, a, b): PE of all elements when one of them raises overflow or underflow."""
    bits, count = elements
    size, half, across = bits // 8, count // 2, stem[0] == "h"
    even = _ELEMENTS[{"addsub": "sub", "hadd": "add", "hsub": "sub"}.get(stem, stem), bits]
    odd = _ELEMENTS["add", bits] if stem == "addsub" else even

    @compiled
    def all_elements(s, a, b):
        found = 0
        for i in range(count):
            x, y = a + size * i, b + size * i
            if across:
                x = a + 2 * size * i if i < half else b + 2 * size * (i - half)
                y = x + size
            found |= odd(s, x, y) if i & 1 else even(s, x, y)
        return found

    return all_elements


def _arithmetic(operation, element_precision, elements):
    """Whose results may be tiny, or too large."""
    bits, count = elements

    def handler(s, r):
        d, before = dst(r), load64(s + S.MXCSR)
        operation(s + S.T2, d, src(r), begin(s))
        if finish(s, r, s + S.T2, bits, count) == 0:
            return settle(s, before, element_precision(s, d, src(r))) if matters(s, before) else 0
        memcpy(d, s + S.T2, 16)
        return done(r)

    return handler


def _with_immediate(operation):
    def handler(s, r):
        d = dst(r)
        operation(s + S.T2, d, src(r), begin(s), load8(r + IMM))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        memcpy(d, s + S.T2, 16)
        return done(r)

    return handler


def _dot_product(operation, multiply, add, elements):
    """f(s, r, x, y, imm) -> 1 with the dot product in T2, or 0 with #XM raised.

    With exceptions unmasked, products and sums are made one after the other: each may raise its own.
    """
    bits, count = elements
    size, sums = bits // 8, count // 2
    product_precision, sum_precision = precision("mul", elements), precision("hadd", elements)

    def lane(s, r, x, y, imm):
        a, b, result = s + S.T2 + 16, s + S.T2 + 32, s + S.T2
        if not all_masked(s):
            memcpy(a, x, 16)
            memcpy(b, y, 16)
            for i in range(count):
                if imm >> 4 + i & 1 == 0:
                    memset(a + size * i, 0, size)
                    memset(b + size * i, 0, size)
            before = load64(s + S.MXCSR)
            multiply(result, a, b, begin(s))
            if finish(s, r, result, bits, count) == 0:
                return settle(s, before, product_precision(s, a, b)) if matters(s, before) else 0
            for _ in range(sums):
                before = load64(s + S.MXCSR)
                memcpy(a, result, 16)
                add(result, a, a, begin(s))
                if finish(s, r, result, bits, count) == 0:
                    return settle(s, before, sum_precision(s, a, a)) if matters(s, before) else 0
        operation(result, x, y, begin(s), imm)
        if all_masked(s):
            finish(s, r, result, bits, count)
        return 1

    return compiled(lane)


def _by_dot_product(lane):
    def handler(s, r):
        d = dst(r)
        if lane(s, r, d, src(r), load8(r + IMM)) == 0:
            return 0
        memcpy(d, s + S.T2, 16)
        return done(r)

    return handler


def _compare(operation):
    """ZF, PF and CF by the order of the operands; the other flags are cleared."""

    def handler(s, r):
        operation(s + S.T2, dst(r), src(r), begin(s))
        if finish(s, r, s + S.T2, 32, 0) == 0:
            return 0
        set_arithmetic(s, load32(s + S.T2) & (S.ZF | S.PF | S.CF))
        return done(r)

    return handler


_operations = {}
DOT_PRODUCTS = {}
for _table in (ARITHMETIC, OTHER):
    for _name in (f"{stem}{suffix}" for stem, types in _table.items() for suffix in types):
        _operations[_name] = floating(f"host_{_name}", f"{_name} %xmm1, %xmm0")
_ELEMENTS = {
    (stem, bits): inexact(_operations[f"{stem}{'ss' if bits == 32 else 'sd'}"], unit, bits)
    for (stem, bits), unit in OPERATIONS.items()
}
for _stem, _types in ARITHMETIC.items():
    for _type in _types:
        _parts = _operations[f"{_stem}{_type}"], precision(_stem, ELEMENTS[_type]), ELEMENTS[_type]
        group.add(_arithmetic(*_parts), f"{_stem}{_type}")
for _name in (f"{stem}{suffix}" for stem, types in OTHER.items() for suffix in types):
    group.add(two_operands(_operations[_name]), _name)
for _name in (f"{stem}{suffix}" for stem, types in IMMEDIATE.items() for suffix in types):
    group.add(_with_immediate(by_immediate(f"host_{_name}", f"{_name} i, %xmm1, %xmm0")), _name)
for _type in PACKED:
    _operation = by_immediate(f"host_dp{_type}", f"dp{_type} i, %xmm1, %xmm0")
    _steps = _operations[f"mul{_type}"], _operations[f"hadd{_type}"]
    DOT_PRODUCTS[_type] = _dot_product(_operation, *_steps, ELEMENTS[_type])
    group.add(_by_dot_product(DOT_PRODUCTS[_type]), f"dp{_type}")
for _name in COMPARE:
    _flags = ("lahf", "movzbl %ah, %eax", "movl %eax, ($0)")  # no other instruction between writes flags
    group.add(_compare(floating(f"host_{_name}", f"{_name} %xmm1, %xmm0", result=_flags)), _name)
