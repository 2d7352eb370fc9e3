"""FMA: dst = third * src + INDEX_PTR, by the host's own instructions under the guest's MXCSR (floating.py)."""

from collections.abc import Callable

from .. import state as S
from ..build import compiled
from ..machine_code import machine_code
from ..raw import load32, load64, memcpy
from .exactness import fused_is_exact
from .floating import PRECISION, begin, finish, is_tiny
from .operand import done, dst, src, third
from .sse_float import ELEMENTS
from .vex_operand import CLOBBERS, XMM, YMM, Handlers, clear_upper, commit, fourth, is_wide
from .wider import in_range, matters, settle

HANDLERS = Handlers()

NEGATIVE = {"fmadd": 0, "fmsub": 1, "fnmadd": 1, "fnmsub": 0}  # whether the product or the last operand is negated
ALTERNATING = {"fmaddsub": ("fmsub", "fmadd"), "fmsubadd": ("fmadd", "fmsub")}  # of even and odd elements
DENORMALS_ARE_ZEROS = 6  # bit of MXCSR
_is_exact = {bits: fused_is_exact(bits) for bits in (32, 64)}


def _host(name: str, size: str) -> Callable:
    """op(out, x, y, z, control)."""
    lines = (
        f"vmovups ($1), %{size}0", f"vmovups ($2), %{size}1", f"vmovups ($3), %{size}2",
        "stmxcsr 4($4)", "ldmxcsr ($4)", f"v{name} %{size}1, %{size}0, %{size}2", "stmxcsr ($4)", "ldmxcsr 4($4)",
        f"vmovups %{size}2, ($0)", "vzeroupper",
    )  # fmt: skip
    return machine_code(f"host_{name}_{size}", 5, lines, CLOBBERS)


def _precision(stem: str, bits: int) -> Callable:
    """f(s, x, y, z): the PE that one element contributes."""
    negated, is_exact, load, sign = NEGATIVE[stem], _is_exact[bits], load64 if bits == 64 else load32, bits - 1
    operation = _host(f"{stem}231{'sd' if bits == 64 else 'ss'}", XMM)

    @compiled
    def element(s, x, y, z):
        result = s + S.T2
        operation(result, x, y, z, begin(s))
        found = in_range(s, is_tiny(load(result), bits))
        if found >= 0:
            return found
        a, b, c = load(x), load(y), load(z)
        negative = (a ^ b ^ c) >> sign & 1 ^ negated
        return 0 if is_exact(a, b, c, negative, load64(s + S.MXCSR) >> DENORMALS_ARE_ZEROS & 1) else PRECISION

    return element


ELEMENT_PRECISION = {(stem, bits): _precision(stem, bits) for stem in NEGATIVE for bits in (32, 64)}


def _of_all(stem: str, bits: int) -> Callable:
    """f(s, x, y, z, count): PE of all elements, when one of them raises overflow or underflow."""
    even, odd = (ELEMENT_PRECISION[name, bits] for name in ALTERNATING.get(stem, (stem, stem)))
    size = bits // 8

    @compiled
    def all_elements(s, x, y, z, count):
        found = 0
        for at in range(0, size * count, 2 * size):
            found |= even(s, x + at, y + at, z + at)
            found |= odd(s, x + at + size, y + at + size, z + at + size)
        return found

    return all_elements


def _packed(narrow, wide, precision, elements):
    bits, count = elements

    def handler(s, r):
        result, x, y, z, before = s + S.T2, third(r), src(r), fourth(r), load64(s + S.MXCSR)
        results = 2 * count if is_wide(r) else count
        if is_wide(r):
            wide(result, x, y, z, begin(s))
        else:
            narrow(result, x, y, z, begin(s))
        if finish(s, r, result, bits, results) == 0:
            return settle(s, before, precision(s, x, y, z, results)) if matters(s, before) else 0
        return commit(s, r, result)

    return handler


def _scalar(operation, precision, bits):
    """The rest of the lane stays as it was in dst."""

    def handler(s, r):
        result, d, before = s + S.T2, dst(r), load64(s + S.MXCSR)
        operation(result, third(r), src(r), fourth(r), begin(s))
        if finish(s, r, result, bits, 1) == 0:
            return settle(s, before, precision(s, third(r), src(r), fourth(r))) if matters(s, before) else 0
        memcpy(d, result, bits // 8)
        clear_upper(d)
        return done(r)

    return handler


for _stem in (*NEGATIVE, *ALTERNATING):
    for _type in ("ps", "pd"):
        _name, _elements = f"{_stem}231{_type}", ELEMENTS[_type]
        _both = _host(_name, XMM), _host(_name, YMM)
        HANDLERS.add(_packed(*_both, _of_all(_stem, _elements[0]), _elements), f"v{_stem}{_type}")
for _stem in NEGATIVE:
    for _type in ("ss", "sd"):
        _bits, _ = ELEMENTS[_type]
        _operation = _host(f"{_stem}231{_type}", XMM)
        HANDLERS.add(_scalar(_operation, ELEMENT_PRECISION[_stem, _bits], _bits), f"v{_stem}{_type}")
