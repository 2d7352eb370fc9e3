"""Instructions that write a whole cache line."""

from .. import state as S
from ..build import compiled
from ..mmu.group import READ_SLOW
from ..raw import load8, load64, memset
from .access import call_slow, effective, segmented, truncate, write_mem
from .operand import dst, fault, leave_next
from .record import ASIZE, SEG_PTR

LINE = 64  # bytes


def move_line(s, r):
    """MOVDIR64B: 64 bytes to ES:dst, which must be aligned; the source is the record's operand."""
    la, address = effective(s, r, LINE, 0), truncate(load64(dst(r)), load8(r + ASIZE))
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, LINE, s + S.IMAGE) == 0:
        return 0
    to = segmented(s, r, s + S.ES, address, LINE, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    if to & (LINE - 1):
        return fault(s, r, S.GP, 0, 1)
    return leave_next(s, r) if write_mem(s, r, to, LINE, s + S.IMAGE) else 0


@compiled
def clear_line(s, r):
    """CLZERO: the 64 bytes around DS:rAX."""
    segment = load64(r + SEG_PTR)
    address = truncate(load64(s + S.RAX), load8(r + ASIZE)) & -LINE
    la = segmented(s, r, segment if segment else s + S.DS, address, LINE, 1)
    memset(s + S.IMAGE, 0, LINE)
    if load64(s + S.LEAVE) != 0 or write_mem(s, r, la, LINE, s + S.IMAGE) == 0:
        return 0
    return leave_next(s, r)
