"""FXSAVE, FXRSTOR and MXCSR (SDM vol. 1, 10.5); the XSAVE family is in xsave.py."""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load32, load64, store64
from .access import call_slow, effective, unwritable
from .fpu_image import (
    LEGACY,
    MXCSR_AT,
    MXCSR_MASK,
    ST_AT,
    XMM_AT,
    get,
    put_mxcsr,
    put_x87,
    put_xmm,
    restore_x87,
    restore_xmm,
    xmm_count,
)
from .operand import fault, leave_next
from .xsave import HANDLERS

group = Group("fpu_state", __name__)
for _name, _handler in HANDLERS.items():
    group.add(_handler, _name)


@compiled
def begin(s, r, write):
    """Linear address of the 512 bytes; check LEAVE. CR4.OSFXSR does not matter, CR0.EM and CR0.TS do."""
    if load64(s + S.CR0) & (S.CR0_EM | S.CR0_TS):
        return fault(s, r, S.NM, 0, 0)
    la = effective(s, r, LEGACY, write)
    if load64(s + S.LEAVE) == 0 and la & 15:
        fault(s, r, S.GP, 0, 1)
    # Reserved bytes are not written, but belong to the operand.
    if load64(s + S.LEAVE) == 0 and write and unwritable(s, r, la, 1) == 0:
        unwritable(s, r, la + LEGACY - 1, 1)
    return la


@compiled
def is_fast(s):
    """EFER.FFXSR: a 64-bit kernel's FXSAVE and FXRSTOR leave out the XMM registers (APM vol. 2, 11.4.4)."""
    fast = load64(s + S.EFER) & S.EFER_FFXSR and load64(s + S.HFLAGS) & S.MODE_CODE64
    return 1 if fast and load64(s + S.CPL) == 0 else 0


@group.add
def fxsave(s, r):
    la = begin(s, r, 1)
    if load64(s + S.LEAVE) != 0 or put_x87(s, r, la) == 0 or put_mxcsr(s, r, la) == 0:
        return 0
    return leave_next(s, r) if is_fast(s) or put_xmm(s, r, la) else 0


@group.add
def fxrstor(s, r):
    la, fast = begin(s, r, 0), is_fast(s)
    if load64(s + S.LEAVE) != 0 or get(s, r, la, 0, ST_AT + 128) == 0:
        return 0
    if fast == 0 and get(s, r, la, XMM_AT, 16 * xmm_count(s)) == 0:
        return 0
    mxcsr = load32(s + S.IMAGE + MXCSR_AT)
    if mxcsr & ~MXCSR_MASK:
        return fault(s, r, S.GP, 0, 1)
    restore_x87(s, r)
    store64(s + S.MXCSR, mxcsr)
    if fast == 0:
        restore_xmm(s)
    return leave_next(s, r)


@compiled
def sse_forbidden(s, r):
    if load64(s + S.CR0) & S.CR0_EM or load64(s + S.CR4) & S.CR4_OSFXSR == 0:
        fault(s, r, S.UD, 0, 0)
        return 1
    if load64(s + S.CR0) & S.CR0_TS:
        fault(s, r, S.NM, 0, 0)
        return 1
    return 0


@group.add
def ldmxcsr(s, r):
    if sse_forbidden(s, r):
        return 0
    la = effective(s, r, 4, 0)
    store64(s + S.T0, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, 4, s + S.T0) == 0:
        return 0
    if load64(s + S.T0) & ~MXCSR_MASK:
        return fault(s, r, S.GP, 0, 1)
    store64(s + S.MXCSR, load64(s + S.T0))
    return leave_next(s, r)


@group.add
def stmxcsr(s, r):
    if sse_forbidden(s, r):
        return 0
    la = effective(s, r, 4, 1)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, WRITE_SLOW, la, 4, s + S.MXCSR) == 0:
        return 0
    return leave_next(s, r)
