"""Opcode rows of the SSE instructions by the CPUID feature that brought them, in the notation of opcodes.py.

All of them need CR4.OSFXSR set, CR0.EM and CR0.TS clear; a 16-byte memory operand must be aligned, except with the
attribute `un`. `dq` names the handler by operand size: ...d, ...q.
"""


def _run(first: int, names: str, form: str = "Vx Wx") -> str:
    """Consecutive opcodes with the prefix 66; `-` leaves one out."""
    rows = (f"66.{first + i:02X} {name} {form} : bare" for i, name in enumerate(names.split()) if name != "-")
    return "\n".join(rows) + "\n"


def _float(types: str, *names: str) -> str:
    """Arithmetic (`51 sqrt`) on several types, by prefix."""
    forms = {"ps": ("NP", "x"), "pd": ("66", "x"), "ss": ("F3", "d"), "sd": ("F2", "q")}
    rows = []
    for suffix in types.split():
        prefix, size = forms[suffix]
        for opcode, name, *immediate in map(str.split, names):
            rows.append(f"{prefix}.{opcode} {name}{suffix} V{size} W{size} {' '.join(immediate)} : bare")
    return "\n".join(rows) + "\n"


_ARITHMETIC = ("51 sqrt", "58 add", "59 mul", "5C sub", "5D min", "5E div", "5F max", "C2 cmp Ib")

SSE_0F = """
NP.10 movups Vx Wx : mv un w em
NP.11 movups Wx Vx : mv un w em
F3.10m movd_xr Vd Wd : w
F3.10r movss Vd Wd : bare
F3.11m mov Wd Vd : w
F3.11r movss Wd Vd : bare
NP.12m movsd Vq Wq : bare
NP.12r movhlps Vq Wq : bare
NP.13m mov Wq Vq : w
NP.14 punpckldq Vx Wx : bare
NP.15 punpckhdq Vx Wx : bare
NP.16 movhps Vq Wq : bare
NP.17m movhlps Wq Vq : bare w
NP.28 movaps Vx Wx : mv w em
NP.29 movaps Wx Vx : mv w em
NP.2Bm movntps Wx Vx : mv w em
F3.2A cvtsi2ss Vy Ey : dq
F3.2C cvttss2si Gy Wd : dq w
F3.2D cvtss2si Gy Wd : dq w
NP.2E ucomiss Vd Wd : bare r
NP.2F comiss Vd Wd : bare r
NP.50r movmskps Gd Wx : bare w
NP.54 pand Vx Wx : bare
NP.55 pandn Vx Wx : bare
NP.56 por Vx Wx : bare
NP.57 pxor Vx Wx : bare
NP.C6 shufps Vx Wx Ib : bare
""" + _float("ps ss", *_ARITHMETIC, "52 rsqrt", "53 rcp")

SSE2_0F = (
    """
66.10 movupd Vx Wx : mv un w em
66.11 movupd Wx Vx : mv un w em
F2.10m movd_xr Vq Wq : w
F2.10r movsd Vq Wq : bare
F2.11m mov Wq Vq : w
F2.11r movsd Wq Vq : bare
66.12m movsd Vq Wq : bare
66.13m mov Wq Vq : w
66.14 punpcklqdq Vx Wx : bare
66.15 punpckhqdq Vx Wx : bare
66.16m movhps Vq Wq : bare
66.17m movhlps Wq Vq : bare w
66.28 movapd Vx Wx : mv w em
66.29 movapd Wx Vx : mv w em
66.2Bm movntpd Wx Vx : mv w em
F2.2A cvtsi2sd Vy Ey : dq
F2.2C cvttsd2si Gy Wq : dq w
F2.2D cvtsd2si Gy Wq : dq w
66.2E ucomisd Vq Wq : bare r
66.2F comisd Vq Wq : bare r
66.50r movmskpd Gd Wx : bare w
66.54 pand Vx Wx : bare
66.55 pandn Vx Wx : bare
66.56 por Vx Wx : bare
66.57 pxor Vx Wx : bare
NP.5A cvtps2pd Vx Wq : bare w
66.5A cvtpd2ps Vx Wx : bare w
F3.5A cvtss2sd Vq Wd : bare
F2.5A cvtsd2ss Vd Wq : bare
NP.5B cvtdq2ps Vx Wx : bare w
66.5B cvtps2dq Vx Wx : bare w
F3.5B cvttps2dq Vx Wx : bare w
66.6E movd_xr Vy Ey : w
66.6F movdqa Vx Wx : mv w em
F3.6F movdqu Vx Wx : mv un w em
66.70 pshufd Vx Wx Ib : bare w
F3.70 pshufhw Vx Wx Ib : bare w
F2.70 pshuflw Vx Wx Ib : bare w
66.71/2r psrlw Wx Ib : bare
66.71/4r psraw Wx Ib : bare
66.71/6r psllw Wx Ib : bare
66.72/2r psrld Wx Ib : bare
66.72/4r psrad Wx Ib : bare
66.72/6r pslld Wx Ib : bare
66.73/2r psrlq Wx Ib : bare
66.73/3r psrldq Wx Ib : bare
66.73/6r psllq Wx Ib : bare
66.73/7r pslldq Wx Ib : bare
66.7E mov Ey Vy : w
F3.7E movd_xr Vq Wq : w
66.7F movdqa Wx Vx : mv w em
F3.7F movdqu Wx Vx : mv un w em
66.C4r pinsrw Vx Ed Ib : bare
66.C4m pinsrw Vx Ew Ib : bare
66.C5r pextrw Gd Wx Ib : bare w
66.C6 shufpd Vx Wx Ib : bare
66.D6m mov Wq Vq : w
66.D6r movd_xr Wq Vq : w
66.D7r pmovmskb Gd Wx : bare w
F3.E6 cvtdq2pd Vx Wq : bare w
F2.E6 cvtpd2dq Vx Wx : bare w
66.E6 cvttpd2dq Vx Wx : bare w
66.E7m movntdq Wx Vx : mv w em
"""
    + _float("pd sd", *_ARITHMETIC)
    + _run(0x60, "punpcklbw punpcklwd punpckldq packsswb pcmpgtb pcmpgtw pcmpgtd packuswb")
    + _run(0x68, "punpckhbw punpckhwd punpckhdq packssdw punpcklqdq punpckhqdq")
    + _run(0x74, "pcmpeqb pcmpeqw pcmpeqd")
    + _run(0xD1, "psrlw psrld psrlq paddq pmullw - - psubusb psubusw pminub pand paddusb paddusw pmaxub pandn")
    + _run(0xE0, "pavgb psraw psrad pavgw pmulhuw pmulhw - - psubsb psubsw pminsw por paddsb paddsw pmaxsw pxor")
    + _run(0xF1, "psllw pslld psllq pmuludq pmaddwd psadbw - psubb psubw psubd psubq paddb paddw paddd")
)

SSE3_0F = """
F3.12 movsldup Vx Wx : bare w
F2.12 movddup Vq Wq : bare w
F3.16 movshdup Vx Wx : bare w
66.7C haddpd Vx Wx : bare
F2.7C haddps Vx Wx : bare
66.7D hsubpd Vx Wx : bare
F2.7D hsubps Vx Wx : bare
66.D0 addsubpd Vx Wx : bare
F2.D0 addsubps Vx Wx : bare
F2.F0m lddqu Vx Wx : mv un w
"""

SSSE3_38 = _run(0x00, "pshufb phaddw phaddd phaddsw pmaddubsw phsubw phsubd phsubsw psignb psignw psignd pmulhrsw")
SSSE3_38 += _run(0x1C, "pabsb pabsw pabsd")
SSSE3_3A = _run(0x0F, "palignr", "Vx Wx Ib")

SSE4_1_38 = (
    """
66.10 pblendvb Vx Wx : bare
66.14 blendvps Vx Wx : bare
66.15 blendvpd Vx Wx : bare
66.17 ptest Vx Wx : bare r
66.20 pmovsxbw Vx Wq : bare w
66.21 pmovsxbd Vx Wd : bare w
66.22 pmovsxbq Vx Ww : bare w
66.23 pmovsxwd Vx Wq : bare w
66.24 pmovsxwq Vx Wd : bare w
66.25 pmovsxdq Vx Wq : bare w
66.2Am movntdqa Vx Wx : mv w
66.30 pmovzxbw Vx Wq : bare w
66.31 pmovzxbd Vx Wd : bare w
66.32 pmovzxbq Vx Ww : bare w
66.33 pmovzxwd Vx Wq : bare w
66.34 pmovzxwq Vx Wd : bare w
66.35 pmovzxdq Vx Wq : bare w
"""
    + _run(0x28, "pmuldq pcmpeqq - packusdw")
    + _run(0x38, "pminsb pminsd pminuw pminud pmaxsb pmaxsd pmaxuw pmaxud pmulld phminposuw")
)

SSE4_1_3A = (
    _run(0x0C, "blendps blendpd pblendw", "Vx Wx Ib")
    + """
66.08 roundps Vx Wx Ib : bare w
66.09 roundpd Vx Wx Ib : bare w
66.0A roundss Vd Wd Ib : bare
66.0B roundsd Vq Wq Ib : bare
66.14r pextrb Ed Vx Ib : bare w
66.14m pextrb Eb Vx Ib : bare w
66.15r pextrw Ed Vx Ib : bare w
66.15m pextrw Ew Vx Ib : bare w
66.16 pextr Ey Vx Ib : w dq
66.17 pextrd Ed Vx Ib : bare w
66.20r pinsrb Vx Ed Ib : bare
66.20m pinsrb Vx Eb Ib : bare
66.21r insertps Vx Wd Ib : bare
66.21m insertps_mem Vx Wd Ib : bare
66.22 pinsr Vy Ey Ib : dq
66.40 dpps Vx Wx Ib : bare
66.41 dppd Vx Wx Ib : bare
66.42 mpsadbw Vx Wx Ib : bare
"""
)

SSE4_2_38 = "66.37 pcmpgtq Vx Wx : bare"
SSE4_2_3A = """
66.60 pcmpestrm Vx Wx Ib : bare r un
66.61 pcmpestri Vx Wx Ib : bare r un
66.62 pcmpistrm Vx Wx Ib : bare r un
66.63 pcmpistri Vx Wx Ib : bare r un
"""

AES_38 = """
66.DB aesimc Vx Wx : bare w
66.DC aesenc Vx Wx : bare
66.DD aesenclast Vx Wx : bare
66.DE aesdec Vx Wx : bare
66.DF aesdeclast Vx Wx : bare
"""
AES_3A = "66.DF aeskeygenassist Vx Wx Ib : bare w"
PCLMULQDQ_3A = "66.44 pclmulqdq Vx Wx Ib : bare"

SHA_38 = """
NP.C8 sha1nexte Vx Wx : bare
NP.C9 sha1msg1 Vx Wx : bare
NP.CA sha1msg2 Vx Wx : bare
NP.CB sha256rnds2 Vx Wx : bare
NP.CC sha256msg1 Vx Wx : bare
NP.CD sha256msg2 Vx Wx : bare
"""
SHA_3A = "NP.CC sha1rnds4 Vx Wx Ib : bare"

GFNI_38 = "66.CF gf2p8mulb Vx Wx : bare"
GFNI_3A = """
66.CE gf2p8affineqb Vx Wx Ib : bare
66.CF gf2p8affineinvqb Vx Wx Ib : bare
"""

# Map, attributes of all its rows, rows
SECTIONS = (
    (1, "has:XMM", SSE_0F),
    (1, "has:XMM2", SSE2_0F),
    (1, "has:XMM3", SSE3_0F),
    (2, "has:SSSE3", SSSE3_38),
    (3, "has:SSSE3", SSSE3_3A),
    (2, "has:XMM4_1", SSE4_1_38),
    (3, "has:XMM4_1", SSE4_1_3A),
    (2, "has:XMM4_2", SSE4_2_38),
    (3, "has:XMM4_2", SSE4_2_3A),
    (2, "has:AES", AES_38),
    (3, "has:AES", AES_3A),
    (3, "has:PCLMULQDQ", PCLMULQDQ_3A),
    (2, "has:SHA_NI", SHA_38),
    (3, "has:SHA_NI", SHA_3A),
    (2, "has:GFNI", GFNI_38),
    (3, "has:GFNI", GFNI_3A),
)
