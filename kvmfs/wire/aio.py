"""A connection read by a trio task.

The fd must be non-blocking (``os.set_blocking(connection.fileno(), False)``); /dev/fuse and /dev/cuse can be polled,
and a connection that ends becomes readable. Replies never block, so ``Connection.reply`` is called as it is.
"""

import os

import trio

from kvmfs.wire.connection import BUFFER_SIZE, Connection
from kvmfs.wire.request import Request


class Receiver:
    """Reads requests of one connection, for one task at a time."""

    def __init__(self, connection: Connection) -> None:
        os.set_blocking(connection.fileno(), False)
        self._connection = connection
        self._buffer = bytearray(BUFFER_SIZE)

    async def receive(self) -> Request:
        """Next request. A request once read is never lost to cancellation.

        :raises ConnectionEnded: there will be none.
        :raises trio.BusyResourceError: another task waits here.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            request = self._connection.try_receive(self._buffer)
            if request is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return request
            await trio.lowlevel.wait_readable(self._connection.fileno())
