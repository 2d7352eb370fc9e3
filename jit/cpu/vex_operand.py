"""What the handlers of VEX-encoded instructions share: VEX.L, a fourth operand, the upper half of a register."""

from collections.abc import Callable

from ..build import compiled
from ..raw import load8, load64, store64
from .record import AUX, INDEX_PTR


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
