"""The memory of a client, byte by byte.

process_vm_readv/writev go through the client's page tables as a load or store of its own would: protections hold,
missing pages are faulted in, userfaultfd is honoured. That makes them the equivalent of copy_from_user and
copy_to_user, whose only error is EFAULT. They need ptrace access to the client (same user, or CAP_SYS_PTRACE).
"""

from __future__ import annotations

import ctypes
import errno
import os

from kvmfs.syscalls import Sys, syscall

MAX_TRANSFER = 1 << 30
"""Most bytes of one read or write. The callers bound sizes as KVM does; this keeps a missed bound from being fatal."""

_CHUNK = 16 << 20
_ADDRESS_LIMIT = 1 << 64


class _Iovec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_uint64), ("length", ctypes.c_uint64))


def read(tid: int, address: int, size: int) -> bytes:
    """`size` bytes at `address` in the memory of thread `tid`.

    OSError(EFAULT) when any byte of it cannot be read, be the address negative, wrapping or non-canonical, and when
    the thread is gone (its ioctl has no one left to see another errno); ENOMEM beyond MAX_TRANSFER; EPERM when we
    have no right to the client's memory.
    """
    if not size:
        return b""
    _check(address, size)
    parts = []
    for offset in range(0, size, _CHUNK):  # grows only as far as the client really has memory
        length = min(_CHUNK, size - offset)
        buffer = ctypes.create_string_buffer(length)
        _copy(Sys.PROCESS_VM_READV, tid, ctypes.addressof(buffer), address + offset, length)
        parts.append(buffer.raw)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write(tid: int, address: int, data: bytes | bytearray | memoryview) -> None:
    """Put `data` at `address` in the memory of thread `tid`.

    Errors as for read(). As with copy_to_user, bytes before the one that failed may have been written.
    """
    size = len(data)
    if not size:
        return
    _check(address, size)
    source = (ctypes.c_char * size).from_buffer_copy(data)
    _copy(Sys.PROCESS_VM_WRITEV, tid, ctypes.addressof(source), address, size)


def read_into(tid: int, address: int, buffer: int, size: int) -> None:
    """As read(), of any size, to our own address `buffer`, where `size` bytes must be writable."""
    _check_range(address, size)
    for offset in range(0, size, MAX_TRANSFER):
        _copy(Sys.PROCESS_VM_READV, tid, buffer + offset, address + offset, min(MAX_TRANSFER, size - offset))


def _check(address: int, size: int) -> None:
    _check_range(address, size)
    if size > MAX_TRANSFER:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _check_range(address: int, size: int) -> None:
    if size < 0 or address < 0 or address + size > _ADDRESS_LIMIT:
        raise _fault(address)


def _copy(number: Sys, tid: int, ours: int, theirs: int, size: int) -> None:
    local, remote = _Iovec(ours, size), _Iovec(theirs, size)
    try:
        done = syscall(number, tid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.ESRCH, errno.EINVAL):
            raise _fault(theirs) from None
        raise
    if done != size:
        raise _fault(theirs + done)


def _fault(address: int) -> OSError:
    return OSError(errno.EFAULT, f"no client memory at {address:#x}")
