"""The processor's own accesses (descriptor tables, TSS, stack switches), and what follows from its mode."""

from .. import state as S
from ..build import compiled
from ..mmu import layout as M
from ..mmu.group import READ_SLOW, SELECT_TLB, WRITE_SLOW
from ..raw import call1, call4, load64, store64, zext32

IMPLICIT = M.IMPLICIT_SUPERVISOR << M.ACCESS_SHIFT


@compiled
def call_member(s, slot):
    """Call a compiled function that takes the vCPU block alone."""
    return call1(load64(load64(s + S.FUNCTIONS) + 8 * slot), s)


@compiled
def linear(s, address):
    """A linear address has 32 bits outside long mode."""
    return address if load64(s + S.HFLAGS) & S.MODE_LONG else zext32(address)


@compiled
def read_system(s, la, size, pointer):
    """Read as the supervisor whatever CPL is: 1, or 0 to leave (LEAVE set, RIP untouched)."""
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * READ_SLOW), s, linear(s, la), size | IMPLICIT, pointer)


@compiled
def write_system(s, la, size, pointer):
    """Write as the supervisor whatever CPL is: 1, or 0 to leave."""
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * WRITE_SLOW), s, linear(s, la), size | IMPLICIT, pointer)


@compiled
def derive_mode(s):
    """HFLAGS, CPL and TLB from the architectural state."""
    cr0, efer, rflags = load64(s + S.CR0), load64(s + S.EFER), load64(s + S.RFLAGS)
    cs, ss = load64(s + S.CS + S.ATTR), load64(s + S.SS + S.ATTR)
    hflags, cpl = 0, 0
    if cr0 & S.CR0_PG:
        hflags |= S.MODE_PAGING
    if efer & S.EFER_LMA:
        hflags |= S.MODE_LONG
    if cr0 & S.CR0_PE:
        if rflags & S.VM86:
            hflags |= S.MODE_V86
            cpl = 3
        else:
            hflags |= S.MODE_PROTECTED
            cpl = ss >> 5 & 3
    if hflags & S.MODE_PROTECTED and efer & S.EFER_LMA and cs >> 13 & 1:
        hflags |= S.MODE_CODE64
    elif hflags & S.MODE_PROTECTED or cr0 & S.CR0_PE == 0:
        hflags |= S.MODE_CODE32 if cs >> 14 & 1 else 0
        hflags |= S.MODE_STACK32 if ss >> 14 & 1 else 0
    if cpl != 0:
        hflags |= S.MODE_UNPRIVILEGED
    if cpl == 3:
        hflags |= S.MODE_USER
    if cr0 & S.CR0_TS:
        hflags |= S.MODE_TS
    if cr0 & S.CR0_EM:
        hflags |= S.MODE_EM
    if cr0 & S.CR0_EM or load64(s + S.CR4) & S.CR4_OSFXSR == 0:
        hflags |= S.MODE_NO_SSE
    if load64(s + S.CR4) & S.CR4_OSXSAVE == 0 or load64(s + S.XCR0) & 6 != 6:
        hflags |= S.MODE_NO_AVX
    if rflags & (S.TF | S.RF) or load64(s + S.SINGLE_STEP) or load64(s + S.INTR_SHADOW):
        hflags |= S.MODE_STEP
    if load64(s + S.BREAK_CODE):
        hflags |= S.MODE_BREAK
    store64(s + S.HFLAGS, hflags)
    store64(s + S.CPL, cpl)
    return call_member(s, SELECT_TLB)


@compiled
def raise_at(s, vector, error, has_error):
    """Raise a fault with RIP as it is."""
    store64(s + S.EXC_VECTOR, vector)
    store64(s + S.EXC_ERROR, error)
    store64(s + S.EXC_HAS_ERROR, has_error)
    store64(s + S.EXC_PENDING, 1)
    store64(s + S.LEAVE, S.LEAVE_EXCEPTION)
    return 0
