"""FXSAVE, XSAVE and MXCSR: the FPU and vector state as memory images (SDM vol. 1, 10.5 and 13.4).

The image is assembled in scratch memory and moved in one access, so a fault leaves both sides as they were.
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load8, load16, load32, load64, memcpy, memset, store8, store16, store32, store64, zext32
from .access import call_slow, effective
from .operand import done, fault, leave_next
from .record import OSIZE

group = Group("fpu_state", __name__)

LEGACY_SIZE, XSAVE_SIZE, HEADER = 512, 576, 512
MXCSR_OFFSET, MXCSR_MASK_OFFSET, ST_OFFSET, XMM_OFFSET = 24, 28, 32, 160
MXCSR_MASK = 0xFFFF
X87, SSE = 1, 2
# The initial values (SDM vol. 1, 13.6)
FCW_INIT, MXCSR_INIT = 0x37F, 0x1F80


@compiled
def top(s):
    return load64(s + S.FSW) >> 11 & 7


@compiled
def save_x87(s, image, wide):
    """The 32-byte header without MXCSR, and the eight registers from the top of the stack."""
    store16(image, load64(s + S.FCW))
    store16(image + 2, load64(s + S.FSW))
    store8(image + 4, load64(s + S.FTW))
    store8(image + 5, 0)
    store16(image + 6, load64(s + S.FOP))
    if wide:
        store64(image + 8, load64(s + S.FIP))
        store64(image + 16, load64(s + S.FDP))
    else:
        store64(image + 8, zext32(load64(s + S.FIP)) | (load64(s + S.FCS) & 0xFFFF) << 32)
        store64(image + 16, zext32(load64(s + S.FDP)) | (load64(s + S.FDS) & 0xFFFF) << 32)
    for i in range(8):
        memcpy(image + ST_OFFSET + 16 * i, s + S.ST + 16 * ((top(s) + i) & 7), 16)
    return 0


@compiled
def restore_x87(s, image, wide):
    store64(s + S.FCW, load16(image) | 0x40)
    store64(s + S.FSW, load16(image + 2))
    store64(s + S.FTW, load8(image + 4))
    store64(s + S.FOP, load16(image + 6) & 0x7FF)
    store64(s + S.FIP, load64(image + 8) if wide else load32(image + 8))
    store64(s + S.FDP, load64(image + 16) if wide else load32(image + 16))
    store64(s + S.FCS, 0 if wide else load16(image + 12))
    store64(s + S.FDS, 0 if wide else load16(image + 20))
    for i in range(8):
        register = s + S.ST + 16 * ((top(s) + i) & 7)
        store64(register, load64(image + ST_OFFSET + 16 * i))
        store64(register + 8, load16(image + ST_OFFSET + 16 * i + 8))
    return 0


@compiled
def xmm_count(s):
    return 16 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 8


@compiled
def save_xmm(s, image):
    for i in range(xmm_count(s)):
        memcpy(image + XMM_OFFSET + 16 * i, s + S.VEC + 64 * i, 16)
    return 0


@compiled
def restore_xmm(s, image):
    for i in range(xmm_count(s)):
        memcpy(s + S.VEC + 64 * i, image + XMM_OFFSET + 16 * i, 16)
    return 0


@compiled
def not_available(s, r):
    """1 with #UD or #NM raised: CR4.OSFXSR does not matter to FXSAVE, CR0.EM and CR0.TS do."""
    if load64(s + S.CR0) & (S.CR0_EM | S.CR0_TS):
        fault(s, r, S.NM, 0, 0)
        return 1
    return 0


@compiled
def operand(s, r, size, align, write):
    """Linear address of the image, checked for alignment; check LEAVE."""
    la = effective(s, r, size, write)
    if load64(s + S.LEAVE) == 0 and la & (align - 1):
        fault(s, r, S.GP, 0, 1)
    return la


@group.add
def fxsave(s, r):
    if not_available(s, r):
        return 0
    la = operand(s, r, LEGACY_SIZE, 16, 1)
    # Bytes that are not written keep what memory has: bring them in first.
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, LEGACY_SIZE, s + S.IMAGE) == 0:
        return 0
    save_x87(s, s + S.IMAGE, load8(r + OSIZE) == 8)
    store32(s + S.IMAGE + MXCSR_OFFSET, load64(s + S.MXCSR))
    store32(s + S.IMAGE + MXCSR_MASK_OFFSET, MXCSR_MASK)
    save_xmm(s, s + S.IMAGE)
    return leave_next(s, r) if call_slow(s, r, WRITE_SLOW, la, LEGACY_SIZE, s + S.IMAGE) else 0


@group.add
def fxrstor(s, r):
    if not_available(s, r):
        return 0
    la = operand(s, r, LEGACY_SIZE, 16, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, LEGACY_SIZE, s + S.IMAGE) == 0:
        return 0
    mxcsr = load32(s + S.IMAGE + MXCSR_OFFSET)
    if mxcsr & ~MXCSR_MASK:
        return fault(s, r, S.GP, 0, 1)
    restore_x87(s, s + S.IMAGE, load8(r + OSIZE) == 8)
    store64(s + S.MXCSR, mxcsr)
    restore_xmm(s, s + S.IMAGE)
    return leave_next(s, r)


@compiled
def xsave_forbidden(s, r):
    """1 with #UD or #NM raised."""
    if load64(s + S.CR4) & S.CR4_OSXSAVE == 0:
        fault(s, r, S.UD, 0, 0)
        return 1
    if load64(s + S.CR0) & S.CR0_TS:
        fault(s, r, S.NM, 0, 0)
        return 1
    return 0


@group.add
def xsave(s, r):
    """Standard form, components that XCR0 and EDX:EAX name; only x87 and SSE exist here."""
    if xsave_forbidden(s, r):
        return 0
    la = operand(s, r, XSAVE_SIZE, 64, 1)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, XSAVE_SIZE, s + S.IMAGE) == 0:
        return 0
    wanted = load64(s + S.XCR0) & zext32(load64(s + S.RAX))
    if wanted & X87:
        save_x87(s, s + S.IMAGE, load8(r + OSIZE) == 8)
    if wanted & SSE:
        store32(s + S.IMAGE + MXCSR_OFFSET, load64(s + S.MXCSR))
        store32(s + S.IMAGE + MXCSR_MASK_OFFSET, MXCSR_MASK)
        save_xmm(s, s + S.IMAGE)
    bits = load64(s + S.IMAGE + HEADER)
    store64(s + S.IMAGE + HEADER, bits & ~wanted | wanted)
    return leave_next(s, r) if call_slow(s, r, WRITE_SLOW, la, XSAVE_SIZE, s + S.IMAGE) else 0


@group.add
def xrstor(s, r):
    """Standard form; the compacted form is XSAVEC's, which is not offered, and #GP."""
    if xsave_forbidden(s, r):
        return 0
    la = operand(s, r, XSAVE_SIZE, 64, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, XSAVE_SIZE, s + S.IMAGE) == 0:
        return 0
    present, wanted = load64(s + S.IMAGE + HEADER), load64(s + S.XCR0) & zext32(load64(s + S.RAX))
    mxcsr = load32(s + S.IMAGE + MXCSR_OFFSET)
    reserved = load64(s + S.IMAGE + HEADER + 8) | load64(s + S.IMAGE + HEADER + 16)
    if reserved != 0 or present & ~load64(s + S.XCR0) or (wanted & SSE and mxcsr & ~MXCSR_MASK):
        return fault(s, r, S.GP, 0, 1)
    if wanted & X87:
        if present & X87 == 0:
            memset(s + S.IMAGE, 0, MXCSR_OFFSET)
            store16(s + S.IMAGE, FCW_INIT)
            memset(s + S.IMAGE + ST_OFFSET, 0, 128)
        restore_x87(s, s + S.IMAGE, load8(r + OSIZE) == 8)
    if wanted & SSE:
        store64(s + S.MXCSR, mxcsr)
        if present & SSE == 0:
            memset(s + S.IMAGE + XMM_OFFSET, 0, 256)
        restore_xmm(s, s + S.IMAGE)
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


@group.add
def fwait(s, r):
    """No x87 instruction is executed here, so no exception of one can be pending."""
    if load64(s + S.CR0) & S.CR0_TS and load64(s + S.CR0) & S.CR0_MP:
        return fault(s, r, S.NM, 0, 0)
    return done(r)
