"""A client's thread, borrowed while it is in a system call that we answer.

A kernel module puts a descriptor or a mapping into the process that called it. From outside, only a thread of that
process can: so the thread that waits in its ioctl is caught on its way out (ptrace.py has the facts), makes the calls
for us, gets the result of its ioctl and goes on, none the wiser.

    seize(tid) ── stop_after(answer) ── install(fd), adopt(...), ... ── finish(result)
       └───────────────┴──────────────────────┴──────────────────────── abandon()

The trap wakes the thread up once in its wait, and for a FUSE request that means a FUSE_INTERRUPT: the server must take
no notice of it for a request that is being borrowed.

A trace lives in one OS thread, so every Borrow has its own; the methods may be called from any thread, one at a time.
When it ends, the kernel detaches what is still traced. This also makes giving up safe: when the client does not stop
in time the caller gets EIO, and the OS thread stays parked in waitpid, for no CPU, until the client stops after all
(it then goes on with the answer it had) or has died (it is then reaped: the parent of a traced process does not learn
of its death before the tracer has).
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from kvmfs.client import adopt, inject
from kvmfs.client.fds import status_of
from kvmfs.client.inject import Injection
from kvmfs.client.ptrace import Tracee

PATIENCE = 5.0
"""Seconds that a client has for each step before we give up on it: of our waiting, not of a clock. On a machine so busy
that we are not waked in time, the client is not run either."""

LEASE = 60.0
"""Seconds that a client is held while nobody asks anything of it; then it is let go."""

_COPY_SPEED = 1 << 28  # bytes per second that even a loaded machine copies
_PARTING = 0.1  # seconds that an OS thread which has nothing left to do may take to end
_LOOK = 0.1  # seconds between looks at whether a client that takes long is dead

_R = TypeVar("_R")


class _Call(Generic[_R]):
    """A call made in one thread for another; either has an outcome or has been given up, never both."""

    def __init__(self, function: Callable[[], _R]) -> None:
        self._function = function
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._result: _R
        self._error: BaseException | None = None
        self.given_up = False

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        with self._lock:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def give_up(self) -> None:
        with self._lock:
            self.given_up = not self._done.is_set()

    def outcome(self) -> _R:
        if self._error:
            raise self._error
        return self._result


class Borrow:
    """A thread of a client in our hands. Made by seize(); ends with finish() or abandon(), or the end of `with`."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._over = False
        self._parked = False  # the OS thread waits for a client that may never stop
        self._tracee: Tracee | None = None  # this and the next belong to the OS thread
        self._injection: Injection | None = None
        self._thread = threading.Thread(target=self._serve, name=f"borrow-{tid}", daemon=True)
        self._thread.start()

    @classmethod
    def seize(cls, tid: int) -> Borrow:
        """Take hold of thread `tid`, which waits in a system call that only we can answer. It does not notice yet.

        OSError: EBUSY when it is traced already; EPERM when we may not trace it; ESRCH when it is gone.
        """
        self = cls(tid)
        try:
            self._call(self._seize)
        except BaseException:
            self._end()
            raise
        return self

    def stop_after(self, answer: Callable[[], None]) -> None:
        """Call `answer`, which must let the system call return, and wait until the thread is stopped on its way out.

        `answer` is called in another OS thread. The result that it gives is seen only if the client gets out of our
        hands, so let it be -EIO. What it raises is raised here. OSError: EIO when the thread does not stop in
        PATIENCE seconds; ESRCH when it dies; ENOSYS when it came by another way than a 64-bit `syscall`: after that
        one, finish() still gives the system call its result.
        """
        self._call(lambda: self._stop_after(answer))

    def install(self, fd: int, cloexec: bool = True) -> int:
        """Give the client a duplicate of `fd`; its number there, the lowest free one as for any open.

        OSError: EMFILE at the client's own limit; ENFILE, ENOMEM, ... as the client's system calls give; ESRCH, EIO.
        """

        def work(injection: Injection) -> int:
            number = inject.install(injection, fd, cloexec)
            if self._over:  # given up meanwhile: nobody would learn of it
                injection.syscall(inject.SYS_CLOSE, number)
            return number

        return self.run(work)

    def adopt(self, address: int, length: int) -> int:
        """Make private memory of the client shared, in place: the memfd behind it, the caller's (see adopt.py).

        OSError, and nothing has changed: EINVAL, EBUSY, ENOMEM, EMFILE, ESRCH, EIO.
        """

        made: list[int] = []

        def discard() -> None:
            with contextlib.suppress(IndexError):
                os.close(made.pop())

        def work(injection: Injection) -> None:
            made.append(adopt.adopt(injection, address, length))
            if self._over:
                discard()

        try:
            self.run(work, PATIENCE + length / _COPY_SPEED)
        except BaseException:
            discard()
            raise
        return made.pop()

    def poison(self, address: int) -> None:
        """Send it the SIGBUS of a memory error at `address`, to be taken when it is let go. OSError: ESRCH, EIO."""
        self.run(lambda injection: inject.poison(injection, address))

    def syscall(self, number: int, *args: int) -> int:
        """Make the thread do a system call. OSError with the errno it gave; ESRCH, EIO."""
        return self.run(lambda injection: injection.syscall(number, *args))

    def run(self, work: Callable[[Injection], _R], patience: float | None = None) -> _R:
        """Call `work`, in the OS thread that holds the client, with the means to make system calls in it.

        OSError: EIO when that takes longer than `patience` seconds; ESRCH; what `work` raises.
        """

        def inside() -> _R:
            if self._injection is None:
                raise OSError(errno.ESRCH, f"thread {self.tid} is not stopped")
            with self._injection.calls():
                return work(self._injection)

        return self._call(inside, patience)

    def finish(self, result: int) -> None:
        """Let the thread go, its system call returning `result` (a negative errno for a failure). OSError(ESRCH)."""
        try:
            self._call(lambda: self._detach(result))
        finally:
            self._end()

    def abandon(self) -> None:
        """Let the thread go as if it had never been seized; its system call returns what the answer said, if any.

        For every failure; may be called at any time, after the end too. Raises nothing.
        """
        with contextlib.suppress(OSError):
            self._call(lambda: self._detach(None))
        self._end()
        if not self._parked:
            self._thread.join()  # where the client runs, only the thread's end lets it go

    def __enter__(self) -> Borrow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abandon()

    # The caller's side.

    def _call(self, function: Callable[[], _R], patience: float | None = None) -> _R:
        if self._over:
            raise OSError(errno.ESRCH, f"thread {self.tid} is out of our hands")
        call = _Call(function)
        self._calls.put(call)
        looks = (PATIENCE if patience is None else patience) / _LOOK
        while not call.wait(_LOOK):
            looks -= 1
            if (dead := _is_dead(self.tid)) or looks < 0:
                call.give_up()
                if call.given_up:
                    self._over = self._parked = True
                    raise OSError(errno.ESRCH if dead else errno.EIO, f"thread {self.tid} did not stop")
        return call.outcome()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._calls.put(None)

    # The OS thread's side.

    def _serve(self) -> None:
        with contextlib.suppress(queue.Empty):
            while call := self._calls.get(timeout=LEASE):
                call.run()
                if call.given_up:
                    break
                del call  # nothing of the caller's is kept while we wait for the next
        self._over = True
        with contextlib.suppress(OSError):
            self._detach(None)

    def _seize(self) -> None:
        deadline = time.monotonic() + _PARTING
        while True:
            try:
                self._tracee = Tracee(self.tid)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline or not _is_passing(self.tid):
                    raise
            time.sleep(_PARTING / 100)  # the OS thread of a Borrow before us is about to end

    def _stop_after(self, answer: Callable[[], None]) -> None:
        if self._tracee is None:
            raise OSError(errno.ESRCH, f"thread {self.tid} is not seized")
        self._tracee.interrupt()
        answer()
        stop = self._tracee.wait()
        self._injection = Injection(self._tracee, stop)
        self._injection.check()

    def _detach(self, result: int | None) -> None:
        injection, self._injection = self._injection, None
        tracee, self._tracee = self._tracee, None
        if injection:
            injection.detach(result)
        elif tracee:
            tracee.close()  # it runs: only the end of this OS thread detaches it


def _is_dead(tid: int) -> bool:
    try:
        return status_of(tid)["State"][0] in "ZX"
    except OSError:
        return True


def _is_passing(tid: int) -> bool:
    """Whether the tracer of a thread is a thread of our process, or gone by now."""
    tracer = status_of(tid)["TracerPid"]
    return Path(f"/proc/self/task/{tracer}").exists() or not Path(f"/proc/{tracer}").exists()
