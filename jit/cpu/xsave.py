"""The XSAVE family (SDM vol. 1, 13.7 to 13.13): handlers by name, for the group in fpu_state.py."""

from collections.abc import Callable

from .. import state as S
from ..build import compiled
from ..raw import load32, load64, memset, shl, store32, store64, zext32
from . import features
from .access import effective, unwritable
from .fpu_image import (
    AVX,
    COMPACTED,
    COMPONENTS,
    EXTENDED,
    HEADER,
    MXCSR_AT,
    MXCSR_INIT,
    MXCSR_MASK,
    RESERVED,
    SSE,
    ST_AT,
    X87,
    XCOMP_BV,
    XMM_AT,
    clear_x87,
    component_size,
    get,
    in_use,
    is_zero,
    put,
    put_mxcsr,
    put_x87,
    put_xmm,
    restore_component,
    restore_x87,
    restore_xmm,
    save_component,
    xmm_count,
)
from .operand import fault, leave_next

XSAVEC_WORD, XSAVEC_BIT = features.word("XSAVEC"), features.mask("XSAVEC")
AVX_SIZE = 256  # of the operand, also where half of it is not used
HANDLERS: dict[str, Callable] = {}


def handler(function: Callable) -> Callable:
    HANDLERS[function.__name__] = function
    return function


@compiled
def requested(s, components):
    """RFBM: those of `components` that EDX:EAX names."""
    return components & (shl(load64(s + S.RDX), 32) | zext32(load64(s + S.RAX)))


@compiled
def begin(s, r, privileged, write):
    """Linear address of the area, or 0 with LEAVE set: #UD, #NM, #GP of CPL and of alignment, segments."""
    if load64(s + S.CR4) & S.CR4_OSXSAVE == 0:
        return fault(s, r, S.UD, 0, 0)
    if load64(s + S.CR0) & S.CR0_TS:
        return fault(s, r, S.NM, 0, 0)
    if privileged and load64(s + S.CPL) != 0:
        return fault(s, r, S.GP, 0, 1)
    size = EXTENDED + AVX_SIZE if requested(s, load64(s + S.XCR0)) & AVX else EXTENDED
    la = effective(s, r, size, write)
    if load64(s + S.LEAVE) != 0:
        return la
    if la & 63:
        fault(s, r, S.GP, 0, 1)
    elif write:  # both ends of the area are looked at, whatever is stored
        if unwritable(s, r, la, 1) == 0:
            unwritable(s, r, la + size - 1, 1)
    else:
        get(s, r, la, 0, 1)
    return la


@compiled
def offset(layout, number, standard):
    """Where a component lies: at its standard offset, or after those before it in XCOMP_BV."""
    if layout == 0:
        return standard
    at = EXTENDED
    for other, size, _, _ in COMPONENTS:
        if other < number and layout >> other & 1:
            at += size
    return at


# Saving -----


@compiled
def save(s, r, la, components, layout, mxcsr):
    """Put components into an area of this layout (XCOMP_BV, 0: standard): 1, or 0 to leave."""
    if components & X87 and put_x87(s, r, la) == 0:
        return 0
    if mxcsr and put_mxcsr(s, r, la) == 0:
        return 0
    if components & SSE and put_xmm(s, r, la) == 0:
        return 0
    for number, size, standard, place in COMPONENTS:
        if components >> number & 1:
            save_component(s, number, place)
            at = la + offset(layout, number, standard) - place  # `put` adds the place in IMAGE
            if put(s, r, at, place, component_size(s, number, size)) == 0:
                return 0
    return 1


@compiled
def save_standard(s, r, optimized):
    """XSAVE writes all that is wanted, XSAVEOPT what is in use; of the header, their bits of XSTATE_BV."""
    la = begin(s, r, False, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    wanted, used = requested(s, load64(s + S.XCR0)), in_use(s)
    if get(s, r, la, HEADER, 8) == 0:
        return 0
    if save(s, r, la, wanted & used if optimized else wanted, 0, wanted & (SSE | AVX)) == 0:
        return 0
    store64(s + S.IMAGE + HEADER, load64(s + S.IMAGE + HEADER) & ~wanted | wanted & used)
    return leave_next(s, r) if put(s, r, la, HEADER, 8) else 0


@compiled
def save_compacted(s, r, privileged):
    """What is wanted and in use; MXCSR belongs to SSE here, and keeps it in use."""
    la = begin(s, r, privileged, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    wanted, used = requested(s, load64(s + S.XCR0) | (load64(s + S.XSS) if privileged else 0)), in_use(s)
    if load64(s + S.MXCSR) != MXCSR_INIT:
        used |= SSE
    if save(s, r, la, wanted & used, wanted | COMPACTED, wanted & used & SSE) == 0:
        return 0
    store64(s + S.IMAGE + HEADER, wanted & used)
    store64(s + S.IMAGE + XCOMP_BV, wanted | COMPACTED)
    return leave_next(s, r) if put(s, r, la, HEADER, 16) else 0


@handler
def xsave(s, r):
    return save_standard(s, r, False)


@handler
def xsaveopt(s, r):
    return save_standard(s, r, True)


@handler
def xsavec(s, r):
    return save_compacted(s, r, False)


@handler
def xsaves(s, r):
    return save_compacted(s, r, True)


# Restoring -----


@compiled
def fetch(s, r, la, components, layout, mxcsr):
    """Bring components from an area into IMAGE: 1, or 0 to leave."""
    if components & X87 and (get(s, r, la, 0, MXCSR_AT) == 0 or get(s, r, la, ST_AT, 128) == 0):
        return 0
    if mxcsr and get(s, r, la, MXCSR_AT, 4) == 0:
        return 0
    if components & SSE and get(s, r, la, XMM_AT, 16 * xmm_count(s)) == 0:
        return 0
    for number, size, standard, place in COMPONENTS:
        if components >> number & 1:
            at = la + offset(layout, number, standard) - place
            if get(s, r, at, place, component_size(s, number, size)) == 0:
                return 0
    return 1


@compiled
def load_components(s, r, wanted, present):
    """Those wanted, from IMAGE or initial."""
    if wanted & present & X87:
        restore_x87(s, r)
    elif wanted & X87:
        clear_x87(s)
    if wanted & SSE:
        if present & SSE == 0:
            memset(s + S.IMAGE + XMM_AT, 0, 256)
        restore_xmm(s)
    for number, size, _, place in COMPONENTS:
        if wanted >> number & 1:
            if present >> number & 1 == 0:
                memset(s + S.IMAGE + place, 0, size)
            restore_component(s, number, place)


@compiled
def is_bad_header(s, allowed, privileged):
    """Whether the header in IMAGE is one that XRSTOR, XRSTORS refuse (SDM vol. 1, 13.8.1, 13.12)."""
    header = s + S.IMAGE
    present, layout = load64(header + HEADER), load64(header + XCOMP_BV)
    if layout & COMPACTED == 0:
        reserved = present & ~allowed | layout | load64(header + RESERVED)
        return 1 if privileged or reserved != 0 else 0
    if load64(s + S.FEATURES + XSAVEC_WORD) & XSAVEC_BIT == 0:
        return 1
    reserved = layout & ~(allowed | COMPACTED) | present & ~layout
    return 1 if reserved != 0 or is_zero(header + RESERVED, EXTENDED - RESERVED) == 0 else 0


@compiled
def restore(s, r, privileged):
    la = begin(s, r, privileged, 0)
    if load64(s + S.LEAVE) != 0 or get(s, r, la, HEADER, EXTENDED - HEADER) == 0:
        return 0
    allowed = load64(s + S.XCR0) | (load64(s + S.XSS) if privileged else 0)
    if is_bad_header(s, allowed, privileged):
        return fault(s, r, S.GP, 0, 1)
    wanted, present = requested(s, allowed), load64(s + S.IMAGE + HEADER)
    layout = load64(s + S.IMAGE + XCOMP_BV)
    # In the standard format MXCSR is loaded whatever XSTATE_BV says, in the compacted one it is part of SSE.
    mxcsr = wanted & (SSE | AVX) if layout == 0 else wanted & SSE
    store32(s + S.IMAGE + MXCSR_AT, MXCSR_INIT)
    if fetch(s, r, la, wanted & present, layout, mxcsr if layout == 0 else mxcsr & present) == 0:
        return 0
    if mxcsr and load32(s + S.IMAGE + MXCSR_AT) & ~MXCSR_MASK:
        return fault(s, r, S.GP, 0, 1)
    if mxcsr:
        store64(s + S.MXCSR, load32(s + S.IMAGE + MXCSR_AT))
    load_components(s, r, wanted, present)
    return leave_next(s, r)


@handler
def xrstor(s, r):
    return restore(s, r, False)


@handler
def xrstors(s, r):
    return restore(s, r, True)
