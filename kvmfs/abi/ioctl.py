"""What an ioctl is: its number, and what the kernel does with it.

An ioctl's number holds a direction and a size (include/uapi/asm-generic/ioctl.h), and for KVM both may be wrong:
KVM_SET_IRQCHIP is _IOR and reads, KVM_REINJECT_CONTROL is _IO and takes a struct. So each row says twice: ``number``
is what the client passes, ``argument`` and ``struct`` are what the kernel does with it (virt/kvm/kvm_main.c,
arch/x86/kvm/x86.c).
"""

from ctypes import sizeof
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any, Final

from kvmfs.abi.caps import Cap

KVMIO: Final = 0xAE


class Fd(Flag):
    """The kinds of fd."""

    SYSTEM = auto()
    VM = auto()
    VCPU = auto()
    DEVICE = auto()


class Argument(Enum):
    """What the kernel takes the third argument of ioctl(2) for."""

    NONE = "ignored"
    ZERO = "must be 0, else EINVAL"
    VALUE = "a number"
    IN = "address, read"
    OUT = "address, written"
    INOUT = "address, read and written"


class Result(Enum):
    """What success returns."""

    ZERO = "0"
    VALUE = "a number"
    COUNT = "how many entries were done"
    FD = "a new fd"


@dataclass(frozen=True, slots=True)
class Tail:
    """The part of variable size after the struct: ``element`` × the value of the struct's field ``count``.

    With ``bytes_of_all``, ``count`` is a number of bytes that includes the struct.
    """

    field: str
    element: Any
    count: str
    bytes_of_all: bool = False


@dataclass(frozen=True, slots=True)
class Ioctl:
    """An ioctl. ``addresses`` and ``fds`` name the fields that hold the client's addresses and fd numbers."""

    name: str
    number: int
    on: Fd
    argument: Argument
    struct: Any = None
    tail: Tail | None = None
    result: Result = Result.ZERO
    cap: Cap | None = None
    addresses: tuple[str, ...] = ()
    fds: tuple[str, ...] = ()
    note: str = ""

    @property
    def size(self) -> int:
        """Bytes of the struct, without the tail."""
        return 0 if self.struct is None else sizeof(self.struct)


def _number(direction: int, nr: int, struct: Any) -> int:
    return direction << 30 | (sizeof(struct) if struct is not None else 0) << 16 | KVMIO << 8 | nr


# C's _IO, _IOW, _IOR, _IOWR: the direction is the client's, W(rites) to the kernel or R(eads) from it.


def io(nr: int) -> int:
    return _number(0, nr, None)


def iow(nr: int, struct: Any) -> int:
    return _number(1, nr, struct)


def ior(nr: int, struct: Any) -> int:
    return _number(2, nr, struct)


def iowr(nr: int, struct: Any) -> int:
    return _number(3, nr, struct)
