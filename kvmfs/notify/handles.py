"""The descriptors that clients hold: memfds, each of which stands for a file of a connection.

A memfd can be duplicated, inherited and passed on, and whoever has it has a descriptor of the same inode: that tells
which file is meant. A vCPU's is the memory of its run page, which is mapped like any file. The others hold nothing, are
sealed, and have the size of what they stand for.

That the last descriptor is closed, and the last mapping gone, is told by inotify: what a client gets is not the memfd's
own open file but one opened after it, for writing; no such file is left when a lease for reading can be had
(F_SETLEASE, fcntl(2)).
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvmfs.notify.link import Link
from kvmfs.syscalls import Sys, syscall

_IN_CLOSE: Final = 0x18
_EVENT: Final = struct.Struct("<iIII")
_F_SEAL_WRITE: Final = 8
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass(eq=False, slots=True)
class Handle:
    """What a client's descriptor stands for: an open file of a connection."""

    link: Link
    node: int
    fh: int
    fd: int
    """Ours, open for reading."""
    inode: int
    closed: Callable[[Handle], None]
    runs: bool = False
    """It is a vCPU's."""


class Handles:
    """All handles of a broker."""

    def __init__(self) -> None:
        """In the main thread."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # to us, should a client open a file while we look at it
        self._events = syscall(Sys.INOTIFY_INIT1, os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._by_inode: dict[int, Handle] = {}
        self._by_watch: dict[int, Handle] = {}
        probe = os.memfd_create("", os.MFD_CLOEXEC)
        self._device = os.fstat(probe).st_dev
        os.close(probe)
        threading.Thread(target=self._listen, name="handles", daemon=True).start()

    def of(self, tid: int, number: int) -> Handle | None:
        """What descriptor `number` of thread `tid` stands for."""
        try:
            status = os.stat(f"/proc/{tid}/fd/{number}")  # noqa: PTH116  on the way of every KVM_RUN
        except OSError:
            return None
        return self._by_inode.get(status.st_ino) if status.st_dev == self._device else None

    def behind(self, fd: int) -> Handle | None:
        """What one of our descriptors stands for."""
        status = os.fstat(fd)
        return self._by_inode.get(status.st_ino) if status.st_dev == self._device else None

    def empty(
        self, name: str, size: int, link: Link, node: int, fh: int, closed: Callable[[Handle], None]
    ) -> tuple[Handle, int]:
        """A file with nothing in it, and a descriptor for a client, the caller's to close."""
        memfd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memfd, size)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_WRITE)
            # Opened for writing only it cannot be read and not be mapped; sealed, it cannot be written.
            return self._make(memfd, os.O_WRONLY, link, node, fh, closed)
        finally:
            os.close(memfd)

    def memory(
        self, memfd: int, link: Link, node: int, fh: int, closed: Callable[[Handle], None]
    ) -> tuple[Handle, int]:
        """The same for a memfd that the client may map."""
        handle, fd = self._make(memfd, os.O_RDWR, link, node, fh, closed)
        handle.runs = True
        return handle, fd

    def _make(
        self, memfd: int, how: int, link: Link, node: int, fh: int, closed: Callable[[Handle], None]
    ) -> tuple[Handle, int]:
        path = f"/proc/self/fd/{memfd}"
        ours = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        theirs = -1
        try:
            handle = Handle(link, node, fh, ours, os.fstat(ours).st_ino, closed)
            theirs = os.open(path, how | os.O_CLOEXEC)
            with self._lock:
                self._by_watch[syscall(Sys.INOTIFY_ADD_WATCH, self._events, path, _IN_CLOSE)] = handle
                self._by_inode[handle.inode] = handle
        except BaseException:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)
            raise
        return handle, theirs

    def _listen(self) -> None:
        while True:
            events = os.read(self._events, 4096)
            at = 0
            while at < len(events):
                watch, _, _, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size + length
                for closed in [watch] if watch >= 0 else list(self._by_watch):  # -1: events have been lost
                    handle = self._by_watch.get(closed)
                    if handle and not _is_open(handle.fd):
                        self._forget(closed, handle)

    def _forget(self, watch: int, handle: Handle) -> None:
        with self._lock:
            del self._by_watch[watch]
            del self._by_inode[handle.inode]
        syscall(Sys.INOTIFY_RM_WATCH, self._events, watch)
        os.close(handle.fd)
        handle.closed(handle)


def _is_open(fd: int) -> bool:
    """Whether anybody has the file open for writing."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
