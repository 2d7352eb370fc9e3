"""The memory of a client, byte by byte.

process_vm_readv/writev go through the client's page tables as a load or store of its own would: protections hold,
missing pages are faulted in, userfaultfd is honoured. That makes them the equivalent of copy_from_user and
copy_to_user, whose only error is EFAULT. They need ptrace access to the client (same user, or CAP_SYS_PTRACE).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from kvmfs.syscalls import Sys, syscall

MAX_TRANSFER = 1 << 30
"""Most bytes of one read or write. The callers bound sizes as KVM does; this keeps a missed bound from being fatal."""

_CHUNK = 16 << 20
IOV_MAX = 1024
"""Most runs of one gather()."""

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


def gather(tid: int, runs: Sequence[tuple[int, int]], buffer: ctypes.Array[ctypes.c_char]) -> None:
    """Copy the bytes of up to IOV_MAX runs [start, end) of the thread's memory into `buffer`, one after the other.

    Errors as for read().
    """
    vector = _Iovec * len(runs)
    remote = vector(*(_Iovec(start, end - start) for start, end in runs))
    size = sum(end - start for start, end in runs)
    local = (_Iovec * 1)(_Iovec(ctypes.addressof(buffer), min(size, len(buffer))))
    _transfer(Sys.PROCESS_VM_READV, tid, local, remote, size)


def _check(address: int, size: int) -> None:
    if size < 0 or address < 0 or address + size > _ADDRESS_LIMIT:
        raise OSError(errno.EFAULT, f"{size} bytes at {address:#x} are not in any address space")
    if size > MAX_TRANSFER:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _copy(number: Sys, tid: int, ours: int, theirs: int, size: int) -> None:
    vector = _Iovec * 1
    _transfer(number, tid, vector(_Iovec(ours, size)), vector(_Iovec(theirs, size)), size)


def _transfer(number: Sys, tid: int, local: ctypes.Array[_Iovec], remote: ctypes.Array[_Iovec], size: int) -> None:
    try:
        done = syscall(number, tid, local, len(local), remote, len(remote), 0)
    except OSError as error:
        if error.errno in (errno.EFAULT, errno.ESRCH, errno.EINVAL):
            raise OSError(errno.EFAULT, f"thread {tid} has no memory at {remote[0].base:#x}") from None
        raise
    if done != size:
        raise OSError(errno.EFAULT, f"thread {tid} has only {done} bytes of {size} from {remote[0].base:#x} on")
