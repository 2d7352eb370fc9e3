"""Linux system calls that Python 3.11 has no function for, by number, through one helper that raises.

x86-64 only, as all of kvmfs. ``ctypes`` keeps a private errno per thread (``use_errno``) and drops the GIL around the
call, so a thread may block here.
"""

import ctypes
import os
from enum import IntEnum
from typing import Any

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class Sys(IntEnum):
    """System call numbers. Source: arch/x86/entry/syscalls/syscall_64.tbl."""

    PTRACE = 101
    CAPGET = 125
    CAPSET = 126
    PRCTL = 157
    MOUNT = 165
    UMOUNT2 = 166
    EPOLL_CTL = 233
    INOTIFY_ADD_WATCH = 254
    INOTIFY_RM_WATCH = 255
    UNSHARE = 272
    TIMERFD_CREATE = 283
    SIGNALFD4 = 289
    INOTIFY_INIT1 = 294
    PROCESS_VM_READV = 310
    PROCESS_VM_WRITEV = 311
    SECCOMP = 317
    STATX = 332
    OPEN_TREE = 428
    MOVE_MOUNT = 429
    FSOPEN = 430
    FSCONFIG = 431
    FSMOUNT = 432
    CLOSE_RANGE = 436
    PIDFD_GETFD = 438
    MOUNT_SETATTR = 442


def syscall(number: Sys, *args: Any, path: str | None = None) -> int:
    """Make one system call.

    :param args: integers become machine words, ``bytes`` and ``str`` NUL-terminated strings, ``None`` a null pointer;
        ctypes objects (``byref(...)``, arrays) pass as they are.
    :param path: named in the error, as the functions in ``os`` do.
    :raises OSError: the call failed; the subclass fits the errno.
    """
    result: int = _syscall(ctypes.c_long(number), *map(_argument, args))
    if result == -1:
        errno = ctypes.get_errno()
        message = f"{number.name.lower()}: {os.strerror(errno)}"
        raise OSError(errno, message) if path is None else OSError(errno, message, path)
    return result


def _argument(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, str):
        return ctypes.c_char_p(os.fsencode(value))
    return value
