"""What the handlers of VEX-encoded instructions share: VEX.L, a fourth operand, the upper half of a register, the names
of registers in machine code.
"""

from collections.abc import Callable

from ..build import compiled
from ..raw import load8, load64, memcpy, store64
from .operand import done, dst
from .record import AUX, INDEX_PTR

XMM, YMM = "xmm", "ymm"
CLOBBERS = (*(f"xmm{n}" for n in range(16)), "rax", "rdx")  # and their upper halves with them
LANE = 16  # bytes


class Handlers(dict[str, Callable]):
    """Handlers by name, made in several modules for one group."""

    def add(self, function: Callable, name: str | None = None) -> Callable:
        self[name or function.__name__] = function
        return function


@compiled
def is_wide(r):
    """VEX.L."""
    return load8(r + AUX)


@compiled
def clear_upper(d):
    """Bits 128 to 255 of a register."""
    store64(d + 16, 0)
    store64(d + 24, 0)


@compiled
def fourth(r):
    """Address of the fourth operand."""
    return load64(r + INDEX_PTR)


@compiled
def commit(s, r, result):
    """The result into the destination register."""
    d = dst(r)
    if is_wide(r):
        memcpy(d, result, 2 * LANE)
    else:
        memcpy(d, result, LANE)
        clear_upper(d)
    return done(r)
