"""Linear to host addresses for one access, filling the TLB: what a TLB miss costs."""

from ..build import compiled
from ..raw import load64, store64, zext32
from ..state import (
    EFER,
    EFER_LMA,
    HFLAGS,
    LEAVE,
    LEAVE_NEXT,
    MODE_CODE64,
    TLB_MISSES,
    VM,
    XLAT_GPA,
    XLAT_KIND,
    XLAT_LINEAR,
    XLAT_WATCHED,
)
from .layout import FETCH, INJECT, TO_MMIO, TO_REMOTE, WRITE
from .members import member
from .resolve import resolve
from .tlb import fill
from .walk import check_canonical, walk


@compiled
def next_page(s, la):
    """The linear address of the page after `la`'s; outside 64-bit mode addresses wrap at 4 GiB."""
    following = (la | 4095) + 1
    return following if load64(s + HFLAGS) & MODE_CODE64 else zext32(following)


@member
def translate(s, la, access):
    """The host address of linear `la` for READ, WRITE or FETCH, with the flags of layout.py, or 0.

    On 0 LEAVE tells: LEAVE_EXCEPTION (EXC_*; CR2's value is in EXC_PAYLOAD), LEAVE_EXIT, LEAVE_RETRY; or LEAVE_NEXT
    when the access is granted and XLAT_KIND is TO_MMIO (XLAT_GPA) or TO_REMOTE (XLAT_GPA, XLAT_CLIENT). The host
    address holds until the vCPU's next call into this package.
    """
    store64(s + TLB_MISSES, load64(s + TLB_MISSES) + 1)
    if load64(s + EFER) & EFER_LMA:
        if not check_canonical(s, la, access):
            return 0
    else:
        la = zext32(la)
    store64(s + XLAT_LINEAR, la)
    page = walk(s, la, access)
    if page == 0:
        return 0
    host = resolve(s, load64(s + XLAT_GPA), access & (WRITE | FETCH))
    if host != 0:
        if load64(load64(s + VM) + INJECT) == 0 or load64(s + XLAT_WATCHED) == 0:
            fill(s, la, access, host, page)
        return host
    kind = load64(s + XLAT_KIND)
    if kind in (TO_MMIO, TO_REMOTE):
        store64(s + LEAVE, LEAVE_NEXT)
    return 0
