"""SSE integer and move handlers against the host CPU: register forms, dst = xmm1, src = xmm2."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kvmfs.jit.cpu.packed import PACKED, SHIFTS
from kvmfs.jit.cpu.sse_move import group

from .compare import Form, check, contexts, missing_features
from .encode import encode

DST, SRC, GENERAL = 1, 2, 3  # xmm1, xmm2, rbx

# Opcodes of dst = f(dst, src), without prefix 66
TWO_BYTE = """
60 punpcklbw 61 punpcklwd 62 punpckldq 63 packsswb 64 pcmpgtb 65 pcmpgtw 66 pcmpgtd 67 packuswb 68 punpckhbw
69 punpckhwd 6A punpckhdq 6B packssdw 6C punpcklqdq 6D punpckhqdq 6F mov128 74 pcmpeqb 75 pcmpeqw 76 pcmpeqd
D1 psrlw D2 psrld D3 psrlq D4 paddq D5 pmullw D8 psubusb D9 psubusw DA pminub DB pand DC paddusb DD paddusw
DE pmaxub DF pandn E0 pavgb E1 psraw E2 psrad E3 pavgw E4 pmulhuw E5 pmulhw E8 psubsb E9 psubsw EA pminsw EB por
EC paddsb ED paddsw EE pmaxsw EF pxor F1 psllw F2 pslld F3 psllq F4 pmuludq F5 pmaddwd F6 psadbw F8 psubb F9 psubw
FA psubd FB psubq FC paddb FD paddw FE paddd 14 punpcklqdq 15 punpckhqdq 54 pand 55 pandn 56 por 57 pxor
"""
NO_PREFIX = "14 punpckldq 15 punpckhdq 12 movhlps 16 movhps 28 mov128 10 mov128 54 pand 55 pandn 56 por 57 pxor"
PREFIX_F3 = "6F mov128 7E movd_xr64 10 movss 12 movsldup 16 movshdup"
PREFIX_F2 = "10 movsd 12 movddup"
MAP_38 = """
00 pshufb 01 phaddw 02 phaddd 03 phaddsw 04 pmaddubsw 05 phsubw 06 phsubd 07 phsubsw 08 psignb 09 psignw 0A psignd
0B pmulhrsw 10 pblendvb 14 blendvps 15 blendvpd 17 ptest 1C pabsb 1D pabsw 1E pabsd 20 pmovsxbw 21 pmovsxbd
22 pmovsxbq 23 pmovsxwd 24 pmovsxwq 25 pmovsxdq 28 pmuldq 29 pcmpeqq 2B packusdw 30 pmovzxbw 31 pmovzxbd
32 pmovzxbq 33 pmovzxwd 34 pmovzxwq 35 pmovzxdq 37 pcmpgtq 38 pminsb 39 pminsd 3A pminuw 3B pminud 3C pmaxsb
3D pmaxsd 3E pmaxuw 3F pmaxud 40 pmulld 41 phminposuw
"""
IMMEDIATE = {
    "66 0F 70": "pshufd",
    "F3 0F 70": "pshufhw",
    "F2 0F 70": "pshuflw",
    "0F C6": "shufps",
    "66 0F C6": "shufpd",
    "66 0F 3A 0C": "blendps",
    "66 0F 3A 0D": "blendpd",
    "66 0F 3A 0E": "pblendw",
    "66 0F 3A 0F": "palignr",
    "66 0F 3A 21": "insertps",
    "66 0F 3A 42": "mpsadbw",
}
IMMEDIATES = (0, 1, 0x1B, 0x6C, 0x93, 0xE4, 0xFF, 8, 15, 16, 17, 31, 32, 33)
INSERTS = {"pinsrb": "66 0F 3A 20", "pinsrw": "66 0F C4", "pinsrd": "66 0F 3A 22"}
EXTRACTS = {"pextrb": "66 0F 3A 14", "pextrw": "66 0F 3A 15", "pextrd": "66 0F 3A 16"}
MASKS = {"66 0F D7": "pmovmskb", "0F 50": "movmskps", "66 0F 50": "movmskpd"}


def _pairs(table: str) -> Iterator[tuple[str, str]]:
    words = table.split()
    return zip(words[::2], words[1::2], strict=True)


def vector(name: str, notation: str, imm: int = 0) -> Form:
    return Form(name, encode(notation, 0, reg=DST, rm=SRC, imm=imm), "xmm1", "xmm2", imm=imm)


def forms() -> Iterator[Form]:
    for prefix, table in (("66 0F", TWO_BYTE), ("0F", NO_PREFIX), ("F3 0F", PREFIX_F3), ("F2 0F", PREFIX_F2)):
        for opcode, name in _pairs(table):
            yield vector(name, f"{prefix} {opcode} /r")
    for opcode, name in _pairs(MAP_38):
        yield vector(name, f"66 0F 38 {opcode} /r")
    for imm in IMMEDIATES:
        for notation, name in IMMEDIATE.items():
            yield vector(name, f"{notation} /r ib", imm)
        for opcode, extension, name in ((0x71, 2, "psrlw"), (0x71, 4, "psraw"), (0x71, 6, "psllw")):
            for more, suffix in enumerate("wdq"):
                if name == "psraw" and suffix == "q":
                    continue
                code = encode(f"66 0F {opcode + more:X} /{extension} ib", 0, rm=DST, imm=imm)
                yield Form(name[:-1] + suffix, code, "xmm1", "imm", imm=imm)
        for extension, name in ((3, "psrldq"), (7, "pslldq")):
            yield Form(name, encode(f"66 0F 73 /{extension} ib", 0, rm=DST, imm=imm), "xmm1", "", imm=imm)
        for width, last in ((0, ""), (64, "q")):
            for name, notation in INSERTS.items():
                if last and name != "pinsrd":
                    continue
                code = encode(f"{notation} /r ib", width, reg=DST, rm=GENERAL, imm=imm)
                yield Form("pinsrq" if last else name, code, "xmm1", "rbx", imm=imm)
            for name, notation in EXTRACTS.items():
                if last and name != "pextrd":
                    continue
                code = encode(f"{notation} /r ib", width, reg=SRC, rm=GENERAL, imm=imm)
                yield Form("pextrq" if last else name, code, "rbx", "xmm2", imm=imm)
    for notation, name in MASKS.items():
        yield Form(name, encode(f"{notation} /r", 0, reg=GENERAL, rm=SRC), "rbx", "xmm2")
    for width, name in ((0, "32"), (64, "64")):
        yield Form(f"movd_xr{name}", encode("66 0F 6E /r", width, reg=DST, rm=GENERAL), "xmm1", "rbx")
        yield Form(f"mov{name}", encode("66 0F 7E /r", width, reg=SRC, rm=GENERAL), "rbx", "xmm2")
    # One register as both operands
    for opcode, name in (("66 0F 61", "punpcklwd"), ("66 0F 38 00", "pshufb"), ("66 0F 67", "packuswb")):
        yield Form(name, encode(f"{opcode} /r", 0, reg=DST, rm=DST), "xmm1", "xmm1")
    for notation, name in (("66 0F 3A 0F", "palignr"), ("66 0F 70", "pshufd"), ("0F C6", "shufps")):
        yield Form(name, encode(f"{notation} /r ib", 0, reg=DST, rm=DST, imm=0x1B), "xmm1", "xmm1", imm=0x1B)


@pytest.mark.parametrize("form", list(forms()), ids=lambda form: f"{form}")
def test_as_the_host(form: Form) -> None:
    if missing_features() & {"ssse3", "sse4_1", "sse4_2"}:
        pytest.skip("the host has no SSE4")
    start = contexts(str(form))
    if form.handler in SHIFTS and form.src == "xmm2":
        counts = np.random.default_rng(0).integers(0, 70, len(start) // 2, np.uint64)
        start["vector"][: len(counts), SRC, 0] = counts
    elif form.handler in ("ptest", "pcmpeqq"):
        start["vector"][::3, SRC] = start["vector"][::3, DST]
        start["vector"][1::3, SRC] = ~start["vector"][1::3, DST]
    check(form, start)


def test_each_handler_is_compared() -> None:
    """Except the memory form of INSERTPS."""
    assert {form.handler for form in forms()} >= (set(group.members) | set(PACKED)) - {"insertps_mem"}
