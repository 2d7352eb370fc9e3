"""Brokers and clients as processes of their own, and what to do with them.

A client is a function, run in a forked process. It gets the device's path and a `Talk`, through which it and the test
keep in step: nobody sleeps, everybody waits for a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmfs.abi import ioctls
from kvmfs.notify import filter as notify_filter
from tests.support import processes
from tests.support.paths import ROOT

PATIENCE = 20.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for what no event tells."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {PATIENCE} s")
        time.sleep(0.002)
    return value


_controls: dict[Path, socket.socket] = {}
"""Where clients of a device that is none in the file system send their filter's listener."""


def bind(path: Path) -> None:
    """Make this process a client of the broker that answers for `path`."""
    if control := _controls.get(path):
        listener = notify_filter.install()
        socket.send_fds(control, [b"!"], [listener])
        os.close(listener)


class Broker:
    """A broker process with its device. `pages`: "passthrough", "cached", or "seccomp", where it is not FUSE."""

    def __init__(self, directory: Path, core: str, pages: str) -> None:
        self.path = directory / "kvm"
        self.pages = pages
        self._log = directory / "log"
        self._control, theirs = socket.socketpair()
        if pages == "seccomp":
            _controls[self.path] = self._control
        with self._log.open("wb") as log, theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.process.broker", str(self.path), core),
                    str(theirs.fileno()) if pages == "seccomp" else pages,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
            )
        assert self.process.stdout
        with self.process.stdout as out:
            assert out.readline() == b"ready\n", self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def descriptors(self) -> int:
        """How many the broker has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def zygote(self) -> int | None:
        found = _children(self.process.pid)
        return found[0] if found else None

    @property
    def workers(self) -> list[int]:
        return _children(self.zygote) if self.zygote else []

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait()
            subprocess.run(["umount", "-l", self.path], check=False, capture_output=True)
            self.path.unlink(missing_ok=True)
            _controls.pop(self.path, None)
            self._control.close()


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    return []


def everybody() -> str:
    """Where all threads below this process are, for a test that hangs."""
    lines = []
    for pid in sorted(processes.descendants()):
        lines.append(processes.describe(pid))
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                what = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
                lines.append(f"    {task.name} {' '.join(what)}")
    return "\n".join(lines)


class Talk:
    """One end of a conversation."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, word: Any, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._end, [pickle.dumps(word)], fds)

    @property
    def has_word(self) -> bool:
        return bool(select.select([self._end], [], [], 0)[0])

    def hear(self) -> Any:
        return self.hear_fds()[0]

    def hear_fds(self) -> tuple[Any, list[int]]:
        if not select.select([self._end], [], [], PATIENCE)[0]:
            raise TimeoutError("nothing to hear")
        data, fds, _, _ = socket.recv_fds(self._end, 1 << 20, 16)
        if not data:
            raise EOFError("the other side is gone")
        return pickle.loads(data), list(fds)


class Client:
    """A forked process that runs `body(path, talk)`; what that returns is the last thing it says."""

    def __init__(self, path: Path, body: Callable[[Path, Talk], Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            talk = Talk(theirs)
            try:
                bind(path)
                talk.say(("result", body(path, talk)))
            except BaseException:
                with contextlib.suppress(OSError):
                    talk.say(("failed", traceback.format_exc()))
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours
        self.talk = Talk(ours)
        self._status: int | None = None

    def hear(self) -> Any:
        """The next word; a failure of the client is ours."""
        try:
            word = self.talk.hear()
        except TimeoutError:
            pytest.fail(f"client {self.pid} says nothing\n{everybody()}", pytrace=False)
        if isinstance(word, tuple) and word and word[0] == "failed":
            pytest.fail(f"in the client:\n{word[1]}", pytrace=False)
        return word

    def result(self) -> Any:
        """What `body` returned; the process has ended."""
        kind, value = self.hear()
        assert kind == "result", kind
        self.wait()
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The wait status. Fails if the process does not end: a client stuck in an ioctl cannot be killed."""
        if self._status is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], PATIENCE)[0]:
                    state = Path(f"/proc/{self.pid}/stack").read_text()
                    pytest.fail(f"client {self.pid} does not end:\n{state}")
            finally:
                os.close(pidfd)
            _, self._status = os.waitpid(self.pid, 0)
        return self._status

    def close(self) -> None:
        if self._status is None:
            self.kill()
        try:
            self.wait()
        finally:
            self._socket.close()


@contextlib.contextmanager
def client(path: Path, body: Callable[[Path, Talk], Any]) -> Iterator[Client]:
    """A client that has ended when the block is left."""
    process = Client(path, body)
    try:
        yield process
    finally:
        process.close()


def run(path: Path, body: Callable[[Path, Talk], Any]) -> Any:
    """Run a client to its end: what `body` returned."""
    with client(path, body) as process:
        return process.result()


# What clients do ------------------------------------------------------------------------------------------------------


def open_kvm(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def create_vm(kvm: int, kind: int = 0) -> int:
    return fcntl.ioctl(kvm, ioctls.KVM_CREATE_VM.number, kind)


def create_vcpu(vm: int, number: int = 0) -> int:
    return fcntl.ioctl(vm, ioctls.KVM_CREATE_VCPU.number, number)


def new_vm(path: Path) -> int:
    return create_vm(open_kvm(path))


def new_vcpu(path: Path) -> int:
    """The first of a new VM."""
    return create_vcpu(new_vm(path))


def map_run(vcpu: int, size: int = 3 * 4096) -> mmap.mmap:
    return mmap.mmap(vcpu, size)


def kvm_run(vcpu: int) -> int:
    return fcntl.ioctl(vcpu, ioctls.KVM_RUN.number, 0)


def map_raw(fd: int, size: int) -> None:
    """mmap(2) without Python's own look at the file's size."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    length = ctypes.c_size_t(size)
    address = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    libc.munmap(ctypes.c_void_p(address), length)


def errno_of(function: Callable[..., Any], *arguments: Any) -> int:
    """The errno that a call fails with, 0 when it does not."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0
