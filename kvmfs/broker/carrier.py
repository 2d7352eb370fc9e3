"""How the files of VMs come to their clients: what the broker asks of a transport.

Here is FUSE's way (CUSE devices have it, too): each VM is a mount of its own, files are opened in it by name, and put
into the client by its own thread, borrowed for a moment. The other one is kvmfs.notify.carrier.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from kvmfs.broker import takeover
from kvmfs.broker.clients import Held
from kvmfs.wire import mount
from kvmfs.wire.connection import Connection, Kind

_NAME_MAX: Final = 64

Take = Callable[[], Awaitable[Held]]
"""Borrows the thread that the file is for."""


class Files(Protocol):
    """The files of one VM."""

    connection: Connection
    """What its worker serves."""

    def open(self, name: str) -> int:
        """A new open file of one of its nodes, for the client: a descriptor. Blocks until the worker has answered."""

    async def give(self, fd: int, unique: int, take: Take) -> int:
        """Put what `open` gave into the client whose request `unique` is: its number there. OSError."""

    def device(self, fd: int) -> int:
        """st_dev of what `open` gave, if its st_ino is the node id; 0: node_behind knows."""

    def node_behind(self, fd: int) -> int:
        """The node id that a descriptor stands for; 0: none, or it says so itself."""

    def backing_open(self, memfd: int) -> int:
        """A number for the memfd that is to be behind the next file which is opened."""

    def backing_close(self, number: int) -> None: ...

    def settle(self) -> None:
        """Returns when no reply that the worker has written is on its way. May block."""

    async def abandon(self) -> None:
        """The worker is dead: answer for it, until nobody asks."""

    def close(self) -> None:
        """Give everything back. What the client has open of a VM whose worker lives is not affected."""


class Carrier(Protocol):
    """A transport."""

    @property
    def reads(self) -> bool:
        """Whether read(2) of a file comes to who serves it."""

    def shares_pages(self) -> bool:
        """Whether a client that maps a file can be given memory of ours, and not a copy."""

    def files(self, client: int) -> Files:
        """For a new VM of process `client`. OSError."""


class FuseCarrier:
    reads = True

    def shares_pages(self) -> bool:
        """Tried on a connection that nobody sees."""
        memfd = os.memfd_create("kvmfs-probe", os.MFD_CLOEXEC)
        try:
            with Connection.open(Kind.FUSE) as connection:
                root = mount.fuse(connection.fileno())
                try:
                    if not connection.handshake(passthrough=True).passthrough:
                        return False
                    connection.backing_close(connection.backing_open(memfd))
                    return True
                finally:
                    connection.close()  # before the unmount, which may wait for an answer on it
                    os.close(root)
        except OSError:
            return False
        finally:
            os.close(memfd)

    def files(self, client: int) -> Files:
        return FuseFiles()


class FuseFiles:
    def __init__(self) -> None:
        self.connection = Connection.open(Kind.FUSE)
        self._threads = trio.CapacityLimiter(8)
        try:
            self._mount = mount.fuse(self.connection.fileno())
        except BaseException:
            self.connection.close()
            raise

    def open(self, name: str) -> int:
        if not name or len(name) > _NAME_MAX or "/" in name or name.startswith("."):
            raise OSError(errno.EINVAL, f"bad name {name[:_NAME_MAX]!r}")
        try:
            if self._mount < 0:
                raise ConnectionAbortedError
            return os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY, dir_fd=self._mount)
        except OSError as error:
            if error.errno in (None, errno.ENOTCONN, errno.ECONNABORTED):
                raise OSError(errno.EIO, "the VM's process has ended") from None
            raise

    async def give(self, fd: int, unique: int, take: Take) -> int:
        held = await take()
        return await trio.to_thread.run_sync(held.borrow.install, fd, limiter=self._threads)

    def device(self, fd: int) -> int:
        return os.fstat(fd).st_dev

    def node_behind(self, fd: int) -> int:
        return 0

    def backing_open(self, memfd: int) -> int:
        return self.connection.backing_open(memfd)

    def backing_close(self, number: int) -> None:
        """Files that are open keep what is behind them."""
        self.connection.backing_close(number)

    def settle(self) -> None:
        """The kernel takes a reply when it is written."""

    async def abandon(self) -> None:
        mount, self._mount = self._mount, -1
        await takeover.answer_for_the_dead(self.connection, mount)

    def close(self) -> None:
        """The connection goes first: unmounting may wait for an answer on it otherwise."""
        self.connection.close()
        if self._mount >= 0:
            os.close(self._mount)
            self._mount = -1
