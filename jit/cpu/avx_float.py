"""AVX floating point: the host's instructions on one lane or two, under the guest's MXCSR (floating.py).

dst = f(third, src), or f(src). The result is made in T2 and committed when no exception is raised. Conversions to a
general register and the comparisons that set flags are the SSE handlers; FMA is in fused.py, VCVTPS2PH in half.py.
"""

from collections.abc import Callable

from .. import state as S
from ..build import Group, compiled
from ..machine_code import immediate_copies, machine_code
from ..raw import load8, load64, memcpy, store32
from . import fused, half
from .floating import ENTER, LEAVE, all_masked, begin, finish
from .operand import done, dst, src, third
from .record import IMM
from .sse_convert import narrowing_precision
from .sse_float import ARITHMETIC, DOT_PRODUCTS, ELEMENTS, IMMEDIATE, OTHER, precision
from .vex_operand import CLOBBERS, LANE, XMM, YMM, clear_upper, commit, is_wide
from .wider import matters, settle

group = Group("avx_float", __name__)

UNARY = ("sqrtps", "sqrtpd", "rcpps", "rsqrtps")
# Conversions dst = f(src): what the registers of destination and source are for VEX.L = 0 and 1
CONVERSIONS = {
    "cvtps2pd": ((XMM, XMM), (YMM, XMM)), "cvtdq2pd": ((XMM, XMM), (YMM, XMM)), "cvtph2ps": ((XMM, XMM), (YMM, XMM)),
    "cvtpd2ps": ((XMM, XMM), (XMM, YMM)), "cvtpd2dq": ((XMM, XMM), (XMM, YMM)), "cvttpd2dq": ((XMM, XMM), (XMM, YMM)),
    **dict.fromkeys(("cvtdq2ps", "cvtps2dq", "cvttps2dq"), ((XMM, XMM), (YMM, YMM))),
}  # fmt: skip


def _host(name: str, instruction: str, immediate: bool = False) -> Callable:
    """op(out, a, b, control[, immediate]); the instruction has its sources in register 0 and 1, its result in 0."""
    size = YMM if YMM in instruction else XMM
    middle = immediate_copies(instruction, 4) if immediate else (instruction,)
    lines = (
        f"vmovups ($1), %{size}0", f"vmovups ($2), %{size}1", *ENTER, *middle, *LEAVE, f"vmovups %{size}0, ($0)",
        "vzeroupper",
    )  # fmt: skip
    return machine_code(f"host_{name}_{size}", 5 if immediate else 4, lines, CLOBBERS)


def _packed(narrow, wide):
    """Whose results cannot be tiny, or too large."""

    def handler(s, r):
        result = s + S.T2
        if is_wide(r):
            wide(result, third(r), src(r), begin(s))
        else:
            narrow(result, third(r), src(r), begin(s))
        return commit(s, r, result) if finish(s, r, result, 32, 0) else 0

    return handler


def _of_both_lanes(lane_precision):
    @compiled
    def both(s, a, b):
        return lane_precision(s, a, b) | lane_precision(s, a + LANE, b + LANE)

    return both


def _arithmetic(narrow, wide, lane_precision, elements):
    """Whose results can; `elements` are those of a lane."""
    (bits, count), both = elements, _of_both_lanes(lane_precision)

    def handler(s, r):
        result, a, b, before = s + S.T2, third(r), src(r), load64(s + S.MXCSR)
        if is_wide(r):
            wide(result, a, b, begin(s))
            if finish(s, r, result, bits, 2 * count) == 0:
                return settle(s, before, both(s, a, b)) if matters(s, before) else 0
        else:
            narrow(result, a, b, begin(s))
            if finish(s, r, result, bits, count) == 0:
                return settle(s, before, lane_precision(s, a, b)) if matters(s, before) else 0
        return commit(s, r, result)

    return handler


def _scalar(operation):
    """Whose result cannot be tiny, or too large."""

    def handler(s, r):
        result, d = s + S.T2, dst(r)
        operation(result, third(r), src(r), begin(s))
        if finish(s, r, result, 32, 0) == 0:
            return 0
        memcpy(d, result, LANE)
        clear_upper(d)
        return done(r)

    return handler


def _scalar_arithmetic(operation, element_precision, bits):
    """Whose result can."""

    def handler(s, r):
        result, d, before = s + S.T2, dst(r), load64(s + S.MXCSR)
        operation(result, third(r), src(r), begin(s))
        if finish(s, r, result, bits, 1) == 0:
            return settle(s, before, element_precision(s, third(r), src(r))) if matters(s, before) else 0
        memcpy(d, result, LANE)
        clear_upper(d)
        return done(r)

    return handler


def _with_immediate(narrow, wide):
    def handler(s, r):
        result, imm = s + S.T2, load8(r + IMM)
        if is_wide(r):
            wide(result, third(r), src(r), begin(s), imm)
        else:
            narrow(result, third(r), src(r), begin(s), imm)
        if finish(s, r, result, 32, 0) == 0:
            return 0
        return commit(s, r, result)

    return handler


def _scalar_with_immediate(operation):
    def handler(s, r):
        result, d = s + S.T2, dst(r)
        operation(result, third(r), src(r), begin(s), load8(r + IMM))
        if finish(s, r, result, 32, 0) == 0:
            return 0
        memcpy(d, result, 16)
        clear_upper(d)
        return done(r)

    return handler


_both_lanes = {}
_two_doubles = DOT_PRODUCTS["pd"]
for _stem, _type in (
    (stem, suffix) for table in (ARITHMETIC, OTHER) for stem, types in table.items() for suffix in types
):
    _name, _elements = f"{_stem}{_type}", ELEMENTS[_type]
    _form = "v{} %{r}1, %{r}0" if _name in UNARY else "v{} %{r}1, %{r}0, %{r}0"
    _narrow = _host(_name, _form.format(_name, r=XMM))
    if _type in ("ss", "sd"):
        _handler = _scalar(_narrow)
        if _stem in ARITHMETIC:
            _handler = _scalar_arithmetic(_narrow, precision(_stem, _elements), _elements[0])
    else:
        _wide = _both_lanes[_name] = _host(_name, _form.format(_name, r=YMM))
        _handler = _packed(_narrow, _wide)
        if _stem in ARITHMETIC:
            _handler = _arithmetic(_narrow, _wide, precision(_stem, _elements), _elements)
    group.add(_handler, f"v{_name}")
for _stem, _types in IMMEDIATE.items():
    for _type in _types:
        _name = f"{_stem}{_type}"
        _form = "v{} i, %{r}1, %{r}0" if _name in ("roundps", "roundpd") else "v{} i, %{r}1, %{r}0, %{r}0"
        _narrow = _host(_name, _form.format(_name, r=XMM), immediate=True)
        if _type in ("ss", "sd"):
            group.add(_scalar_with_immediate(_narrow), f"v{_name}")
        else:
            _wide = _host(_name, _form.format(_name, r=YMM), immediate=True)
            group.add(_with_immediate(_narrow, _wide), f"v{_name}")


# Conversions -----


def _convert(narrow, wide):
    """What the instruction does not write of the register it clears."""

    def handler(s, r):
        result, a = s + S.T2, src(r)
        if is_wide(r):
            wide(result, a, a, begin(s))
        else:
            narrow(result, a, a, begin(s))
        if finish(s, r, result, 32, 0) == 0:
            return 0
        memcpy(dst(r), result, 2 * LANE)
        return done(r)

    return handler


def _narrowing(narrow, wide):
    """VCVTPD2PS: two results that may be tiny, or too large, or four."""
    two, four = narrowing_precision(2), narrowing_precision(4)

    def handler(s, r):
        result, a, before = s + S.T2, src(r), load64(s + S.MXCSR)
        if is_wide(r):
            wide(result, a, a, begin(s))
            if finish(s, r, result, 32, 4) == 0:
                return settle(s, before, four(s, a)) if matters(s, before) else 0
        else:
            narrow(result, a, a, begin(s))
            if finish(s, r, result, 32, 2) == 0:
                return settle(s, before, two(s, a)) if matters(s, before) else 0
        memcpy(dst(r), result, 2 * LANE)
        return done(r)

    return handler


def _narrowing_scalar(operation, element_precision):
    def handler(s, r):
        result, d, before = s + S.T2, dst(r), load64(s + S.MXCSR)
        operation(result, third(r), src(r), begin(s))
        if finish(s, r, result, 32, 1) == 0:
            return settle(s, before, element_precision(s, src(r))) if matters(s, before) else 0
        memcpy(d, result, LANE)
        clear_upper(d)
        return done(r)

    return handler


def _host_convert(name: str, to: str, from_: str) -> Callable:
    lines = (f"vmovups ($1), %{from_}0", *ENTER, f"v{name} %{from_}0, %{to}0", *LEAVE, "vmovups %ymm0, ($0)")
    return machine_code(f"host_{name}_{to}_{from_}", 4, (*lines, "vzeroupper"), CLOBBERS)


for _name, _forms in CONVERSIONS.items():
    _narrow, _wide = (_host_convert(_name, *form) for form in _forms)
    group.add((_narrowing if _name == "cvtpd2ps" else _convert)(_narrow, _wide), f"v{_name}")
group.add(_scalar(_host("cvtss2sd", "vcvtss2sd %xmm1, %xmm0, %xmm0")), "vcvtss2sd")
_operation = _host("cvtsd2ss", "vcvtsd2ss %xmm1, %xmm0, %xmm0")
group.add(_narrowing_scalar(_operation, narrowing_precision(1)), "vcvtsd2ss")
for _name in ("cvtsi2ss", "cvtsi2sd"):
    for _suffix, _size in (("d", "l"), ("q", "q")):
        _operation = _host(f"{_name}{_suffix}", f"v{_name}{_size} ($2), %xmm0, %xmm0")
        group.add(_scalar(_operation), f"v{_name}{_suffix}")


def _dot_product(narrow, wide, multiply, add):
    """As sse_float's, whose one lane is `narrow`: exceptions of a step are those of both lanes."""
    product_precision, sum_precision = (_of_both_lanes(precision(stem, ELEMENTS["ps"])) for stem in ("mul", "hadd"))

    def handler(s, r):
        a, b, imm, result = third(r), src(r), load8(r + IMM), s + S.T2
        if is_wide(r) == 0:
            return commit(s, r, result) if narrow(s, r, a, b, imm) else 0
        if not all_masked(s):
            x, y = s + S.T0, s + S.T0 + 32
            memcpy(x, a, 32)
            memcpy(y, b, 32)
            for i in range(8):
                if imm >> 4 + (i & 3) & 1 == 0:
                    store32(x + 4 * i, 0)
                    store32(y + 4 * i, 0)
            before = load64(s + S.MXCSR)
            multiply(result, x, y, begin(s))
            if finish(s, r, result, 32, 8) == 0:
                return settle(s, before, product_precision(s, x, y)) if matters(s, before) else 0
            for _ in range(2):
                before = load64(s + S.MXCSR)
                memcpy(x, result, 2 * LANE)
                add(result, x, x, begin(s))
                if finish(s, r, result, 32, 8) == 0:
                    return settle(s, before, sum_precision(s, x, x)) if matters(s, before) else 0
        wide(result, a, b, begin(s), imm)
        if all_masked(s):
            finish(s, r, result, 32, 8)
        return commit(s, r, result)

    return handler


@group.add
def vdppd(s, r):
    return commit(s, r, s + S.T2) if _two_doubles(s, r, third(r), src(r), load8(r + IMM)) else 0


_wide = _host("dpps", "vdpps i, %ymm1, %ymm0, %ymm0", immediate=True)
group.add(_dot_product(DOT_PRODUCTS["ps"], _wide, _both_lanes["mulps"], _both_lanes["haddps"]), "vdpps")


for _module in (fused, half):
    for _name, _handler in _module.HANDLERS.items():
        group.add(_handler, _name)
