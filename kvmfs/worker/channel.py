"""Messages between broker and worker, and between broker and zygote.

A SOCK_SEQPACKET socket keeps message boundaries and order, carries descriptors, and reads as ended when the other side
is gone, however it went. A message is a JSON object; its descriptors travel with it. A request has an "op" and, if it
wants an answer, an "id"; the answer has the same "id" and either an "errno" (with a "what" for the log) or results.

Worker to broker:
    backing          fds [memfd]                     -> id: FUSE backing id, good until the next install
    install          tid, unique, name               -> fd: number in the client; held
    adopt            tid, unique, address, length    -> fds [memfd]; held
    map_shared       address, length                 -> pieces, fds
    getfd            fd, tid                         -> description, eventfd, node, fds [duplicate]
    finish           tid, result                     no answer
    serving          passthrough, resend             no answer: the VM's file may be opened
                     fds [inspection file]
    failed           errno, what                     no answer: there will be no VM; the worker ends
    log              text                            no answer
    bye              all handles are released: the worker ends           no answer
"held": true in any answer, a failure too, says that the client's thread has been borrowed: its FUSE request is answered
already, and `finish` ends its ioctl.

Broker to worker:
    device           device: st_dev of the VM's files, known once the first is open     no answer
    hold             -> once no reply is under way   replies stop
    release          replies go on                                       no answer
    inspect          what                            -> fds [memfd of JSON]
    trace            fds [ring], or none: stop       -> when the next ioctl is in it, or is not
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]

MAX_MESSAGE = 128 << 10
MAX_FDS = 250  # SCM_MAX_FD is 253


class ChannelClosed(Exception):
    """The other side is gone."""


class MalformedMessage(Exception):
    """Not a JSON object, or too long."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: Message, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Send a message with duplicates of `fds`. ChannelClosed when nobody will read it."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE or len(fds) > MAX_FDS:
        raise MalformedMessage("message too long")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        raise ChannelClosed from None


def receive(channel: socket.socket) -> tuple[Message, list[int]]:
    """The next message and the descriptors that came with it, the caller's to close. May block.

    ChannelClosed at the end; MalformedMessage for what is no message; BlockingIOError as for any socket.
    """
    try:
        data, ancillary, flags, _ = channel.recvmsg(
            MAX_MESSAGE, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        raise ChannelClosed from None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += array.array("i", payload[: len(payload) // 4 * 4])
    if not data and not fds:
        raise ChannelClosed
    try:
        message = json.loads(data) if not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else None
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        close_all(fds)
        raise MalformedMessage("not a JSON object")
    return message, fds


def close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
