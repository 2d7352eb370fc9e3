"""Opcode rows of VEX-encoded instructions, in the notation of opcodes.py and of the SDM's maps.

More operands: H vector register in VEX.vvvv, B general register there, L vector register in the immediate's high bits.
More sizes: x the whole vector (16 or 32 bytes by VEX.L), h f e its half, fourth, eighth, dq 16 bytes, qq 32 bytes.
More attributes: L0, L1, W0, W1 (that value of VEX.L, VEX.W; the other is #UD), int (integer: with VEX.L = 1 it is
AVX2), gpr (no vector registers: CR0.TS and XCR0 do not matter), wide (the handler's name ends in the operand's width),
132, 213, 231 (the operands of dst = x * y + z), probe (a memory destination must be one that can be written, whatever
comes of the operation). A row without H or B wants vvvv = 1111b. Memory operands need no
alignment except with `al`.
"""


def _run(first: int, names: str, form: str = "Vx Hx Wx") -> str:
    """Consecutive opcodes with the prefix 66; `-` leaves one out."""
    rows = (f"66.{first + i:02X} v{name} {form}" for i, name in enumerate(names.split()) if name != "-")
    return "\n".join(rows) + "\n"


def _float(opcode: int, name: str, types: str = "ps pd ss sd", packed: str = "Vx Hx Wx", immediate: str = "") -> str:
    """One opcode for several types, by prefix."""
    forms = {"ps": ("NP", packed), "pd": ("66", packed), "ss": ("F3", "Vdq Hdq Wd"), "sd": ("F2", "Vdq Hdq Wq")}
    return "".join(f"{forms[t][0]}.{opcode:02X} v{name}{t} {forms[t][1]} {immediate}\n" for t in types.split())


def _fused() -> str:
    """FMA: the high digit of the opcode orders the operands, the low one is the operation, VEX.W the precision."""
    rows = []
    for high, order in ((0x90, "132"), (0xA0, "213"), (0xB0, "231")):
        for wide, letter, size in ((0, "s", "d"), (1, "d", "q")):
            for low, name in (
                (6, "fmaddsub"),
                (7, "fmsubadd"),
                (8, "fmadd"),
                (10, "fmsub"),
                (12, "fnmadd"),
                (14, "fnmsub"),
            ):
                rows.append(f"66.{high + low:02X} v{name}p{letter} Vx Hx Wx : W{wide} {order}")
                if low > 7:
                    rows.append(f"66.{high + low + 1:02X} v{name}s{letter} Vdq Hdq W{size} : W{wide} {order}")
    return "\n".join(rows)


GENERAL_38 = """
NP.F2 andn Gy By Ey : has:BMI1
NP.F3/1 blsr By Ey : has:BMI1
NP.F3/2 blsmsk By Ey : has:BMI1
NP.F3/3 blsi By Ey : has:BMI1
NP.F7 bextr Gy Ey By : has:BMI1
NP.F5 bzhi Gy Ey By : has:BMI2
F3.F5 pext Gy By Ey : has:BMI2
F2.F5 pdep Gy By Ey : has:BMI2
F2.F6 mulx Gy By Ey : has:BMI2
66.F7 shlx Gy Ey By : has:BMI2
F3.F7 sarx Gy Ey By : has:BMI2
F2.F7 shrx Gy Ey By : has:BMI2
"""

GENERAL_3A = """
F2.F0 rorx Gy Ey Ib : has:BMI2
"""

MOVES_0F = """
NP.10 vmovups Vx Wx : mv
NP.11 vmovups Wx Vx : mv
66.10 vmovupd Vx Wx : mv
66.11 vmovupd Wx Vx : mv
F3.10m vmovd_xr32 Vd Wd
F3.10r vmovss Vx Hx Wd
F3.11m mov32 Wd Vd
F3.11r vmovss Wx Hx Vd
F2.10m vmovd_xr64 Vq Wq
F2.10r vmovsd Vx Hx Wq
F2.11m mov64 Wq Vq
F2.11r vmovsd Wx Hx Vq
NP.12m vmovsd Vdq Hdq Wq : L0
NP.12r vmovhlps Vdq Hdq Wdq : L0
66.12m vmovsd Vdq Hdq Wq : L0
F3.12 vmovsldup Vx Wx
F2.12 vmovddup Vdq Wq : L0
F2.12 vmovddup Vqq Wqq : L1
NP.13m mov64 Wq Vq : L0
66.13m mov64 Wq Vq : L0
NP.14 vpunpckldq Vx Hx Wx
66.14 vpunpcklqdq Vx Hx Wx
NP.15 vpunpckhdq Vx Hx Wx
66.15 vpunpckhqdq Vx Hx Wx
NP.16 vmovhps Vdq Hdq Wq : L0
66.16m vmovhps Vdq Hdq Wq : L0
F3.16 vmovshdup Vx Wx
NP.17m movhlps Wq Vq : L0
66.17m movhlps Wq Vq : L0
NP.28 vmovaps Vx Wx : mv al
NP.29 vmovaps Wx Vx : mv al
66.28 vmovapd Vx Wx : mv al
66.29 vmovapd Wx Vx : mv al
NP.2Bm vmovntps Wx Vx : mv al
66.2Bm vmovntpd Wx Vx : mv al
NP.50r vmovmskps Gd Wx
66.50r vmovmskpd Gd Wx
NP.54 vpand Vx Hx Wx
66.54 vpand Vx Hx Wx
NP.55 vpandn Vx Hx Wx
66.55 vpandn Vx Hx Wx
NP.56 vpor Vx Hx Wx
66.56 vpor Vx Hx Wx
NP.57 vpxor Vx Hx Wx
66.57 vpxor Vx Hx Wx
66.6E vmovd_xr Vy Ey : L0 wide
66.6F vmovdqa Vx Wx : mv al
F3.6F vmovdqu Vx Wx : mv
NP.77 vzero
66.7E pextr Ey Vdq : L0 dq
F3.7E vmovd_xr64 Vq Wq : L0
66.7F vmovdqa Wx Vx : mv al
F3.7F vmovdqu Wx Vx : mv
NP.AE/2m vldmxcsr M : L0 end
NP.AE/3m vstmxcsr M : L0 end
66.C4m vpinsrw Vdq Hdq Ew Ib : L0
66.C4r vpinsrw Vdq Hdq Ed Ib : L0
66.C5r pextrw Gd Wdq Ib : L0
NP.C6 vshufps Vx Hx Wx Ib
66.C6 vshufpd Vx Hx Wx Ib
66.D6m mov64 Wq Vq : L0
66.D6r vmovd_xr64 Wq Vq : L0
66.E7m vmovntdq Wx Vx : mv al
F2.F0m vlddqu Vx Wx : mv
66.F7r maskmovdqu Vdq Udq : L0 end
"""

INTEGER_0F = (
    _run(0x60, "punpcklbw punpcklwd punpckldq packsswb pcmpgtb pcmpgtw pcmpgtd packuswb")
    + _run(0x68, "punpckhbw punpckhwd punpckhdq packssdw punpcklqdq punpckhqdq")
    + _run(0x74, "pcmpeqb pcmpeqw pcmpeqd")
    + _run(0xD4, "paddq pmullw - - psubusb psubusw pminub pand paddusb paddusw pmaxub pandn")
    + _run(0xE0, "pavgb - - pavgw pmulhuw pmulhw - - psubsb psubsw pminsw por paddsb paddsw pmaxsw pxor")
    + _run(0xF4, "pmuludq pmaddwd psadbw - psubb psubw psubd psubq paddb paddw paddd")
    + _run(0xD1, "psrlw psrld psrlq", "Vx Hx Wdq")
    + _run(0xE1, "psraw psrad", "Vx Hx Wdq")
    + _run(0xF1, "psllw pslld psllq", "Vx Hx Wdq")
    + """
66.70 vpshufd Vx Wx Ib
F3.70 vpshufhw Vx Wx Ib
F2.70 vpshuflw Vx Wx Ib
66.71/2r vpsrlw Hx Ux Ib
66.71/4r vpsraw Hx Ux Ib
66.71/6r vpsllw Hx Ux Ib
66.72/2r vpsrld Hx Ux Ib
66.72/4r vpsrad Hx Ux Ib
66.72/6r vpslld Hx Ux Ib
66.73/2r vpsrlq Hx Ux Ib
66.73/3r vpsrldq Hx Ux Ib
66.73/6r vpsllq Hx Ux Ib
66.73/7r vpslldq Hx Ux Ib
66.D7r vpmovmskb Gd Wx
"""
)

MOVES_38 = """
66.0C vpermilps Vx Hx Wx : W0
66.0D vpermilpd Vx Hx Wx : W0
66.0E vtestps Vx Wx : W0
66.0F vtestpd Vx Wx : W0
66.17 vptest Vx Wx
66.18m vpbroadcastd Vx Wd : W0
66.18r vpbroadcastd Vx Wd : W0 has:AVX2
66.19m vpbroadcastq Vqq Wq : L1 W0
66.19r vpbroadcastq Vqq Wq : L1 W0 has:AVX2
66.1Am vbroadcast128 Vqq Wdq : L1 W0
66.2Cm vmaskmov_loadd Vx Hx M : W0
66.2Dm vmaskmov_loadq Vx Hx M : W0
66.2Em vmaskmov_stored M Hx Vx : W0 end
66.2Fm vmaskmov_storeq M Hx Vx : W0 end
"""

INTEGER_38 = (
    _run(0x00, "pshufb phaddw phaddd phaddsw pmaddubsw phsubw phsubd phsubsw psignb psignw psignd pmulhrsw")
    + _run(0x1C, "pabsb pabsw pabsd", "Vx Wx")
    + _run(0x28, "pmuldq pcmpeqq - packusdw")
    + _run(0x37, "pcmpgtq pminsb pminsd pminuw pminud pmaxsb pmaxsd pmaxuw pmaxud pmulld")
    + """
66.20 vpmovsxbw Vx Wh
66.21 vpmovsxbd Vx Wf
66.22 vpmovsxbq Vx We
66.23 vpmovsxwd Vx Wh
66.24 vpmovsxwq Vx Wf
66.25 vpmovsxdq Vx Wh
66.2Am vmovntdqa Vx Wx : mv al
66.30 vpmovzxbw Vx Wh
66.31 vpmovzxbd Vx Wf
66.32 vpmovzxbq Vx We
66.33 vpmovzxwd Vx Wh
66.34 vpmovzxwq Vx Wf
66.35 vpmovzxdq Vx Wh
66.41 vphminposuw Vdq Wdq : L0
"""
)

AVX2_38 = """
66.16 vpermd Vqq Hqq Wqq : L1 W0
66.36 vpermd Vqq Hqq Wqq : L1 W0
66.45 vpsrlvd Vx Hx Wx : W0
66.45 vpsrlvq Vx Hx Wx : W1
66.46 vpsravd Vx Hx Wx : W0
66.47 vpsllvd Vx Hx Wx : W0
66.47 vpsllvq Vx Hx Wx : W1
66.58 vpbroadcastd Vx Wd : W0
66.59 vpbroadcastq Vx Wq : W0
66.5Am vbroadcast128 Vqq Wdq : L1 W0
66.78 vpbroadcastb Vx Wb : W0
66.79 vpbroadcastw Vx Ww : W0
66.8Cm vmaskmov_loadd Vx Hx M : W0
66.8Cm vmaskmov_loadq Vx Hx M : W1
66.8Em vmaskmov_stored M Hx Vx : W0 end
66.8Em vmaskmov_storeq M Hx Vx : W1 end
66.90m vgatherdd Vx M Hx : W0 vsib
66.90m vgatherdq Vx M Hx : W1 vsib
66.91m vgatherqd Vx M Hx : W0 vsib
66.91m vgatherqq Vx M Hx : W1 vsib
66.92m vgatherdd Vx M Hx : W0 vsib
66.92m vgatherdq Vx M Hx : W1 vsib
66.93m vgatherqd Vx M Hx : W0 vsib
66.93m vgatherqq Vx M Hx : W1 vsib
"""

MOVES_3A = """
66.04 vpshufd Vx Wx Ib : W0
66.05 vpermilpd_imm Vx Wx Ib : W0
66.06 vperm2f128 Vqq Hqq Wqq Ib : L1 W0
66.0C vblendps Vx Hx Wx Ib
66.0D vblendpd Vx Hx Wx Ib
66.14r pextrb Ed Vdq Ib : L0
66.14m pextrb Eb Vdq Ib : L0
66.15r pextrw Ed Vdq Ib : L0
66.15m pextrw Ew Vdq Ib : L0
66.16 pextr Ey Vdq Ib : L0 W0 dq
66.16 pextr Ey Vdq Ib : L0 W1 dq o64
66.17 pextrd Ed Vdq Ib : L0
66.18 vinsert128 Vqq Hqq Wdq Ib : L1 W0
66.19 vextract128 Wdq Vqq Ib : L1 W0
66.20r vpinsrb Vdq Hdq Ed Ib : L0
66.20m vpinsrb Vdq Hdq Eb Ib : L0
66.21r vinsertps Vdq Hdq Wdq Ib : L0
66.21m vinsertps_mem Vdq Hdq Wd Ib : L0
66.22 vpinsr Vy Hdq Ey Ib : L0 W0 dq
66.22 vpinsr Vy Hdq Ey Ib : L0 W1 dq o64
66.4A vblendvps Vx Hx Wx Lx : W0
66.4B vblendvpd Vx Hx Wx Lx : W0
"""

INTEGER_3A = """
66.0E vpblendw Vx Hx Wx Ib
66.0F vpalignr Vx Hx Wx Ib
66.42 vmpsadbw Vx Hx Wx Ib
66.4C vpblendvb Vx Hx Wx Lx : W0
"""

AVX2_3A = """
66.00 vpermq Vqq Wqq Ib : L1 W1
66.01 vpermq Vqq Wqq Ib : L1 W1
66.02 vblendps Vx Hx Wx Ib : W0
66.38 vinsert128 Vqq Hqq Wdq Ib : L1 W0
66.39 vextract128 Wdq Vqq Ib : L1 W0
66.46 vperm2f128 Vqq Hqq Wqq Ib : L1 W0
"""

FLOAT_0F = (
    _float(0x51, "sqrt", "ps pd", "Vx Wx")
    + _float(0x51, "sqrt", "ss sd")
    + _float(0x52, "rsqrt", "ps", "Vx Wx")
    + _float(0x52, "rsqrt", "ss")
    + _float(0x53, "rcp", "ps", "Vx Wx")
    + _float(0x53, "rcp", "ss")
    + _float(0x58, "add")
    + _float(0x59, "mul")
    + _float(0x5C, "sub")
    + _float(0x5D, "min")
    + _float(0x5E, "div")
    + _float(0x5F, "max")
    + _float(0xC2, "cmp", immediate="Ib")
    + """
F3.2A vcvtsi2ss Vy Hdq Ey : dq
F2.2A vcvtsi2sd Vy Hdq Ey : dq
F3.2C cvttss2si Gy Wd : dq
F2.2C cvttsd2si Gy Wq : dq
F3.2D cvtss2si Gy Wd : dq
F2.2D cvtsd2si Gy Wq : dq
NP.2E ucomiss Vdq Wd
66.2E ucomisd Vdq Wq
NP.2F comiss Vdq Wd
66.2F comisd Vdq Wq
NP.5A vcvtps2pd Vx Wh
66.5A vcvtpd2ps Vdq Wx
F3.5A vcvtss2sd Vdq Hdq Wd
F2.5A vcvtsd2ss Vdq Hdq Wq
NP.5B vcvtdq2ps Vx Wx
66.5B vcvtps2dq Vx Wx
F3.5B vcvttps2dq Vx Wx
66.7C vhaddpd Vx Hx Wx
F2.7C vhaddps Vx Hx Wx
66.7D vhsubpd Vx Hx Wx
F2.7D vhsubps Vx Hx Wx
66.D0 vaddsubpd Vx Hx Wx
F2.D0 vaddsubps Vx Hx Wx
F3.E6 vcvtdq2pd Vx Wh
F2.E6 vcvtpd2dq Vdq Wx
66.E6 vcvttpd2dq Vdq Wx
"""
)

FLOAT_3A = """
66.08 vroundps Vx Wx Ib
66.09 vroundpd Vx Wx Ib
66.0A vroundss Vdq Hdq Wd Ib
66.0B vroundsd Vdq Hdq Wq Ib
66.40 vdpps Vx Hx Wx Ib
66.41 vdppd Vdq Hdq Wdq Ib : L0
"""

HALF_38 = """
66.13 vcvtph2ps Vx Wh : W0
"""

HALF_3A = """
66.1D vcvtps2ph Wh Vx Ib : W0 probe
"""

CRYPTO_38 = """
66.CF vgf2p8mulb Vx Hx Wx : W0 has:GFNI
66.DB vaesimc Vdq Wdq : L0 has:AES
66.DC vaesenc Vdq Hdq Wdq : L0 has:AES
66.DD vaesenclast Vdq Hdq Wdq : L0 has:AES
66.DE vaesdec Vdq Hdq Wdq : L0 has:AES
66.DF vaesdeclast Vdq Hdq Wdq : L0 has:AES
66.DC vaesenc Vqq Hqq Wqq : L1 has:VAES
66.DD vaesenclast Vqq Hqq Wqq : L1 has:VAES
66.DE vaesdec Vqq Hqq Wqq : L1 has:VAES
66.DF vaesdeclast Vqq Hqq Wqq : L1 has:VAES
"""

CRYPTO_3A = """
66.44 vpclmulqdq Vdq Hdq Wdq Ib : L0 has:PCLMULQDQ
66.44 vpclmulqdq Vqq Hqq Wqq Ib : L1 has:VPCLMULQDQ
66.60 vpcmpestrm Vdq Wdq Ib : L0
66.61 pcmpestri Vdq Wdq Ib : L0
66.62 vpcmpistrm Vdq Wdq Ib : L0
66.63 pcmpistri Vdq Wdq Ib : L0
66.CE vgf2p8affineqb Vx Hx Wx Ib : W1 has:GFNI
66.CF vgf2p8affineinvqb Vx Hx Wx Ib : W1 has:GFNI
66.DF vaeskeygenassist Vdq Wdq Ib : L0 has:AES
"""

# Escape (0F, 0F 38, 0F 3A), attributes of all its rows, rows
SECTIONS = (
    (1, "gpr L0", GENERAL_38),
    (2, "gpr L0", GENERAL_3A),
    (0, "", MOVES_0F),
    (0, "int", INTEGER_0F),
    (1, "", MOVES_38),
    (1, "int", INTEGER_38),
    (1, "has:AVX2", AVX2_38),
    (2, "", MOVES_3A),
    (2, "int", INTEGER_3A),
    (2, "has:AVX2", AVX2_3A),
    (1, "", CRYPTO_38),
    (2, "", CRYPTO_3A),
    (0, "", FLOAT_0F),
    (2, "", FLOAT_3A),
    (1, "has:F16C", HALF_38),
    (2, "has:F16C", HALF_3A),
    (1, "has:FMA", _fused()),
)
