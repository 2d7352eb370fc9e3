"""A connection whose worker has died: every request is answered, so that nobody waits for ever.

Requests that the dead worker had read are in no queue any more; FUSE_NOTIFY_RESEND (7.40) brings them back. Older
kernels don't know it (EINVAL): there the connection is closed, which aborts it. Handles stay with the client, and
whatever it does with them fails with EIO, until the last one is closed: then, as nothing else holds the mount, the
connection ends.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import trio

from kvmfs.wire import reply, request
from kvmfs.wire.aio import Receiver
from kvmfs.wire.connection import Connection, ConnectionEnded

_UNANSWERED = (request.Forget, request.Interrupt, request.NotifyReply)


async def answer_for_the_dead(connection: Connection, mount: int) -> None:
    """Returns when the connection is over. `mount` is a descriptor of its mount, which is closed."""
    try:
        connection.resend()
    except OSError:
        connection.close()
        os.close(mount)
        return
    async with trio.open_nursery() as nursery:
        # Unmounting may write dirty pages back, which waits for us.
        nursery.start_soon(trio.to_thread.run_sync, os.close, mount)
        await _answer(connection)


async def _answer(connection: Connection) -> None:
    receiver = Receiver(connection)
    with suppress(ConnectionEnded):
        while True:
            message = await receiver.receive()
            if isinstance(message, _UNANSWERED):
                continue
            if isinstance(message, request.Release | request.Flush | request.Destroy):
                connection.reply(reply.ok(message.unique))
            else:
                connection.reply(reply.error(message.unique, errno.EIO))
