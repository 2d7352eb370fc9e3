"""The zygote (kvmfs.worker.zygote) from the broker's side."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

import kvmfs
from kvmfs.broker.link import Link
from kvmfs.wire import mount
from kvmfs.worker import channel

Log = Callable[[str], None]


def _empty_directory() -> int:
    """One that stays so: nothing can be made in what has no name any more."""
    try:
        return mount.tmpfs(mode=0o500)
    except PermissionError:
        path = tempfile.mkdtemp(prefix="kvmfs-")
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            Path(path).rmdir()


class Zygote:
    """Starts at once, forks when ready."""

    def __init__(self, core: str, log: Log) -> None:
        """`core`: the module that a worker makes its VM with."""
        self._log = log
        self._ready = trio.Event()
        self._lock = trio.Lock()
        self._answer: trio.MemorySendChannel[tuple[channel.Message, list[int]]]
        self._answer, self._answers = trio.open_memory_channel[tuple[channel.Message, list[int]]](1)
        ours, theirs = channel.pair()
        root = str(Path(kvmfs.__file__).parent.parent)
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        empty = _empty_directory()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "kvmfs.worker.zygote", str(theirs.fileno()), str(empty), core],
                    pass_fds=[theirs.fileno(), empty],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,  # a pipe to whoever started the server would stay open
                    start_new_session=True,  # a ^C at our terminal is not for it
                    # OpenBLAS, which numpy brings along, would have threads
                    env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                )
        finally:
            os.close(empty)
        self._link = Link(ours)

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def run(self) -> None:
        """Receive, until it ends or we are cancelled."""
        try:
            while True:
                message, fds = await self._link.receive()
                if "ready" in message:
                    self._ready.set()
                elif "exited" in message:
                    self._log_end(message["exited"], message["status"])
                else:
                    await self._answer.send((message, fds))
        except channel.ChannelClosed:
            self._log("the process that forks workers has died: no new VMs")
        finally:
            self._answer.close()
            self._ready.set()
            self._link.close()
            with suppress(ProcessLookupError):  # with its compilers; workers have groups of their own
                os.killpg(self._process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._process.wait)

    def _log_end(self, pid: int, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):  # killed: by us, mostly
            self._log(f"VM process {pid}: {signal.strsignal(-code) if code < 0 else f'exit status {code}'}")

    async def wait_ready(self) -> None:
        await self._ready.wait()

    async def fork(self, fds: list[int], **settings: Any) -> tuple[int, int]:
        """A new worker: its pid, and a pidfd, the caller's to close. OSError(EIO) when there is no zygote.

        `fds`: its /dev/fuse file, its end of the control channel, its stderr, a pidfd of the client.
        """
        async with self._lock:
            try:
                await self._link.send({"op": "fork", "id": 0, **settings}, fds)
                message, received = await self._answers.receive()
            except (channel.ChannelClosed, trio.EndOfChannel, trio.ClosedResourceError):
                raise OSError(errno.EIO, "no process to fork workers from") from None
        return message["pid"], received[0]
