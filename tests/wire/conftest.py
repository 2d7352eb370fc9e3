import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from kvmfs.cli.caps import Capability, effective
from kvmfs.wire import reply, request
from kvmfs.wire.connection import BUFFER_SIZE, Connection, ConnectionEnded
from kvmfs.wire.fuse_h import OpenFlag

NO_REPLY = b""
Answer = Callable[[request.Request], bytes | None]
"""None: as usual."""


@pytest.fixture(scope="session", autouse=True)
def mounting() -> None:
    if Capability.SYS_ADMIN not in effective() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/fuse")


class Server:
    """Answers a connection in a thread, as a file of no content; keeps what it was asked."""

    def __init__(
        self, connection: Connection, answer: Callable[[request.Request], bytes | None] = lambda r: None
    ) -> None:
        self.connection = connection
        self.seen: list[request.Request] = []
        self._answer = answer
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        buffer = bytearray(BUFFER_SIZE)
        while True:
            try:
                asked = self.connection.receive(buffer)
            except ConnectionEnded:
                return
            except OSError as error:
                if error.errno != errno.EBADF:  # Device.remove closes it under our feet
                    raise
                return
            self.seen.append(asked)
            message = self._answer(asked)
            if message is None:
                message = self._usual(asked)
            if message:
                self.connection.reply(message)

    def _usual(self, asked: request.Request) -> bytes:
        match asked:
            case request.Forget():
                return NO_REPLY
            case request.Open():
                return reply.opened(asked.unique, 1, OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH)
            case request.GetAttr() | request.SetAttr():
                return reply.attr(asked.unique, self.connection.attributes)
            case request.Release():
                return reply.ok(asked.unique)
            case request.Interrupt():
                return reply.error(asked.target, errno.EINTR)
        return reply.error(asked.unique, errno.ENOSYS)

    def join(self, timeout: float | None = 10) -> None:
        """Wait for the end of the connection."""
        self._thread.join(timeout)
        assert not self._thread.is_alive()

    def of(self, kind: type[request.Request]) -> list[request.Request]:
        return [asked for asked in self.seen if isinstance(asked, kind)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a device can be, and is not."""
    yield tmp_path / "device"
    assert not os.path.lexists(tmp_path / "device")
