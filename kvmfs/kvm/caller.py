"""The seam between KVM's objects and whatever carries their fds.

A transport gives each request a `Caller` and calls `Node.ioctl` or a file operation; it may do so from any thread, and
a call may block that thread. It keeps ioctls on one vCPU apart from each other and from its KVM_RUN (KVM's
vcpu->mutex); all other exclusion is done in here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Kind(Enum):
    """What a piece of a client's memory is made of."""

    SHARED = "a file mapped shared: fd and offset give the same bytes"
    ANONYMOUS = "private, without a file: can be adopted"
    PRIVATE = "a private mapping of a file: can be adopted, unless too much would have to be copied"
    OTHER = "can be neither mapped nor adopted: reached page by page"
    HOLE = "nothing is mapped there"


@dataclass(frozen=True, slots=True)
class Backing:
    """`length` bytes at `address` in the client. Whoever receives it owns `fd`, open for reading and, where `writable`,
    writing."""

    address: int
    length: int
    kind: Kind
    fd: int = -1
    offset: int = 0
    writable: bool = True


class Caller(Protocol):
    """The thread of the client in whose ioctl we are: one per request."""

    @property
    def tid(self) -> int: ...

    @property
    def tgid(self) -> int: ...

    def read(self, address: int, size: int) -> bytes:
        """Its memory. OSError(EFAULT)."""

    def write(self, address: int, data: bytes) -> None:
        """OSError(EFAULT); what came before the bad byte may have been written."""

    def getfd(self, number: int) -> int:
        """A duplicate of one of its fds, to be closed by us. OSError(EBADF)."""

    def eventfd(self, number: int) -> tuple[int, int]:
        """A duplicate of one of its eventfds, to be closed by us, and what tells that eventfd from others.
        OSError(EBADF), OSError(EINVAL) when it is no eventfd."""

    def schedstat(self, *, own: bool) -> int:
        """What the scheduler accounts to the thread, or to the one of ours that serves it (schedstat of proc(5)): open
        for reading, to be closed by us. OSError."""

    def node_of(self, number: int) -> Node | None:
        """The node of this VM that one of its fds stands for, None for any other file. OSError(EBADF)."""

    def install(self, node: Node) -> int:
        """Open `node` in the client: the new fd's number. OSError, and then nothing happened."""

    def backing(self, address: int, length: int) -> list[Backing]:
        """What lies behind its memory, in order and without gaps."""

    def adopt(self, address: int, length: int) -> int:
        """Turn private anonymous memory into a shared mapping of a memfd with the same content: the memfd.
        OSError(EBUSY) when another debugger has the thread."""

    def poison(self, address: int) -> None:
        """Send SIGBUS to it, as the kernel does for poisoned memory at `address`; its ioctl has to end with EINTR.
        OSError(EBUSY) when another debugger has the thread."""


class Node(Protocol):
    """Something that a client's fd can stand for. `name` is its file name within the VM."""

    @property
    def name(self) -> str: ...

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        """The result, not negative. OSError(errno)."""

    def released(self) -> None:
        """The last fd (and mapping) of it is gone."""


class FileNode(Node, Protocol):
    """A node with a size and file operations; a node without answers EINVAL to read and write, ENODEV to mmap."""

    @property
    def size(self) -> int: ...

    @property
    def mode(self) -> int:
        """st_mode: type and permissions."""

    def fallocate(self, caller: Caller, mode: int, offset: int, length: int) -> None:
        """fallocate(2). OSError."""

    def read(self, offset: int, size: int) -> bytes:
        """read(2). OSError."""


class MappedNode(Node, Protocol):
    """A node whose fd can be mapped shared: the pages of `memfd`. The node owns the memfd."""

    @property
    def memfd(self) -> int: ...
