"""A userfaultfd of a client's memory: accesses to missing pages wait instead of getting a page of zeros.

A userfaultfd belongs to the memory of the process that makes it; a duplicate of it works from anywhere. Making one that
also holds up the kernel's own accesses (a read(2) into that memory) takes CAP_SYS_PTRACE or /dev/userfaultfd (6.1),
and as its ioctl too serves the memory of the caller, the client can be lent the device. Closing the last descriptor
lets everybody who waits look again.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from types import TracebackType

from kvmfs.client.fds import getfd
from kvmfs.client.inject import SYS_CLOSE, Injection, install

_DEVICE = Path("/dev/userfaultfd")
_SYS_IOCTL, _SYS_USERFAULTFD = 16, 323
_NEW = 0xAA00
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_API_VERSION = 0xAA
_REGISTER_MODE_MISSING = 1


class Userfault:
    """Owner of a userfaultfd of the client that `injection` holds. A context manager; at its end nobody waits."""

    def __init__(self, injection: Injection) -> None:
        """OSError: what the kernel or the client's sandbox says where there is no userfaultfd to be had."""
        theirs = _create(injection)
        try:
            self._fd = getfd(injection.tracee.tid, theirs)
        except BaseException:
            injection.syscall(SYS_CLOSE, theirs)
            raise
        try:
            injection.syscall(SYS_CLOSE, theirs)
            self._ioctl(_API, _API_VERSION, 0, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def hold(self, address: int, length: int) -> None:
        """From now on, accesses to missing pages in the range wait. OSError(EBUSY): another userfaultfd has it."""
        self._ioctl(_REGISTER, address, length, _REGISTER_MODE_MISSING, 0)

    def __enter__(self) -> Userfault:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def _ioctl(self, command: int, *words: int) -> None:
        fcntl.ioctl(self._fd, command, (ctypes.c_uint64 * len(words))(*words))


def _create(injection: Injection) -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return injection.syscall(_SYS_USERFAULTFD, flags)
    try:
        lent = install(injection, device)
    finally:
        os.close(device)
    try:
        return injection.syscall(_SYS_IOCTL, lent, _NEW, flags)
    finally:
        injection.syscall(SYS_CLOSE, lent)
