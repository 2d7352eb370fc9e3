"""Records that do not compute: faults known at decoding time, what is not implemented, and a block's last record."""

from .. import state as S
from ..build import Group
from ..raw import load8, memcpy, store64
from .operand import fault, leave_next, rip_here, src
from .record import NEXT, OFFSET

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
def unimplemented(s, r):
    """A valid instruction that this CPU does not know: the embedder is told its bytes, the guest sees nothing."""
    length = load8(r + NEXT) - load8(r + OFFSET)
    memcpy(s + S.INSN_BYTES, src(r), length)
    store64(s + S.INSN_LENGTH, length)
    store64(s + S.RIP, rip_here(s, r))
    store64(s + S.EXIT, S.EXIT_UNIMPLEMENTED)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@group.add
def end_block(s, r):
    """Go on at the following instruction, in another block."""
    return leave_next(s, r)
