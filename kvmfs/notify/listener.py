"""The file that a filter's notifications come to (seccomp_unotify(2), kernel/seccomp.c).

Facts this relies on:

- A notified thread waits in its system call. Until its notification has been received, a signal makes it leave, as if
  the call had been interrupted before it began: EINTR, or a restart if the handler has SA_RESTART. From then on
  (WAIT_KILLABLE_RECV, 5.19) nothing but death does, so whoever answers has to look for signals.
- The notification's pid is the thread's, in the pid namespace of who receives.
- What is read of the thread between RECV and a successful ID_VALID was of that thread and no later one of its number.
- CONTINUE has the call go on as if there were no filter. What its pointers mean may have changed since it was looked
  at: good for what the thread may do anyway, not for deciding what it may.
- ENOENT, whatever is asked: the thread is not there any more. RECV says so too when nobody has the filter any more
  (6.11; before, it waits for ever), which POLLHUP tells.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_RECV, _SEND, _ID_VALID, _ADDFD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104
_CONTINUE: Final = 1
_ADDFD_SEND: Final = 2
_SYNC_WAKE_UP: Final = 1
_NOTIF: Final = struct.Struct("<QIIiIQ6Q")  # id, pid, flags, nr, arch, instruction pointer, arguments
_RESPONSE: Final = struct.Struct("<QqiI")  # id, val, error, flags
_ADD: Final = struct.Struct("<QIIII")  # id, flags, srcfd, newfd, newfd_flags


class Listener:
    """Owner of the file, which goes with the last of its notifications."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        with suppress(OSError):  # 6.6: who wakes the other one up is about to wait, so both may use one CPU
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification:
        """Wait for the next. EOFError: nobody has the filter any more."""
        while True:
            buffer = bytearray(_NOTIF.size)
            try:
                fcntl.ioctl(self.fd, _RECV, buffer)
            except OSError as error:
                if error.errno not in (errno.EINTR, errno.ENOENT):
                    raise
                if self._ended:
                    raise EOFError from None
                continue
            number, tid, _, call, _, _, *args = _NOTIF.unpack(buffer)
            return Notification(self, number, tid, call, tuple(args))

    @property
    def _ended(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, 0)
        return bool(poll.poll(0))

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(slots=True)
class Notification:
    """A thread that waits in a system call. Any of our threads may answer, once."""

    _listener: Listener
    _id: int
    tid: int
    call: int
    """The number of the system call."""
    args: tuple[int, ...]

    @property
    def is_valid(self) -> bool:
        """Whether it still waits."""
        try:
            fcntl.ioctl(self._listener.fd, _ID_VALID, self._id.to_bytes(8, "little"))
        except FileNotFoundError:
            return False
        return True

    def answer(self, result: int) -> None:
        """Let the call return `result`, a negative errno for a failure."""
        self._send(max(result, 0), min(result, 0), 0)

    def go_on(self) -> None:
        """Let the kernel do the call."""
        self._send(0, 0, _CONTINUE)

    def _send(self, *response: int) -> None:
        with suppress(FileNotFoundError):
            fcntl.ioctl(self._listener.fd, _SEND, bytearray(_RESPONSE.pack(self._id, *response)))

    def add(self, fd: int, *, cloexec: bool, answer: bool = False) -> int:
        """Give the thread a duplicate of `fd`: its lowest free number; with `answer` that is what its call returns.

        OSError: EMFILE at its limit; ENOENT.
        """
        how = _ADDFD_SEND if answer else 0
        request = bytearray(_ADD.pack(self._id, how, fd, 0, os.O_CLOEXEC if cloexec else 0))
        number: int = fcntl.ioctl(self._listener.fd, _ADDFD, request)  # bytearray: others of our threads run meanwhile
        return number
