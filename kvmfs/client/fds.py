"""The file descriptors of a client.

A client names eventfds, guest_memfds and backing files by number; pidfd_getfd (5.6) gives us a duplicate. With
PIDFD_THREAD (6.9) the number is looked up in the calling thread's own table, as the kernel does; before, in the
table of its thread group leader, which is the same table unless the client has unshared it or the leader has exited.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType

from kvmfs.syscalls import Sys, syscall

_PIDFD_THREAD = os.O_EXCL  # pidfd_open: the fd stands for the thread itself, not for its leader


class Pidfd:
    """Owner of a pidfd: keeps a client's identity however its pid is reused. A context manager."""

    def __init__(self, tid: int) -> None:
        """Refer to thread `tid`, or to its process where threads have no pidfd. OSError(ESRCH) when it is gone."""
        try:
            self._fd = os.pidfd_open(tid, _PIDFD_THREAD)
        except OSError as error:
            if error.errno != errno.EINVAL or tid <= 0:
                raise
            self._fd = os.pidfd_open(tgid_of(tid))

    @classmethod
    def of_process(cls, tgid: int) -> Pidfd:
        """Refer to the process, so that the fd polls readable when its last thread is gone."""
        self = cls.__new__(cls)
        self._fd = os.pidfd_open(tgid)
        return self

    def fileno(self) -> int:
        """The pidfd, for poll: readable once the thread (or process) has ended."""
        return self._fd

    def getfd(self, number: int) -> int:
        """A duplicate of the client's descriptor `number`, the caller's to close.

        OSError: EBADF for a number that is not open, negative or beyond 32 bits; ESRCH when the client is gone;
        EPERM without ptrace access to it.
        """
        if not 0 <= number < 1 << 31:
            raise OSError(errno.EBADF, f"client fd {number}: {os.strerror(errno.EBADF)}")
        return syscall(Sys.PIDFD_GETFD, self._fd, number, 0)

    def close(self) -> None:
        """Give the pidfd back; may be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Pidfd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def getfd(tid: int, number: int) -> int:
    """A duplicate of descriptor `number` of thread `tid`, the caller's to close. Errors as for Pidfd.getfd."""
    with Pidfd(tid) as client:
        return client.getfd(number)


def status_of(tid: int) -> dict[str, str]:
    """The fields of /proc/TID/status. OSError(ESRCH) when there is no such thread."""
    try:
        text = Path(f"/proc/{tid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise OSError(errno.ESRCH, f"no thread {tid}") from None
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def tgid_of(tid: int) -> int:
    """The process that thread `tid` belongs to, in our pid namespace. OSError(ESRCH) when there is no such thread."""
    return int(status_of(tid)["Tgid"])


def threads_of(tgid: int) -> list[int]:
    """The threads of a process; empty when it is gone."""
    try:
        return [int(entry.name) for entry in Path(f"/proc/{tgid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def description(fd: int) -> str:
    """What one of our fds is, as procfs names it: a path, "anon_inode:[eventfd]", "/memfd:name (deleted)", ..."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())


def is_eventfd(fd: int) -> bool:
    """Whether one of our fds is an eventfd (eventfd_ctx_fileget would take it)."""
    return description(fd) == "anon_inode:[eventfd]"


def eventfd_id(fd: int) -> int:
    """What two descriptors of one eventfd have in common, as KVM compares eventfd contexts (5.2 and later).

    All eventfds share one inode, so fstat cannot tell them apart. OSError(EINVAL) when it is no eventfd, as
    eventfd_ctx_fileget has it.
    """
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "eventfd-id":
            return int(value)
    raise OSError(errno.EINVAL, f"fd {fd} is not an eventfd")


def same_inode(one: int, other: int) -> bool:
    """Whether two of our fds are of one file (memfds, regular files; not the anonymous inodes, which share one)."""
    return os.path.samestat(os.fstat(one), os.fstat(other))
