"""The FPU and vector state as components of a memory image (SDM vol. 1, 10.5 and 13.4 to 13.6).

An image is assembled in the vCPU's IMAGE and moved from there to guest memory, or the other way, in pieces: bytes that
no component owns are not touched.
"""

from .. import state as S
from ..build import compiled
from ..mmu.group import READ_SLOW, TLB_FLUSH, WRITE_SLOW
from ..raw import call2, load8, load16, load32, load64, memcpy, memset, store16, store32, store64, zext32
from .access import call_slow
from .record import OSIZE
from .x87_unit import reload

LEGACY, HEADER, EXTENDED = 512, 512, 576  # size of the legacy region, place of the header, and of what follows
XCOMP_BV, RESERVED = HEADER + 8, HEADER + 16
MXCSR_AT, MXCSR_MASK_AT, ST_AT, XMM_AT = 24, 28, 32, 160
MXCSR_MASK = 0xFFFF

X87, SSE, AVX, PKRU = 1, 2, 4, 1 << 9
COMPACTED = -1 << 63  # XCOMP_BV bit 63

# Components past the header: number, size, offset in the standard format, place in IMAGE
COMPONENTS = ((2, 256, 576, 576), (9, 8, 2432, 832))

# The initial values (SDM vol. 1, 13.6)
FCW_INIT, MXCSR_INIT = 0x37F, 0x1F80
ERROR_SUMMARY = 0x80


@compiled
def put(s, r, la, at, size):
    """Bytes of IMAGE to memory at the same offset: 1, or 0 to leave."""
    return call_slow(s, r, WRITE_SLOW, la + at, size, s + S.IMAGE + at)


@compiled
def get(s, r, la, at, size):
    """Bytes of memory to IMAGE at the same offset: 1, or 0 to leave."""
    return call_slow(s, r, READ_SLOW, la + at, size, s + S.IMAGE + at)


@compiled
def xmm_count(s):
    return 16 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 8


# x87 -----


@compiled
def save_x87(s, r):
    """REX.W selects 64-bit pointers. AMD's processors save pointers only of an exception that is pending."""
    image = s + S.IMAGE
    memset(image, 0, 24)
    memcpy(image, s + S.FX, 5)
    if load64(s + S.IS_AMD) == 0 or load8(s + S.FSW) & ERROR_SUMMARY:
        store16(image + 6, load64(s + S.FOP))
        store64(image + 8, load64(s + S.FIP))
        store64(image + 16, load64(s + S.FDP))
        if load8(r + OSIZE) != 8:
            store32(image + 12, load64(s + S.FCS) & 0xFFFF)
            store32(image + 20, load64(s + S.FDS) & 0xFFFF)
    memcpy(image + ST_AT, s + S.ST, 128)


@compiled
def set_x87(s):
    """The unit's view of what has been put into FX: reserved bits, the error summary."""
    for i in range(8):
        store64(s + S.ST + 16 * i + 8, load16(s + S.ST + 16 * i + 8))
    reload(s + S.FX, s + S.FX)


@compiled
def clear_x87(s):
    """FNINIT's state, with all registers 0."""
    memset(s + S.FX, 0, XMM_AT)
    store16(s + S.FCW, FCW_INIT)
    store64(s + S.FOP, 0)
    store64(s + S.FIP, 0)
    store64(s + S.FDP, 0)
    store64(s + S.FCS, 0)
    store64(s + S.FDS, 0)


@compiled
def restore_x87(s, r):
    image, wide = s + S.IMAGE, load8(r + OSIZE) == 8
    memcpy(s + S.FX, image, 5)
    memcpy(s + S.ST, image + ST_AT, 128)
    store64(s + S.FOP, load16(image + 6) & 0x7FF)
    store64(s + S.FIP, load64(image + 8) if wide else load32(image + 8))
    store64(s + S.FDP, load64(image + 16) if wide else load32(image + 16))
    store64(s + S.FCS, 0 if wide else load16(image + 12))
    store64(s + S.FDS, 0 if wide else load16(image + 20))
    set_x87(s)


@compiled
def put_x87(s, r, la):
    save_x87(s, r)
    return put(s, r, la, 0, 24) and put(s, r, la, ST_AT, 128)


# SSE -----


@compiled
def put_mxcsr(s, r, la):
    store32(s + S.IMAGE + MXCSR_AT, load64(s + S.MXCSR))
    store32(s + S.IMAGE + MXCSR_MASK_AT, MXCSR_MASK)
    return put(s, r, la, MXCSR_AT, 8)


@compiled
def put_xmm(s, r, la):
    for i in range(xmm_count(s)):
        memcpy(s + S.IMAGE + XMM_AT + 16 * i, s + S.VEC + 64 * i, 16)
    return put(s, r, la, XMM_AT, 16 * xmm_count(s))


@compiled
def restore_xmm(s):
    for i in range(xmm_count(s)):
        memcpy(s + S.VEC + 64 * i, s + S.IMAGE + XMM_AT + 16 * i, 16)


# Components past the header -----


@compiled
def component_size(s, number, size):
    """What a component has in this mode: outside 64-bit mode there are eight registers."""
    return 16 * xmm_count(s) if number == 2 else size


@compiled
def save_component(s, number, place):
    if number == 2:
        for i in range(xmm_count(s)):
            memcpy(s + S.IMAGE + place + 16 * i, s + S.VEC + 64 * i + 16, 16)
    else:
        store64(s + S.IMAGE + place, zext32(load64(s + S.PKRU)))


@compiled
def restore_component(s, number, place):
    if number == 2:
        for i in range(xmm_count(s)):
            memcpy(s + S.VEC + 64 * i + 16, s + S.IMAGE + place + 16 * i, 16)
    elif load64(s + S.PKRU) != load32(s + S.IMAGE + place):
        store64(s + S.PKRU, load32(s + S.IMAGE + place))
        call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH), s, 0)


# XINUSE -----


@compiled
def is_zero(address, size):
    for i in range(0, size, 8):
        if load64(address + i) != 0:
            return 0
    return 1


@compiled
def in_use(s):
    """XINUSE: the components whose state is not the initial one."""
    pointers = load64(s + S.FOP) | load64(s + S.FIP) | load64(s + S.FDP)
    used = 0
    if load32(s + S.FX) != FCW_INIT or load8(s + S.FTW) != 0 or pointers != 0 or is_zero(s + S.ST, 128) == 0:
        used |= X87
    for i in range(16):
        used |= 0 if is_zero(s + S.VEC + 64 * i, 16) else SSE
        used |= 0 if is_zero(s + S.VEC + 64 * i + 16, 16) else AVX
    return used | (0 if load64(s + S.PKRU) == 0 else PKRU)
