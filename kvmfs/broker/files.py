"""Files that pass between a client, the broker and a worker."""

from __future__ import annotations

import errno
import fcntl
import os

from kvmfs.client import maps
from kvmfs.worker import channel
from kvmfs.worker.channel import Message


def map_shared(tid: int, address: int, length: int) -> tuple[Message, list[int]]:
    """What [address, address + length) of the client consists of; in another OS thread, as a disk may be involved."""
    pieces: list[tuple[int, int, str, int, int, bool]] = []
    found: list[int] = []
    try:
        for piece in maps.backing(tid, address, length):
            kind, index, writable = piece.kind, -1, True
            if kind is maps.Kind.SHARED:
                if len(found) == channel.MAX_FDS:
                    raise OSError(errno.ENOMEM, f"more than {channel.MAX_FDS} mapped files behind one memory region")
                try:
                    found.append(maps.open_backing(tid, piece))
                    index = len(found) - 1
                    writable = fcntl.fcntl(found[index], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
                except OSError:  # a device, or a file that we have no way to: page by page then
                    kind = maps.Kind.OTHER
            pieces.append((piece.address, piece.length, kind.name, index, piece.offset, writable))
    except BaseException:
        channel.close_all(found)
        raise
    return {"pieces": pieces}, found


def schedstat(tgid: int, tid: int) -> int:
    """What the scheduler accounts to a thread of a process, open for reading. OSError(ENOENT): there is none."""
    return os.open(f"/proc/{tgid}/task/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)


def inspection(fd: int) -> int:
    """A VM's inspection file, opened for reading only. ValueError: it is none, or could change under a reader."""
    sealed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    if not is_memfd(fd) or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & sealed != sealed:
        raise ValueError("not a sealed memfd")
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


def is_memfd(fd: int) -> bool:
    """Whether a file lies where only files without names do: the kernel's own shmem file system."""
    own = os.memfd_create("", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev == os.fstat(own).st_dev
    finally:
        os.close(own)
