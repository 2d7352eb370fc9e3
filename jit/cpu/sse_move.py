"""SSE to SSE4.1 data movement, integer and logic instructions on 16-byte operands (XMM slots or scratch).

Two-operand forms dst = f(dst, src), named as the SDM names them:

    padd psub {b,w,d,q}  padds paddus psubs psubus pavg {b,w}  pmul{lw,hw,huw,hrsw,ld,udq,dq}  pmadd{wd,ubsw}  psadbw
    pcmpeq pcmpgt {b,w,d,q}  pmin pmax {sb,sw,sd,ub,uw,ud}  pabs psign {b,w,d} (pabs: of src)
    pand pandn por pxor (ANDPS, ANDPD ... are the same)  phadd phsub {w,d}  phaddsw phsubsw
    punpckl punpckh {bw,wd,dq,qdq} (UNPCKxPS is dq, UNPCKxPD qdq)  packsswb packssdw packuswb packusdw  pshufb
    psll psrl {w,d,q}  psra{w,d}: src is the address of a 64-bit count, the immediate's too
    pmovsx pmovzx {bw,bd,bq,wd,wq,dq}: dst = low lanes of src

With an immediate in IMM: pshufd pshuflw pshufhw shufps shufpd palignr pblendw blendps blendpd insertps
    pinsr{b,w,d,q}   dst is a vector, src a general register or slot
    pextr{b,w,d,q}   dst is a general register (32 bits written, 64 for q) or slot, src a vector
    pslldq psrldq    dst shifted by IMM bytes
By XMM0: pblendvb blendvps blendvpd

Moves:
    mov128            all 16 bytes: MOVAPS MOVUPS MOVDQA ... (memory forms: load128, store128)
    movd_xr{32,64}    dst = zero-extended src: MOVD, MOVQ to a vector, MOVQ xmm, and MOVSS, MOVSD from memory
                      (from a vector: mov32, mov64)
    movss  movsd      low 32, 64 bits of src into dst, others kept: register forms, and MOVLPS, MOVLPD from memory
    movhps            low half of src into dst's high half: MOVHPS, MOVHPD from memory, MOVLHPS
    movhlps           high half of src into dst's low half: MOVHLPS, and MOVHPS, MOVHPD to an 8-byte slot
    movddup movshdup movsldup
    pmovmskb movmskps movmskpd   dst is a general register
    ptest             ZF, CF
"""

from .. import state as S
from ..build import Group
from ..raw import load8, load16, load32, load64, lshr, memcpy, s64, store8, store16, store32, store64, u64, ult
from .flags import set_arithmetic
from .operand import LOAD, done, dst, put32, src
from .record import IMM
from .vector import vector_op

group = Group("sse_move", __name__)

LANE = {"b": 8, "w": 16, "d": 32, "q": 64}
