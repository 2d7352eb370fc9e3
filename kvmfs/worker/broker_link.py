"""The worker's end of the control channel: requests to the broker, and the broker's own."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

from kvmfs.worker import channel
from kvmfs.worker.channel import Message


class BrokerLink:
    """Any thread may call; one thread listens. When the broker is gone every call fails with EIO."""

    def __init__(self, control: socket.socket) -> None:
        self._socket = control
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[tuple[Message, list[int]] | None]] = {}
        self._closed = False

    def call(self, op: str, fds: tuple[int, ...] = (), **arguments: Any) -> tuple[Message, list[int]]:
        """Ask, and wait for the answer: its fields and its descriptors, the caller's to close.

        An answer with an errno is returned like any other. OSError(EIO): no broker.
        """
        answer: queue.SimpleQueue[tuple[Message, list[int]] | None] = queue.SimpleQueue()
        number = next(self._ids)
        with self._lock:
            if self._closed:
                raise _gone(op)
            self._waiting[number] = answer
        try:
            channel.send(self._socket, {"op": op, "id": number, **arguments}, fds)
            got = answer.get()
        except channel.ChannelClosed:
            got = None
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if got is None:
            raise _gone(op)
        return got

    def tell(self, op: str, fds: tuple[int, ...] = (), **arguments: Any) -> None:
        """Say something that needs no answer; nobody to hear it is no error."""
        with contextlib.suppress(channel.ChannelClosed):
            channel.send(self._socket, {"op": op, **arguments}, fds)

    def listen(self, command: Callable[[Message, list[int]], tuple[Message, list[int]] | None]) -> None:
        """Hand answers to who waits for them and the broker's requests to `command`, until the broker is gone.

        `command` gets a message and its descriptors, closed afterwards, and may give an answer, whose descriptors are
        closed as well.
        """
        with contextlib.suppress(channel.ChannelClosed):
            while True:
                message, fds = channel.receive(self._socket)
                if "op" in message:
                    try:
                        answer = command(message, fds)
                    finally:
                        channel.close_all(fds)
                    if answer is not None:
                        channel.send(self._socket, {"id": message["id"], **answer[0]}, answer[1])
                        channel.close_all(answer[1])
                    continue
                with self._lock:
                    waiting = self._waiting.get(message["id"])
                if waiting is None:
                    channel.close_all(fds)
                else:
                    waiting.put((message, fds))
        with self._lock:
            self._closed = True
            for waiting in self._waiting.values():
                waiting.put(None)


def _gone(op: str) -> OSError:
    return OSError(errno.EIO, f"{os.strerror(errno.EIO)}: no broker for {op}")
