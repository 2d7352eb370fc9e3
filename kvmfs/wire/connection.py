"""One /dev/fuse or /dev/cuse file: handshake, reading requests, replying.

Facts this relies on (fs/fuse/dev.c, inode.c, cuse.c):

- read(2) gives exactly one message. It fails with EINVAL if the buffer has no room for max_write plus the headers
  (and 8 KiB at least), and a request that does not fit answers its caller with EIO unseen by us; the largest are WRITE
  (max_write) and IOCTL (32 pages of copied-in data unless MAX_PAGES raised that).
- ENOENT from read: the caller went away while its request was being copied. Try again. EINTR and EAGAIN as usual.
- ENODEV from read: the last mount is gone, or the connection failed; ECONNABORTED (we ask for it with ABORT_ERROR): it
  was aborted through sysfs. Either way the connection is over, for good.
- write(2) takes exactly one reply, atomically, from any thread. ENOENT: nobody waits for it any more (interrupted,
  killed, aborted). That is no error.
- Replies must go through the open file that the request was read from, or a dup of it: requests that were read wait
  in a list of that file. So this does not use FUSE_DEV_IOC_CLONE, and the broker can answer for a worker.
- O_NONBLOCK belongs to the open file, so a dup shares it: the two processes that hold a VM's connection must not
  disagree. It is never set here unless asked for.
- Closing the last dup aborts the connection: all waiting callers get ECONNABORTED, later ones ENOTCONN.
- A CUSE device is registered, and its devtmpfs node made, inside the write(2) that answers CUSE_INIT. If that fails
  (name or number taken), the write succeeds and the connection is dead: poll(2) says POLLERR.
- fuse_in_header.pid is in the pid namespace of who mounted (FUSE) or opened /dev/cuse (CUSE), 0 for callers outside.
"""

import errno
import fcntl
import os
import select
import types
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self, TypeVar

from kvmfs.wire import fuse_h, reply
from kvmfs.wire.fuse_h import InitFlag
from kvmfs.wire.request import CuseInit, Init, ProtocolError, Request, ShortRequest, parse

MAX_WRITE = 128 * 1024
"""Bytes per WRITE request, and as many as an ioctl can copy in by default (32 pages)."""
BUFFER_SIZE = MAX_WRITE + 4096
"""Enough to read any request of a connection that was set up here."""

_WANTED = (
    InitFlag.INIT_EXT
    | InitFlag.ABORT_ERROR
    | InitFlag.BIG_WRITES
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.NO_EXPORT_SUPPORT
    | InitFlag.HAS_RESEND
)
_OLDEST_MINOR = 23  # struct fuse_init_out has its present size from 7.23 on


R = TypeVar("R", bound=Request)


class Kind(Enum):
    FUSE = "fuse"
    CUSE = "cuse"


class ConnectionEnded(Exception):
    """Unmounted, aborted, or failed: there will be no more requests."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What kernel and server agreed on."""

    minor: int
    flags: InitFlag
    max_write: int

    @property
    def passthrough(self) -> bool:
        """Files can be backed by others (``backing_open``), mmap included."""
        return InitFlag.PASSTHROUGH in self.flags

    @property
    def resend(self) -> bool:
        """``resend`` works."""
        return InitFlag.HAS_RESEND in self.flags


class Connection:
    """Owner of the file descriptor. Threads may share it; each reading thread brings its own buffer."""

    def __init__(self, fd: int, kind: Kind = Kind.FUSE) -> None:
        """:param fd: taken over: of /dev/fuse, mounted, or of /dev/cuse."""
        self._fd = fd
        self.kind = kind
        self.negotiated: Negotiated | None = None
        self.attributes = reply.Attributes(fuse_h.ROOT_ID)
        """Of the root node, where that is what clients open; for the answer to GETATTR."""

    @classmethod
    def open(cls, kind: Kind, path: Path | None = None) -> Self:
        """A fresh connection, of this process's user and pid namespace.

        :raises OSError: no such device, or no permission.
        """
        return cls(os.open(path or f"/dev/{kind.value}", os.O_RDWR | os.O_CLOEXEC), kind)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    # -- handshake

    def handshake(
        self, *, passthrough: bool = False, extra: InitFlag = InitFlag.NONE, max_write: int = MAX_WRITE
    ) -> Negotiated:
        """Answer FUSE_INIT, which the kernel has queued since the mount. Blocks until it is there.

        :param passthrough: take FUSE_PASSTHROUGH if the kernel offers it.
        :param extra: further flags to take if offered.
        """
        wanted = _WANTED | extra | (InitFlag.PASSTHROUGH if passthrough else InitFlag.NONE)
        while True:
            request = self._first(Init)
            if request.major <= fuse_h.KERNEL_VERSION:
                break
            # A later major: name ours, the kernel asks again.
            self.reply(reply.init(request.unique, minor=fuse_h.KERNEL_MINOR_VERSION, flags=InitFlag.NONE, max_write=0))
        if request.major < fuse_h.KERNEL_VERSION or request.minor < _OLDEST_MINOR:
            self.reply(reply.error(request.unique, errno.EPROTO))
            raise ProtocolError(f"the kernel speaks FUSE {request.major}.{request.minor}; 7.{_OLDEST_MINOR} is needed")
        minor = min(request.minor, fuse_h.KERNEL_MINOR_VERSION)
        self.negotiated = Negotiated(minor, wanted & request.flags, max_write)
        self.reply(
            reply.init(
                request.unique,
                minor=minor,
                flags=self.negotiated.flags,
                max_write=max_write,
                max_stack_depth=1 if self.negotiated.passthrough else 0,
            )
        )
        return self.negotiated

    def handshake_cuse(self, name: str, device: tuple[int, int] = (0, 0)) -> Negotiated:
        """Answer CUSE_INIT: when this returns, the device is registered and devtmpfs shows /dev/``name``.

        :param name: "!" stands for "/".
        :param device: major and minor; (0, 0) lets the kernel choose.
        :raises FileExistsError: another CUSE device, or one of another class's nodes, has the name or the number.
        """
        request = self._first(CuseInit)
        if request.major != fuse_h.KERNEL_VERSION or not request.flags & fuse_h.CUSE_UNRESTRICTED_IOCTL:
            self.reply(reply.error(request.unique, errno.EPROTO))
            raise ProtocolError(f"the kernel speaks CUSE {request.major}.{request.minor}")
        minor = min(request.minor, fuse_h.KERNEL_MINOR_VERSION)
        self.reply(reply.cuse_init(request.unique, minor=minor, name=name, max_transfer=MAX_WRITE, device=device))
        if self.ended:
            raise FileExistsError(errno.EEXIST, "CUSE device name or number is taken", name)
        self.negotiated = Negotiated(minor, InitFlag.NONE, MAX_WRITE)
        return self.negotiated

    def _first(self, kind: type[R]) -> R:
        request = self.receive(bytearray(BUFFER_SIZE))
        if not isinstance(request, kind):
            raise ProtocolError(f"{kind.__name__} must come first, not {request}")
        return request

    # -- requests

    def read_into(self, buffer: bytearray | memoryview) -> int:
        """Next message, as bytes. :param buffer: BUFFER_SIZE bytes.

        :returns: its length; 0 if none is there and the file is non-blocking.
        :raises ConnectionEnded: there will be none.
        """
        while True:
            try:
                if length := os.readv(self._fd, [buffer]):
                    return length
                raise ConnectionEnded("closed")  # a socket (kvmfs.notify)
            except BlockingIOError:
                return 0
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    raise ConnectionEnded(os.strerror(error.errno)) from None
                if error.errno != errno.ENOENT:
                    raise

    def receive(self, buffer: bytearray) -> Request:
        """Next request; waits for it. Requests that cannot be understood are answered with EIO here."""
        while True:
            request = self.try_receive(buffer)
            if request is not None:
                return request
            waiter = select.poll()
            waiter.register(self._fd, select.POLLIN)
            waiter.poll()

    def try_receive(self, buffer: bytearray) -> Request | None:
        """Next request; on a non-blocking file None if there is none now."""
        while True:
            length = self.read_into(buffer)
            if length == 0:
                return None
            try:
                return parse(memoryview(buffer)[:length])
            except ShortRequest as error:
                if error.unique == 0:
                    raise
                self.reply(reply.error(error.unique, errno.EIO))

    def reply(self, message: bytes) -> bool:
        """Write a message made by ``reply``.

        :returns: False if nobody waits for it any more.
        :raises OSError: EINVAL: the message is not a fitting reply; notifications have more (ENOENT: no such node,
            which reads as False here).
        """
        try:
            os.write(self._fd, message)
        except FileNotFoundError:
            return False
        return True

    @property
    def ended(self) -> bool:
        """The connection is dead."""
        poll = select.poll()
        poll.register(self._fd, 0)
        return bool(poll.poll(0))

    def resend(self) -> None:
        """Have all requests sent again that were read and not answered; they come with ``Request.resent``.

        :raises OSError: EINVAL: the kernel is older than 7.40; close the connection instead.
        """
        self.reply(reply.notify_resend())

    # -- passthrough

    def backing_open(self, fd: int) -> int:
        """Register a regular file (a memfd) behind which files can stand: its id, for ``reply.opened``.

        :raises OSError: EPERM without CAP_SYS_ADMIN in the initial user namespace, or passthrough not negotiated.
        """
        backing_id: int = fcntl.ioctl(self._fd, fuse_h.DEV_IOC_BACKING_OPEN, bytearray(fuse_h.BackingMap(fd)))
        return backing_id

    def backing_close(self, backing_id: int) -> None:
        """Forget the id; files that are open keep what is behind them."""
        fcntl.ioctl(self._fd, fuse_h.DEV_IOC_BACKING_CLOSE, bytearray(backing_id.to_bytes(4, "little")))
