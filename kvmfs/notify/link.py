"""A FUSE connection with us in the kernel's place: requests and replies go over a socket instead of /dev/fuse.

A SOCK_SEQPACKET socket keeps messages apart, gives each to one of the threads that read it, and takes each whole from
any thread that writes, as /dev/fuse does. Who serves the other side (kvmfs.wire.connection) notices no difference but
these: a read of 0 bytes is the end, nothing can be sent again, and there is nothing to mount.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import sizeof
from dataclasses import dataclass, field
from typing import Final

from kvmfs.notify.listener import Notification
from kvmfs.wire import fuse_h
from kvmfs.wire.connection import MAX_WRITE, Connection, Negotiated
from kvmfs.wire.fuse_h import InitFlag, Opcode

_IN: Final = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_OUT: Final = struct.Struct("<IiQ")  # fuse_out_header
_INTERRUPT: Final = 1
"""In a unique: the interrupt of the request whose unique it is otherwise (FUSE_INT_REQ_BIT)."""
_OFFERED: Final = InitFlag.INIT_EXT | InitFlag.PASSTHROUGH
_BUFFER: Final = MAX_WRITE + 4096

Answered = Callable[[int, bytes], None]
"""Gets a positive errno or 0, and what the reply says; in another thread, which must not wait."""

_uniques = itertools.count(2, 2)


@dataclass(eq=False, slots=True)
class Request:
    """One that has no reply yet. `notification`: whose it is, None: ours."""

    unique: int
    done: Answered
    notification: Notification | None = None
    interrupted: bool = False
    """Its server has been told that there is a signal."""
    since: float = field(default_factory=time.monotonic)
    looked_at: bool = False
    """There was none when it had waited for a while."""


class Link:
    """Both ends. `connection` is the server's."""

    def __init__(self, name: str, *, negotiated: bool = False) -> None:
        """:param negotiated: the server is not going to shake hands."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection = Connection(theirs.detach())
        self._lock = threading.Lock()
        self._waiting: dict[int, Request] = {}
        self._dead = False
        if negotiated:
            self.connection.negotiated = Negotiated(fuse_h.KERNEL_MINOR_VERSION, _OFFERED, MAX_WRITE)
        else:
            init = fuse_h.InitIn(
                fuse_h.KERNEL_VERSION,
                fuse_h.KERNEL_MINOR_VERSION,
                0,
                _OFFERED & 0xFFFF_FFFF,
                _OFFERED >> 32,
            )
            self.request(Opcode.INIT, 0, bytes(init), lambda *_: None)
        threading.Thread(target=self._listen, name=f"link-{name}", daemon=True).start()

    # Requests --------------------------------------------------------------------------------------------------------

    def request(
        self,
        opcode: int,
        node: int,
        payload: bytes,
        done: Answered,
        *,
        owner: tuple[int, int] = (0, 0),
        notification: Notification | None = None,
    ) -> Request:
        """Send a request; `done` is going to be called, with EIO when there is nobody to answer it."""
        request = Request(next(_uniques), done, notification)
        with self._lock:
            dead = self._dead
            if not dead:
                self._waiting[request.unique] = request
        if dead:
            done(errno.EIO, b"")
        else:
            tid = notification.tid if notification else 0
            self._send(opcode, request.unique, node, payload, tid, owner)
        return request

    def call(self, opcode: int, node: int, payload: bytes) -> bytes:
        """A request of our own: what its reply says. OSError."""
        event = threading.Event()
        answer: list[tuple[int, bytes]] = []

        def done(error: int, data: bytes) -> None:
            answer.append((error, data))
            event.set()

        self.request(opcode, node, payload, done)
        event.wait()
        error, data = answer[0]
        if error:
            raise OSError(error, os.strerror(error))
        return data

    def interrupt(self, request: Request) -> None:
        """Its caller has a signal."""
        request.interrupted = True
        payload = bytes(fuse_h.InterruptIn(request.unique))
        self._send(Opcode.INTERRUPT, request.unique | _INTERRUPT, 0, payload, 0, (0, 0))

    def waiting(self) -> list[Request]:
        """Requests of callers that have no reply yet."""
        with self._lock:
            return [request for request in self._waiting.values() if request.notification]

    def find(self, unique: int) -> Request | None:
        return self._waiting.get(unique)

    def _send(self, opcode: int, unique: int, node: int, payload: bytes, tid: int, owner: tuple[int, int]) -> None:
        header = _IN.pack(_IN.size + len(payload), opcode, unique, node, *owner, tid, 0, 0)
        try:
            self._socket.send(header + payload)
        except OSError:  # the other side is closed
            self.end()

    # Replies ---------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while message := self._socket.recv(_BUFFER):
                self._receive(message)
        except OSError:
            pass
        self.end()
        self._socket.close()

    def _receive(self, message: bytes) -> None:
        if len(message) < _OUT.size:
            return
        _, error, unique = _OUT.unpack_from(message)
        if unique & _INTERRUPT:
            # EAGAIN: it was read before the request that it is about was noted
            if error == -errno.EAGAIN and (request := self._waiting.get(unique & ~_INTERRUPT)):
                request.interrupted = request.looked_at = False
            return
        with self._lock:
            request = self._waiting.pop(unique, None)
        if request:
            request.done(-error, message[_OUT.size :])

    def settle(self) -> None:
        """Returns when all replies written so far have been passed on."""
        event = threading.Event()
        marker = Request(next(_uniques), lambda *_: event.set())
        with self._lock:
            if self._dead:
                return
            self._waiting[marker.unique] = marker
        os.write(self.connection.fileno(), _OUT.pack(_OUT.size, 0, marker.unique))
        event.wait()

    def end(self) -> None:
        """Nobody serves it any more: all requests fail."""
        with self._lock:
            self._dead = True
            waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.done(errno.EIO, b"")

    def close(self) -> None:
        """Both ends, as far as they are ours."""
        self.end()
        self.connection.close()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # its thread closes it


def reply_struct(kind: type[fuse_h.Struct], data: bytes) -> fuse_h.Struct:
    """What a reply says. OSError(EIO): it is too short."""
    if len(data) < sizeof(kind):
        raise OSError(errno.EIO, f"a reply of {len(data)} bytes")
    return kind.from_buffer_copy(data)
