"""Integer handlers against the host CPU, form by form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import alu, bits, move, muldiv, shift

from .compare import Form, by_handler, check, contexts, is_followed, missing_features
from .encode import encode

ALL, WORDS, LONG = (8, 16, 32, 64), (16, 32, 64), (32, 64)
RAX, RCX, RDX, RBX, RSI, R8 = 0, 1, 2, 3, 6, 8
CF, PF, AF, ZF, SF, OF = S.CF, S.PF, S.AF, S.ZF, S.SF, S.OF

# Flags that the SDM calls undefined, by mnemonic (vol. 2, "Flags Affected").
UNDEFINED = {
    "and or xor test andn": AF,
    "rol ror rcl rcr": OF,  # for counts other than 1
    "shl shr sar shld shrd": OF | AF | CF,  # OF: counts other than 1; CF: counts beyond the operand's width
    "mul imul imul2_ imul3_": SF | ZF | AF | PF,
    "div idiv": CF | OF | SF | ZF | AF | PF,
    "bt bts btr btc": OF | SF | AF | PF,
    "bsf bsr": CF | OF | SF | AF | PF,
    "tzcnt lzcnt": OF | SF | PF | AF,
    "blsi blsr blsmsk": AF | PF,
    "bextr": AF | SF | PF,
    "bzhi": AF | PF,
}

# mnemonic, opcode with ModRM (rm = rbx, reg = rsi, vvvv = r8), dst, src, third, widths
ROTATES_AND_SHIFTS = ("rol", "ror", "rcl", "rcr", "shl", "shr", "shl", "sar")
RM, REG, VVVV, CL, IMM = "rbx", "rsi", "r8", "rcx", "imm"
TABLE = [
    *(
        (name, f"{8 * n + 1:02X} /r", RM, REG, "", ALL)
        for n, name in enumerate(["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"])
    ),
    ("test", "85 /r", RM, REG, "", ALL),
    *((name, f"F7 /{n}", RM, "", "", ALL) for n, name in ((2, "not"), (3, "neg"))),
    *((name, f"FF /{n}", RM, "", "", ALL) for n, name in ((0, "inc"), (1, "dec"))),
    *((name, f"D3 /{n}", RM, CL, "", ALL) for n, name in enumerate(ROTATES_AND_SHIFTS)),
    ("shld", "0F A5 /r", RM, REG, CL, WORDS),
    ("shrd", "0F AD /r", RM, REG, CL, WORDS),
    ("shlx", "VEX.66.0F38 F7 /r", REG, RM, VVVV, LONG),
    ("sarx", "VEX.F3.0F38 F7 /r", REG, RM, VVVV, LONG),
    ("shrx", "VEX.F2.0F38 F7 /r", REG, RM, VVVV, LONG),
    *((name, f"F7 /{n}", "", RM, "", ALL) for n, name in ((4, "mul"), (5, "imul"), (6, "div"), (7, "idiv"))),
    ("imul2_", "0F AF /r", REG, RM, "", WORDS),
    ("mulx", "VEX.F2.0F38 F6 /r", REG, RM, VVVV, LONG),
    ("adcx", "66 0F 38 F6 /r", REG, RM, "", LONG),
    ("adox", "F3 0F 38 F6 /r", REG, RM, "", LONG),
    ("mov", "89 /r", RM, REG, "", ALL),
    ("xchg", "87 /r", RM, REG, "", ALL),
    ("xadd", "0F C1 /r", RM, REG, "", ALL),
    ("cmpxchg", "0F B1 /r", RM, REG, "", ALL),
    ("bswap", "0F CB", RM, "", "", WORDS),
    ("cbw", "98", "", "", "", WORDS),
    ("cwd", "99", "", "", "", WORDS),
    ("bt", "0F A3 /r", RM, REG, "", WORDS),
    ("bts", "0F AB /r", RM, REG, "", WORDS),
    ("btr", "0F B3 /r", RM, REG, "", WORDS),
    ("btc", "0F BB /r", RM, REG, "", WORDS),
    ("bsf", "0F BC /r", REG, RM, "", WORDS),
    ("bsr", "0F BD /r", REG, RM, "", WORDS),
    ("tzcnt", "F3 0F BC /r", REG, RM, "", WORDS),
    ("lzcnt", "F3 0F BD /r", REG, RM, "", WORDS),
    ("popcnt", "F3 0F B8 /r", REG, RM, "", WORDS),
    ("andn", "VEX.NP.0F38 F2 /r", REG, RM, VVVV, LONG),
    ("bextr", "VEX.NP.0F38 F7 /r", REG, RM, VVVV, LONG),
    ("bzhi", "VEX.NP.0F38 F5 /r", REG, RM, VVVV, LONG),
    ("blsr", "VEX.NP.0F38 F3 /1", VVVV, RM, "", LONG),
    ("blsmsk", "VEX.NP.0F38 F3 /2", VVVV, RM, "", LONG),
    ("blsi", "VEX.NP.0F38 F3 /3", VVVV, RM, "", LONG),
    ("pdep", "VEX.F2.0F38 F5 /r", REG, RM, VVVV, LONG),
    ("pext", "VEX.F3.0F38 F5 /r", REG, RM, VVVV, LONG),
]
NO_OPERANDS = {"lahf": "9F", "sahf": "9E", "clc": "F8", "stc": "F9", "cmc": "F5", "cld": "FC", "std": "FD", "nop": "90"}


# Destinations that the SDM leaves open: BSWAP of 16 bits, the upper half where a 32-bit destination is not written
VAGUE = {"bswap16", "bsf32", "bsr32", "bsf16", "bsr16", "bsf64", "bsr64", "cmpxchg32"}


def undefined(mnemonic: str) -> int:
    return next((flags for names, flags in UNDEFINED.items() if mnemonic in names.split()), 0)


def forms() -> Iterator[Form]:
    for mnemonic, notation, dst, src, third, widths in TABLE:
        for width in widths:
            code = encode(notation, width, reg=RSI, rm=RBX, vvvv=R8)
            yield Form(f"{mnemonic}{width}", code, dst, src, third, undefined=undefined(mnemonic))
    for name, opcode in NO_OPERANDS.items():
        yield Form(name, encode(opcode, 0))
    for width in WORDS:
        for cc in range(16):
            yield Form(f"cmov{cc}_{width}", encode(f"0F {0x40 + cc:X} /r", width, reg=RSI, rm=RBX), REG, RM)
        for imm in (3, -7, 0x7FFF):
            code = encode("69 /r iz", width, reg=RSI, rm=RBX, imm=imm)
            yield Form(f"imul3_{width}", code, REG, RM, imm=imm, undefined=undefined("imul"))
        for source, op in ((8, 0), (16, 1)):
            yield Form(f"movzx{width}_{source}", encode(f"0F {0xB6 + op:X} /r", width, reg=RSI, rm=RBX), REG, RM)
            yield Form(f"movsx{width}_{source}", encode(f"0F {0xBE + op:X} /r", width, reg=RSI, rm=RBX), REG, RM)
        yield Form(f"movsx{width}_32", encode("63 /r", width, reg=RSI, rm=RBX), REG, RM)
        # The same register twice, and the accumulator as an operand
        yield Form(f"xadd{width}", encode("0F C1 /r", width, reg=RBX, rm=RBX), RM, RM)
        yield Form(f"xchg{width}", encode("87 /r", width, reg=RBX, rm=RBX), RM, RM)
        yield Form(f"cmpxchg{width}", encode("0F B1 /r", width, reg=RSI, rm=RAX), "rax", REG)
        yield Form(f"cmpxchg{width}", encode("0F B1 /r", width, reg=RAX, rm=RBX), RM, "rax")
    for cc in range(16):
        yield Form(f"set{cc}", encode(f"0F {0x90 + cc:X} /0", 0, rm=RBX), RM, "")
    for width in LONG:
        for imm in (0, 1, 31, 32, 63, 200):
            yield Form(
                f"rorx{width}", encode("VEX.F2.0F3A F0 /r ib", width, reg=RSI, rm=RBX, imm=imm), REG, RM, IMM, imm
            )
        yield Form(f"mulx{width}", encode("VEX.F2.0F38 F6 /r", width, reg=RSI, rm=RBX, vvvv=RSI), REG, RM, REG)
        yield Form(f"crc32_{width}_8", encode("F2 0F 38 F0 /r", 64 if width == 64 else 0, reg=RSI, rm=RBX), REG, RM)
        yield Form(f"crc32_{width}_{width}", encode("F2 0F 38 F1 /r", width, reg=RSI, rm=RBX), REG, RM)
    yield Form("crc32_32_16", encode("F2 0F 38 F1 /r", 16, reg=RSI, rm=RBX), REG, RM)


FEATURES = {
    "bmi1": "andn bextr blsi blsr blsmsk tzcnt",
    "bmi2": "bzhi mulx pdep pext rorx sarx shlx shrx",
    "adx": "adcx adox",
    "abm": "lzcnt",
    "sse4_2": "crc32",
}


def skip_unless_host_has(form: Form) -> None:
    if form.handler in VAGUE and not is_followed():
        pytest.skip("another maker's processor")
    for feature in missing_features():
        if any(form.handler.startswith(name) for name in FEATURES.get(feature, "").split()):
            pytest.skip(f"the host has no {feature}")


@pytest.mark.parametrize("form", list(forms()), ids=str)
def test_as_the_host(form: Form) -> None:
    skip_unless_host_has(form)
    check(form)


def test_each_handler_is_compared() -> None:
    """MOVBE alone has no register form, and a test of its own."""
    groups = (alu.group, shift.group, muldiv.group, move.group, bits.group)
    handlers = {name for group in groups for name in group.members if not name.startswith("movbe")}
    assert {form.handler for form in forms()} >= handlers


@pytest.mark.parametrize("name", ["div8", "div16", "div32", "div64", "idiv8", "idiv16", "idiv32", "idiv64"])
def test_quotients_at_the_edge(name: str) -> None:
    """Dividends made so that the quotient is the largest that fits, or one more, or the remainder a corner."""
    width = int(name.lstrip("idv"))
    code = encode(f"F7 /{7 if name.startswith('i') else 6}", width, rm=RBX)
    start = contexts(name)
    mask = (1 << width) - 1
    rng = np.random.default_rng(width)
    for row in start:
        divisor, quotient = (int(x) for x in rng.choice([0, 1, 2, 3, mask >> 1, (mask >> 1) + 1, mask], 2))
        if name.startswith("i"):
            divisor, quotient = (x - (mask + 1) if x > mask >> 1 else x for x in (divisor, quotient))
        dividend = divisor * quotient + int(rng.integers(-1, 2))
        row["gpr"][RBX] = divisor & mask
        if width == 8:
            row["gpr"][RAX] = dividend & 0xFFFF
        else:
            row["gpr"][RAX], row["gpr"][RDX] = dividend & mask, dividend >> width & mask
    check(Form(name, code, "", RM, undefined=undefined("div")), start)


@pytest.mark.parametrize("width", ALL)
def test_cmpxchg_that_finds_what_it_expects(width: int) -> None:
    start = contexts("cmpxchg")
    start["gpr"][:, RBX] = start["gpr"][:, RAX]
    check(Form(f"cmpxchg{width}", encode("0F B1 /r", width, reg=RSI, rm=RBX), RM, REG), start)


@pytest.mark.parametrize("width", WORDS)
def test_movbe_reverses_bytes(width: int) -> None:
    """MOVBE has no register form to run on the host."""
    start = contexts("movbe")
    end = by_handler(Form(f"movbe{width}", b"", RM, REG), start)
    for before, after in zip(start["gpr"].tolist(), end["gpr"].tolist(), strict=True):
        reversed_bytes = int.from_bytes((before[RSI] & ((1 << width) - 1)).to_bytes(width // 8, "little"), "big")
        kept = before[RBX] & ~0xFFFF if width == 16 else 0
        assert after[RBX] == kept | reversed_bytes
