"""Opcode rows of the MMX instructions, in the notation of opcodes.py, and of those that SSE to SSSE3 added to them.

P is the MMX register of ModRM reg, Q MMX r/m, N an MMX register in r/m. All raise #UD when CR0.EM is set, #NM when
CR0.TS is, #MF when an x87 exception is pending; what uses XMM registers too also asks for CR4.OSFXSR.
"""


def _run(first: int, names: str, form: str = "Pq Qq") -> str:
    """Consecutive opcodes; `-` leaves one out."""
    rows = (f"NP.{first + i:02X} mm_{name} {form} : bare mmx" for i, name in enumerate(names.split()) if name != "-")
    return "\n".join(rows) + "\n"


MMX_0F = (
    """
NP.6E mm_movd Py Ey : dq mmx
NP.6F mm_movq Pq Qq : bare mmx em
NP.71/2r mm_psrlw Nq Ib : bare mmx
NP.71/4r mm_psraw Nq Ib : bare mmx
NP.71/6r mm_psllw Nq Ib : bare mmx
NP.72/2r mm_psrld Nq Ib : bare mmx
NP.72/4r mm_psrad Nq Ib : bare mmx
NP.72/6r mm_pslld Nq Ib : bare mmx
NP.73/2r mm_psrlq Nq Ib : bare mmx
NP.73/6r mm_psllq Nq Ib : bare mmx
NP.77 emms : bare mmx
NP.7Er mm_get Ey Py : dq mmx
NP.7Em mm_store M : bare mmx
NP.7Fr mm_movq Nq Pq : bare mmx
NP.7Fm mm_store64 M : bare mmx em
"""
    + _run(0x60, "punpcklbw punpcklwd punpckldq", "Pq Qd")
    + _run(0x63, "packsswb pcmpgtb pcmpgtw pcmpgtd packuswb punpckhbw punpckhwd punpckhdq packssdw")
    + _run(0x74, "pcmpeqb pcmpeqw pcmpeqd")
    + _run(0xD1, "psrlw psrld psrlq - pmullw - - psubusb psubusw - pand paddusb paddusw - pandn")
    + _run(0xE0, "- psraw psrad - - pmulhw - - psubsb psubsw - por paddsb paddsw - pxor")
    + _run(0xF1, "psllw pslld psllq - pmaddwd - - psubb psubw psubd - paddb paddw paddd")
)

# AMD had these before SSE, as MMXEXT.
EXTENSIONS_0F = (
    """
NP.70 mm_pshufw Pq Qq Ib : bare mmx
NP.C4r mm_pinsrw Pq Ed Ib : bare mmx
NP.C4m mm_pinsrw Pq Ew Ib : bare mmx
NP.C5r mm_pextrw Gd Nq Ib : bare mmx
NP.D7r mm_pmovmskb Gd Nq : bare mmx
NP.E7m mm_store64 M : bare mmx
NP.F7r maskmovq Pq Nq : bare mmx end
"""
    + _run(0xDA, "pminub - - - pmaxub")
    + _run(0xE0, "pavgb - - pavgw pmulhuw - - - - - pminsw - - - pmaxsw")
    + _run(0xF6, "psadbw")
)

SSE_0F = """
NP.2Ar mm_cvtpi2ps Vq Nq : bare mmx sse
NP.2Am cvtpi2ps Vq Wq : bare sse
NP.2C mm_cvttps2pi Pq Wq : bare mmx sse
NP.2D mm_cvtps2pi Pq Wq : bare mmx sse
"""

SSE2_0F = """
66.2Ar mm_cvtpi2pd Vx Nq : bare mmx sse
66.2Am cvtpi2pd Vx Wq : bare sse
66.2C mm_cvttpd2pi Pq Wx : bare mmx sse al
66.2D mm_cvtpd2pi Pq Wx : bare mmx sse al
NP.D4 mm_paddq Pq Qq : bare mmx
F3.D6r mm_movq2dq Vq Nq : bare mmx sse
F2.D6r mm_movq Pq Uq : bare mmx sse
NP.F4 mm_pmuludq Pq Qq : bare mmx
66.F7r maskmovdqu Vx Ux : bare sse end
NP.FB mm_psubq Pq Qq : bare mmx
"""

SSSE3_38 = _run(0x00, "pshufb phaddw phaddd phaddsw pmaddubsw phsubw phsubd phsubsw psignb psignw psignd pmulhrsw")
SSSE3_38 += _run(0x1C, "pabsb pabsw pabsd")
SSSE3_3A = _run(0x0F, "palignr", "Pq Qq Ib")

# Map, attributes of all its rows, rows
SECTIONS = (
    (1, "has:MMX", MMX_0F),
    (1, "has:XMM|MMXEXT", EXTENSIONS_0F),
    (1, "has:XMM", SSE_0F),
    (1, "has:XMM2", SSE2_0F),
    (2, "has:SSSE3", SSSE3_38),
    (3, "has:SSSE3", SSSE3_3A),
)
