"""AVX floating point, FMA and F16C: the host's instructions on one lane or two, under the guest's MXCSR (floating.py).

dst = f(third, src), or f(src); FMA: dst = third * src + INDEX_PTR. The result is made in T2 and committed when no
exception is raised. Conversions to a general register and the comparisons that set flags are the SSE handlers.
"""

from collections.abc import Callable

from .. import state as S
from ..build import Group, compiled
from ..machine_code import immediate_copies, machine_code
from ..raw import load8, load16, load32, load64, memcpy, store32
from .floating import ENTER, LEAVE, MASK_SHIFT, UNDERFLOW, all_masked, begin, finish
from .operand import done, dst, src, third
from .record import IMM
from .sse_float import ARITHMETIC, DOT_PRODUCTS, ELEMENTS, IMMEDIATE, OTHER
from .vex_operand import clear_upper, fourth, is_wide

group = Group("avx_float", __name__)

CLOBBERS = (*(f"xmm{n}" for n in range(16)), "rax", "rdx")  # and their upper halves with them
XMM, YMM = "xmm", "ymm"
UNARY = ("sqrtps", "sqrtpd", "rcpps", "rsqrtps")
# Conversions dst = f(src): what the registers of destination and source are for VEX.L = 0 and 1
CONVERSIONS = {
    "cvtps2pd": ((XMM, XMM), (YMM, XMM)), "cvtdq2pd": ((XMM, XMM), (YMM, XMM)), "cvtph2ps": ((XMM, XMM), (YMM, XMM)),
    "cvtpd2ps": ((XMM, XMM), (XMM, YMM)), "cvtpd2dq": ((XMM, XMM), (XMM, YMM)), "cvttpd2dq": ((XMM, XMM), (XMM, YMM)),
    **dict.fromkeys(("cvtdq2ps", "cvtps2dq", "cvttps2dq"), ((XMM, XMM), (YMM, YMM))),
}  # fmt: skip
SCALAR_CONVERSIONS = {"cvtss2sd": 0, "cvtsd2ss": 1}  # how many results may be tiny
FMA = ("fmadd", "fmsub", "fnmadd", "fnmsub")
ALTERNATING = ("fmaddsub", "fmsubadd")


def _host(name: str, instruction: str, immediate: bool = False) -> Callable:
    """op(out, a, b, control[, immediate]); the instruction has its sources in register 0 and 1, its result in 0."""
    size = YMM if YMM in instruction else XMM
    middle = immediate_copies(instruction, 4) if immediate else (instruction,)
    lines = (
        f"vmovups ($1), %{size}0", f"vmovups ($2), %{size}1", *ENTER, *middle, *LEAVE, f"vmovups %{size}0, ($0)",
        "vzeroupper",
    )  # fmt: skip
    return machine_code(f"host_{name}_{size}", 5 if immediate else 4, lines, CLOBBERS)


@compiled
def commit(s, r, result):
    """The result into the destination register."""
    d = dst(r)
    if is_wide(r):
        memcpy(d, result, 32)
    else:
        memcpy(d, result, 16)
        clear_upper(d)
    return done(r)


def _packed(narrow, wide, bits, count):
    """`count`: elements of the result in one lane that may be tiny."""

    def handler(s, r):
        result = s + S.T2
        if is_wide(r):
            wide(result, third(r), src(r), begin(s))
            if finish(s, r, result, bits, 2 * count) == 0:
                return 0
        else:
            narrow(result, third(r), src(r), begin(s))
            if finish(s, r, result, bits, count) == 0:
                return 0
        return commit(s, r, result)

    return handler


def _scalar(operation, bits, count):
    def handler(s, r):
        result, d = s + S.T2, dst(r)
        operation(result, third(r), src(r), begin(s))
        if finish(s, r, result, bits, count) == 0:
            return 0
        memcpy(d, result, 16)
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
for _tiny, _table in ((True, ARITHMETIC), (False, OTHER)):
    for _name, _type in ((f"{stem}{suffix}", suffix) for stem, types in _table.items() for suffix in types):
        _bits, _count = ELEMENTS[_type] if _tiny else (32, 0)
        _form = "v{} %{r}1, %{r}0" if _name in UNARY else "v{} %{r}1, %{r}0, %{r}0"
        _narrow = _host(_name, _form.format(_name, r=XMM))
        if _type in ("ss", "sd"):
            group.add(_scalar(_narrow, _bits, _count), f"v{_name}")
        else:
            _both_lanes[_name] = _host(_name, _form.format(_name, r=YMM))
            group.add(_packed(_narrow, _both_lanes[_name], _bits, _count), f"v{_name}")
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


def _convert(narrow, wide, count):
    """The lane count of the result is the instruction's own affair: what it does not write it clears."""

    def handler(s, r):
        result, a, d = s + S.T2, src(r), dst(r)
        if is_wide(r):
            wide(result, a, a, begin(s))
            if finish(s, r, result, 32, 2 * count) == 0:
                return 0
        else:
            narrow(result, a, a, begin(s))
            if finish(s, r, result, 32, count) == 0:
                return 0
        memcpy(d, result, 32)
        return done(r)

    return handler


def _host_convert(name: str, to: str, from_: str) -> Callable:
    lines = (f"vmovups ($1), %{from_}0", *ENTER, f"v{name} %{from_}0, %{to}0", *LEAVE, "vmovups %ymm0, ($0)")
    return machine_code(f"host_{name}_{to}_{from_}", 4, (*lines, "vzeroupper"), CLOBBERS)


for _name, _forms in CONVERSIONS.items():
    _narrow, _wide = (_host_convert(_name, *form) for form in _forms)
    group.add(_convert(_narrow, _wide, 2 if _name == "cvtpd2ps" else 0), f"v{_name}")
for _name, _count in SCALAR_CONVERSIONS.items():
    group.add(_scalar(_host(_name, f"v{_name} %xmm1, %xmm0, %xmm0"), 32, _count), f"v{_name}")
for _name in ("cvtsi2ss", "cvtsi2sd"):
    for _suffix, _size in (("d", "l"), ("q", "q")):
        _operation = _host(f"{_name}{_suffix}", f"v{_name}{_size} ($2), %xmm0, %xmm0")
        group.add(_scalar(_operation, 32, 0), f"v{_name}{_suffix}")


@compiled
def tiny_halves(result, count):
    """Whether one of `count` half-precision numbers is denormal."""
    for i in range(count):
        half = load16(result + 2 * i)
        if half & 0x7FFF != 0 and half & 0x7C00 == 0:
            return 1
    return 0


def _to_half(narrow, wide):
    """VCVTPS2PH: to the lower half of a register, whose rest is cleared, or to a memory operand's slot."""

    def handler(s, r):
        result, imm, count, d = s + S.T2, load8(r + IMM), 8 if is_wide(r) else 4, dst(r)
        control = begin(s)
        if is_wide(r):
            wide(result, src(r), src(r), control, imm)
        else:
            narrow(result, src(r), src(r), control, imm)
        if load64(s + S.MXCSR) & UNDERFLOW << MASK_SHIFT == 0 and tiny_halves(result, count):
            store32(control, load32(control) | UNDERFLOW)  # unmasked: whether exact or not
        if finish(s, r, result, 32, 0) == 0:
            return 0
        memcpy(d, result, 16)
        clear_upper(d)
        return done(r)

    return handler


_to_half_lines = ("vmovups ($1), %{r}0", *ENTER, *immediate_copies("vcvtps2ph i, %{r}0, %xmm0", 4), *LEAVE)
_narrow, _wide = (
    machine_code(
        f"host_cvtps2ph_{size}",
        5,
        (*(line.replace("{r}", size) for line in _to_half_lines), "vmovups %xmm0, ($0)", "vzeroupper"),
        CLOBBERS,
    )
    for size in (XMM, YMM)
)
group.add(_to_half(_narrow, _wide), "vcvtps2ph")


def _dot_product(narrow, wide, multiply, add):
    """As sse_float's, whose one lane is `narrow`: exceptions of a step are those of both lanes."""

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
            multiply(result, x, y, begin(s))
            if finish(s, r, result, 32, 8) == 0:
                return 0
            for _ in range(2):
                add(result, result, result, begin(s))
                if finish(s, r, result, 32, 8) == 0:
                    return 0
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


# Fused multiply-add -----


def _host_fma(name: str, size: str) -> Callable:
    lines = (
        f"vmovups ($1), %{size}0", f"vmovups ($2), %{size}1", f"vmovups ($3), %{size}2",
        "stmxcsr 4($4)", "ldmxcsr ($4)", f"v{name} %{size}1, %{size}0, %{size}2", "stmxcsr ($4)", "ldmxcsr 4($4)",
        f"vmovups %{size}2, ($0)", "vzeroupper",
    )  # fmt: skip
    return machine_code(f"host_{name}_{size}", 5, lines, CLOBBERS)


def _fma(narrow, wide, bits, count):
    def handler(s, r):
        result = s + S.T2
        if is_wide(r):
            wide(result, third(r), src(r), fourth(r), begin(s))
            if finish(s, r, result, bits, 2 * count) == 0:
                return 0
        else:
            narrow(result, third(r), src(r), fourth(r), begin(s))
            if finish(s, r, result, bits, count) == 0:
                return 0
        return commit(s, r, result)

    return handler


def _fma_scalar(operation, bits):
    """The rest of the lane stays as it was in dst."""

    def handler(s, r):
        result, d = s + S.T2, dst(r)
        operation(result, third(r), src(r), fourth(r), begin(s))
        if finish(s, r, result, bits, 1) == 0:
            return 0
        memcpy(d, result, bits // 8)
        clear_upper(d)
        return done(r)

    return handler


for _stem in (*FMA, *ALTERNATING):
    for _type in ("ps", "pd"):
        _name = f"{_stem}231{_type}"
        _bits, _count = ELEMENTS[_type]
        group.add(_fma(_host_fma(_name, XMM), _host_fma(_name, YMM), _bits, _count), f"v{_stem}{_type}")
for _stem in FMA:
    for _type in ("ss", "sd"):
        _bits, _ = ELEMENTS[_type]
        group.add(_fma_scalar(_host_fma(f"{_stem}231{_type}", XMM), _bits), f"v{_stem}{_type}")
