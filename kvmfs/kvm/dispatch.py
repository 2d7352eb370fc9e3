"""From an ioctl's number to a handler with decoded arguments.

A module that knows some ioctls of an object has a Table of them:

    table: Table[Vcpu] = Table(Fd.VCPU)

    @table.ioctl(ioctls.KVM_GET_REGS)
    def get_regs(vcpu: Vcpu, caller: Caller, arg: int) -> Regs: ...

What a handler gets and gives follows from the row's true argument, not from the number's direction bits:

    NONE, VALUE     the word                   int or None (0)
    ZERO            the word, which is 0       int or None
    IN              the struct                 int or None
    OUT             the client's address       the struct, which is then written there
    INOUT           the struct                 int or None; the struct is written back on success
    raw=True        the client's address       int or None: it reads and writes the client's memory itself

The order of checks is KVM's: an unreadable argument is EFAULT before anything else is looked at.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from ctypes import sizeof
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from kvmfs.abi.ioctls import UNKNOWN, Argument, Fd, Ioctl
from kvmfs.kvm.caller import Caller

N = TypeVar("N")
H = TypeVar("H", bound=Callable[..., Any])


def fail(number: int, why: str = "") -> NoReturn:
    """Raise OSError(number). `why` is for logs: the client sees the number only."""
    raise OSError(number, why or os.strerror(number))


@dataclass(frozen=True, slots=True)
class Entry:
    row: Ioctl
    handler: Callable[..., Any]
    raw: bool


class Table(Generic[N]):
    """The ioctls of one kind of fd, or some of them."""

    def __init__(self, fd: Fd, *parts: Table[N]) -> None:
        self.fd = fd
        self.entries: dict[int, Entry] = {}
        for part in parts:
            if twice := self.entries.keys() & part.entries.keys():
                raise ValueError(f"handled twice: {[self.entries[number].row.name for number in twice]}")
            self.entries.update(part.entries)

    def ioctl(self, *rows: Ioctl, raw: bool = False) -> Callable[[H], H]:
        """Register the decorated function as the handler of `rows`."""

        def register(handler: H) -> H:
            for row in rows:
                if row.number in self.entries:
                    raise ValueError(f"{row.name} is handled twice")
                if not row.on & self.fd:
                    raise ValueError(f"{row.name} is not of {self.fd.name}")
                self.entries[row.number] = Entry(row, handler, raw)
            return handler

        return register

    def call(self, node: N, caller: Caller, cmd: int, arg: int) -> int:
        """Do one ioctl. OSError(errno)."""
        entry = self.entries.get(cmd)
        if entry is None:
            fail(UNKNOWN[self.fd], f"ioctl {cmd:#x} is not offered on a {self.fd.name} fd")
        argument = entry.row.argument
        if argument is Argument.ZERO and arg:
            fail(errno.EINVAL)
        if entry.raw or argument in _WORDS:
            return entry.handler(node, caller, arg) or 0
        if argument is Argument.OUT:
            caller.write(arg, bytes(entry.handler(node, caller, arg)))
            return 0
        struct = read_struct(caller, arg, entry.row.struct)
        result: int = entry.handler(node, caller, struct) or 0
        if argument is Argument.INOUT:
            caller.write(arg, bytes(struct))
        return result


_WORDS = (Argument.NONE, Argument.ZERO, Argument.VALUE)


def read_struct(caller: Caller, address: int, struct: Any) -> Any:
    """copy_from_user of one ctypes object. OSError(EFAULT)."""
    return struct.from_buffer_copy(caller.read(address, sizeof(struct)))


def read_array(caller: Caller, address: int, element: Any, count: int) -> list[Any]:
    """`count` ctypes objects in a row. OSError(EFAULT)."""
    return list((element * count).from_buffer_copy(caller.read(address, sizeof(element) * count)))
