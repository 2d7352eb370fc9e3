"""Reading and writing the operands that a record names, and leaving a block. Used by every handler."""

from .. import state as S
from ..build import compiled
from ..raw import load8, load16, load32, load64, sload8, sload16, sload32, store8, store16, store64, zext32
from .record import BASE_PTR, DST, NEXT, OFFSET, RECORD, SRC

WIDTHS = (8, 16, 32, 64)
LOAD = {8: load8, 16: load16, 32: load32, 64: load64}  # zero-extending
SLOAD = {8: sload8, 16: sload16, 32: sload32, 64: load64}  # sign-extending


@compiled
def put32(address, value):
    """A 32-bit write to a register clears its upper half (SDM vol. 1, 3.4.1.1)."""
    store64(address, zext32(value))


PUT = {8: store8, 16: store16, 32: put32, 64: store64}  # a register's (or scratch slot's) low part


@compiled
def dst(r):
    """Address of the destination operand."""
    return load64(r + DST)


@compiled
def src(r):
    """Address of the source operand."""
    return load64(r + SRC)


@compiled
def third(r):
    """Address of the third operand of handlers that have one: a count, a VEX operand."""
    return load64(r + BASE_PTR)


@compiled
def done(r):
    """The handler's normal result: go on with the next record."""
    return r + RECORD


@compiled
def rip_here(s, r):
    """RIP of the record's instruction."""
    return load64(s + S.BLOCK_RIP) + load8(r + OFFSET)


@compiled
def rip_next(s, r):
    """RIP of the instruction after it."""
    return load64(s + S.BLOCK_RIP) + load8(r + NEXT)


@compiled
def fault(s, r, vector, error, has_error):
    """Raise a fault: RIP stays at the instruction. Handlers `return fault(...)`."""
    store64(s + S.RIP, rip_here(s, r))
    store64(s + S.EXC_VECTOR, vector)
    store64(s + S.EXC_ERROR, error)
    store64(s + S.EXC_HAS_ERROR, has_error)
    store64(s + S.EXC_PENDING, 1)
    store64(s + S.LEAVE, S.LEAVE_EXCEPTION)
    return 0


@compiled
def leave_to(s, rip):
    """End the block and go on at `rip`."""
    store64(s + S.RIP, rip)
    return 0


@compiled
def leave_next(s, r):
    """End the block after this instruction, because what follows may be decoded differently now."""
    return leave_to(s, rip_next(s, r))
