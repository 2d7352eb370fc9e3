"""A device whose ioctls the test answers, and client programs that use it.

The device is a FUSE file of its own, on a mount that has no path; a client inherits an fd of it. A request stays with
the test, and its caller blocked, until the test answers.

A client must not be our child: we trace it, and a parent's wait elsewhere in the process would eat its stops. A shell
stands between.
"""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmfs.client.borrow import Borrow
from kvmfs.wire import fuse_h, mount, reply, request
from kvmfs.wire.connection import BUFFER_SIZE, Connection, ConnectionEnded, Kind

CALL, WAIT = 0xAE01, 0xAE80
# Closing must not ask the server, which is a thread of ours: a child that closes what it inherited does so in vfork,
# while its parent's thread holds the GIL.
OPEN_FLAGS = fuse_h.OpenFlag.DIRECT_IO | fuse_h.OpenFlag.NOFLUSH
PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT = 15


@dataclass(frozen=True)
class Call:
    """An ioctl that waits for its answer."""

    device: Device
    unique: int
    tid: int
    command: int
    argument: int

    def answer(self, result: int) -> None:
        self.device.connection.reply(reply.ioctl(self.unique, result))

    def stopped(self) -> Borrow:
        """Answer with EIO, and have the caller stopped before it sees that."""
        borrow = Borrow.seize(self.tid)
        borrow.stop_after(lambda: self.answer(-5))
        return borrow


class Device:
    """The device; serves itself in a thread, but for the ioctls."""

    def __init__(self) -> None:
        self.connection = Connection.open(Kind.FUSE)
        self._attributes = reply.Attributes(fuse_h.ROOT_ID, mode=stat.S_IFREG | 0o666)
        self._mount = mount.fuse(self.connection.fileno(), root_mode=self._attributes.mode)
        self.connection.handshake()
        self.calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self.interruptions: list[int] = []
        """The requests whose callers got a signal."""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.fd = os.open(f"/proc/self/fd/{self._mount}", os.O_RDWR)

    def close(self) -> None:
        mount.abort_fuse(self._mount)  # first: closing asks the server
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self._thread.join()
        for thread in threading.enumerate():
            if thread.name.startswith("borrow-"):
                thread.join(TIMEOUT)
                assert not thread.is_alive(), "somebody is still held"
        os.close(self._mount)
        self.connection.close()

    def next(self, command: int = CALL) -> Call:
        """The next ioctl, which must be `command`."""
        call = self.calls.get(timeout=TIMEOUT)
        assert call.command == command
        return call

    def next_of(self, count: int) -> tuple[Call, Call | None]:
        """The next one or two ioctls: the CALL and, if there are two, the WAIT, in whatever order they come."""
        calls = {call.command: call for call in (self.calls.get(timeout=TIMEOUT) for _ in range(count))}
        assert len(calls) == count
        return calls[CALL], calls.get(WAIT)

    def _serve(self) -> None:
        buffer = bytearray(BUFFER_SIZE)
        handlers: dict[type, Callable[[request.Request], bytes]] = {
            request.GetAttr: lambda asked: reply.attr(asked.unique, self._attributes),
            request.Open: lambda asked: reply.opened(asked.unique, 1, OPEN_FLAGS),
            request.Flush: lambda asked: reply.ok(asked.unique),
            request.Release: lambda asked: reply.ok(asked.unique),
        }
        while True:
            try:
                asked = self.connection.receive(buffer)
            except ConnectionEnded:
                return
            match asked:
                case request.Ioctl():
                    self.calls.put(Call(self, asked.unique, asked.tid, asked.cmd, asked.arg))
                case request.Interrupt():
                    self.interruptions.append(asked.target)
                case request.Forget():
                    pass
                case _ if type(asked) in handlers:
                    self.connection.reply(handlers[type(asked)](asked))
                case _:
                    self.connection.reply(reply.error(asked.unique, 38))


class Client:
    """A running client program."""

    def __init__(self, device: Device, program: Path, *words: object, before: tuple[str, ...] = ()) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        script = '"$@"; exit $?'
        self._shell = subprocess.Popen(
            ["sh", "-c", script, "sh", *before, program, str(device.fd), *map(str, words)],
            pass_fds=[device.fd],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )

    def result(self) -> tuple[int, str]:
        """Its exit status as a shell has it, and what it printed; waits for its end."""
        try:
            status = self._shell.wait(TIMEOUT)
        finally:
            self._shell.kill()
            self._shell.wait()
        self._output.seek(0)
        text = self._output.read().decode()
        self._output.close()
        return status, text
