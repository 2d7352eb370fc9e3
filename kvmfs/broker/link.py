"""A channel (kvmfs.worker.channel) used by trio tasks: one receives, any may send."""

from __future__ import annotations

import socket

import trio

from kvmfs.worker import channel
from kvmfs.worker.channel import Message


class Link:
    """Owner of one end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end

    async def receive(self) -> tuple[Message, list[int]]:
        """The next message and its descriptors. ChannelClosed, MalformedMessage."""
        while True:
            try:
                return channel.receive(self._socket)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)

    async def send(self, message: Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """ChannelClosed when nobody will read it."""
        while True:
            if self._socket.fileno() < 0:
                raise channel.ChannelClosed
            try:
                return channel.send(self._socket, message, fds)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._socket)

    def send_nowait(self, message: Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """ChannelClosed; BlockingIOError."""
        if self._socket.fileno() < 0:
            raise channel.ChannelClosed
        channel.send(self._socket, message, fds)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
