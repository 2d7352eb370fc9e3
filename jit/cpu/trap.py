"""Records that do not compute: faults known at decoding time, and a block's last record."""

from .. import state as S
from ..build import Group
from .operand import fault, leave_next

group = Group("trap", __name__)


@group.add
def undefined(s, r):
    """#UD."""
    return fault(s, r, S.UD, 0, 0)


@group.add
def general_protection(s, r):
    """#GP(0): a privileged instruction at CPL > 0, or one of more than 15 bytes."""
    return fault(s, r, S.GP, 0, 1)


@group.add
def device_not_available(s, r):
    """#NM: CR0.TS or CR0.EM with an instruction that uses the state they guard."""
    return fault(s, r, S.NM, 0, 0)


@group.add
def end_block(s, r):
    """Go on at the following instruction, in another block."""
    return leave_next(s, r)
