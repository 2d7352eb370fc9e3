"""Signals of threads that wait for us: an ioctl that somebody has a signal for is to end with EINTR, soon.

A thread whose notification has been received is not woken by signals, and no file tells that another process got one.
But a signalfd wakes who polls it whenever a process gets any signal (signalfd_notify), and *what* process is settled
when it is put into an epoll set: the client is made to put a signalfd of ours into an epoll set of ours. Whether there
is something to read is asked in the name of who waits for the epoll set, us. So our thread keeps a signal pending for
itself, and an edge-triggered wait ends exactly when a client got a signal. Which of its threads that is for, and
whether they block it, /proc/TID/status says.

Three things are not told that way: a signal that came while the notification was just being received, a process that
stops (its threads are not in the state to take part), and clients that could not be made to help. So whoever has waited
for a millisecond is looked at once more, and those of clients that do not help are looked at every millisecond.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvmfs.client.fds import status_of, tgid_of
from kvmfs.client.inject import SYS_CLOSE, Injection, install
from kvmfs.notify.link import Request
from kvmfs.syscalls import Sys, syscall

_TICK: Final = 0.001
_PROBE: Final = signal.SIGRTMAX
_EPOLL_CTL_ADD: Final = 1
_EVENT: Final = struct.Struct("<Iq")  # epoll_event
_ALL: Final = b"\xff" * 8


class Signals:
    """The thread that looks for them."""

    def __init__(self, waiting: Callable[[], Iterable[Request]], interrupt: Callable[[Request], None]) -> None:
        """:param waiting: whose ioctls are under way; :param interrupt: told of each that has a signal."""
        self._waiting, self._interrupt = waiting, interrupt
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._asleep = False
        self._watched: dict[int, int] = {}  # by tgid, our signalfd in that client's name
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def watches(self, tgid: int) -> bool:
        return tgid in self._watched

    def watch(self, injection: Injection, tgid: int) -> None:
        """Have a client's signals told, from now on. Within injection.calls(). OSError."""
        ours = syscall(Sys.SIGNALFD4, -1, _ALL, len(_ALL), os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with _lent(injection, self._epoll.fileno()) as epoll, _lent(injection, ours) as theirs:
                event = _EVENT.pack(select.EPOLLIN | select.EPOLLET, ours)
                injection.tracee.poke(injection.scratch, event)
                injection.syscall(Sys.EPOLL_CTL, epoll, _EPOLL_CTL_ADD, theirs, injection.scratch)
        except BaseException:
            os.close(ours)
            raise
        self._watched[tgid] = ours

    def forget(self, tgid: int) -> None:
        """The client is gone, or has no VM any more."""
        if (fd := self._watched.pop(tgid, -1)) >= 0:
            os.close(fd)

    def waits(self) -> None:
        """Somebody has begun to wait."""
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._bell, 1)

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [_PROBE])
        signal.pthread_kill(threading.get_ident(), _PROBE)
        again = False
        while True:
            self._asleep = not again
            unseen = any(not request.looked_at for request in self._waiting())
            events = self._epoll.poll(_TICK if again or unseen else None)
            self._asleep = False
            if any(source == self._bell for source, _ in events):
                os.eventfd_read(self._bell)
            again = any(source != self._bell for source, _ in events)
            self._look(told=again)

    def _look(self, told: bool) -> None:
        """Look at those who wait: all of them, or those who have not been looked at when it was time to."""
        now = time.monotonic()
        for request in list(self._waiting()):
            aged = now - request.since >= _TICK
            if request.interrupted or not (told or (aged and not request.looked_at)) or not request.notification:
                continue
            if _has_signal(request.notification.tid):
                self._interrupt(request)
            elif aged and self._is_watched(request.notification.tid):
                request.looked_at = True

    def _is_watched(self, tid: int) -> bool:
        try:
            return tgid_of(tid) in self._watched
        except OSError:
            return True  # nobody is there


@contextmanager
def _lent(injection: Injection, fd: int) -> Iterator[int]:
    """A duplicate of ours in the client, for a moment."""
    theirs = install(injection, fd)
    try:
        yield theirs
    finally:
        injection.syscall(SYS_CLOSE, theirs)


def _has_signal(tid: int) -> bool:
    """Whether a thread would return from an interruptible wait."""
    try:
        status = status_of(tid)
        pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
        if pending & ~int(status["SigBlk"], 16):
            return True
        leader = status["Tgid"]
        return leader != str(tid) and Path(f"/proc/{leader}/stat").read_text().rpartition(") ")[2].startswith("T")
    except (OSError, KeyError, ValueError):
        return False
