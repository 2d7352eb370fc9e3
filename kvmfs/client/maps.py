"""What lies behind a range of a client's memory.

/proc/TID/maps has a line for every mapping (VMA): bounds, protections, shared or private, offset, device:inode and
name. A blank or a newline in a file's name is escaped or harmless, as the name comes last. Anonymous private memory
has inode 0 and no name, or one in brackets; MAP_SHARED|MAP_ANONYMOUS memory is a file, "/dev/zero (deleted)", of
tmpfs; hugetlb memory is always a file.

/proc/TID/map_files has a link for every mapping of a file, by its bounds, that opens the very file, unlinked or
without any name (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in the initial user namespace). Its mode bits tell how the
client had opened it. Without that privilege a descriptor of the client's that is still open on the file will do.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvmfs.client.fds import Pidfd


class Kind(enum.Enum):
    """How a piece of client memory can be reached by others."""

    SHARED = "shared"
    """A regular file mapped MAP_SHARED (memfd, shmem, hugetlb, disk): open_backing() and map it as well."""
    ANONYMOUS = "anonymous"
    """Private anonymous memory: can be adopted."""
    PRIVATE = "private"
    """A file mapped MAP_PRIVATE: can be adopted, with a copy of what the file has there."""
    OTHER = "other"
    """Programs, devices, growing stacks, the vDSO: only through the client's page tables."""
    HOLE = "hole"
    """Nothing is mapped."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a client's memory within one mapping."""

    address: int
    length: int
    kind: Kind
    prot: int = 0
    """mmap.PROT_*."""
    offset: int = 0
    """Where in the file `address` is; of a file."""
    inode: tuple[int, int] = (0, 0)
    """(st_dev, st_ino); of a file."""
    mapping: tuple[int, int] = (0, 0)
    """First and end address of the whole mapping."""

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.length


_ADOPTABLE = ("", "[heap]")
_NAMED = "[anon:"  # prctl(PR_SET_VMA_ANON_NAME)


def backing(tid: int, address: int, length: int) -> list[Piece]:
    """The pieces that [address, address + length) consists of, in order, without gaps.

    OSError(ESRCH) when the thread is gone, EPERM without ptrace access to it.
    """
    pieces: list[Piece] = []
    at, end = address, address + length
    for whole in mappings(tid):
        if whole.end <= at:
            continue
        if at >= end or whole.address >= end:
            break
        if whole.address > at:
            pieces.append(Piece(at, whole.address - at, Kind.HOLE))
            at = whole.address
        offset = whole.offset + at - whole.address if whole.inode[1] else 0
        pieces.append(replace(whole, address=at, length=min(end, whole.end) - at, offset=offset))
        at = pieces[-1].end
    if at < end:
        pieces.append(Piece(at, end - at, Kind.HOLE))
    return pieces


def mappings(tid: int) -> Iterator[Piece]:
    """All mappings of a thread's memory in order of address. Errors as for backing()."""
    try:
        text = Path(f"/proc/{tid}/maps").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        text = b""
    if not text:  # a process that is about to be gone has no memory left
        raise OSError(errno.ESRCH, f"no thread {tid}")
    return map(_parse, text.splitlines())


def _parse(line: bytes) -> Piece:
    bounds, permissions, offset, device, inode, *names = line.split(maxsplit=5)
    low, high = (int(bound, 16) for bound in bounds.split(b"-"))
    name = names[0].decode(errors="surrogateescape") if names else ""
    number = int(inode)
    if permissions[3:4] == b"s":
        kind = Kind.SHARED if number else Kind.OTHER
    elif not number and (name in _ADOPTABLE or name.startswith(_NAMED)):
        kind = Kind.ANONYMOUS
    elif number and permissions[2:3] != b"x":
        kind = Kind.PRIVATE
    else:
        kind = Kind.OTHER
    prot = 0
    for bit, letter, place in ((mmap.PROT_READ, b"r", 0), (mmap.PROT_WRITE, b"w", 1), (mmap.PROT_EXEC, b"x", 2)):
        prot |= bit * (permissions[place : place + 1] == letter)
    major, minor = (int(part, 16) for part in device.split(b":"))
    return Piece(low, high - low, kind, prot, int(offset, 16), (os.makedev(major, minor), number), (low, high))


def open_backing(tid: int, piece: Piece) -> int:
    """The file of a SHARED or PRIVATE piece, opened as the client had it where that is writable, else for reading.

    The caller owns the fd. OSError: ENODEV when it is no regular file (a device would be opened anew, as another one);
    ENOENT when the mapping is gone; EPERM when nothing that we may use leads to the file.
    """
    try:
        return _open_mapped(Path(f"/proc/{tid}/map_files/{piece.mapping[0]:x}-{piece.mapping[1]:x}"))
    except PermissionError:
        fd = _find_descriptor(tid, piece.inode)
        if fd is None:
            raise
        return fd


def _open_mapped(link: Path) -> int:
    writable = link.lstat().st_mode & stat.S_IWUSR
    path = os.open(link, os.O_PATH | os.O_CLOEXEC)  # opens nothing yet: the device might do something about it
    try:
        if not stat.S_ISREG(os.fstat(path).st_mode):
            raise OSError(errno.ENODEV, f"{link}: not a regular file")
        again = f"/proc/self/fd/{path}"
        if writable:
            with contextlib.suppress(PermissionError, OSError):  # a read-only file system, a program being run
                return os.open(again, os.O_RDWR | os.O_CLOEXEC)
        return os.open(again, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(path)


def _find_descriptor(tid: int, inode: tuple[int, int]) -> int | None:
    """A duplicate of a descriptor that the client has of a regular file; a writable one if there is one."""
    found: int | None = None
    with Pidfd(tid) as client:
        for entry in Path(f"/proc/{tid}/fd").iterdir():
            with contextlib.suppress(OSError):
                status = entry.stat()
                if (status.st_dev, status.st_ino) != inode or not stat.S_ISREG(status.st_mode):
                    continue
                fd = client.getfd(int(entry.name))
                mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
                if mode == os.O_RDWR or (mode == os.O_RDONLY and found is None):
                    fd, found = -1 if found is None else found, fd
                if fd >= 0:
                    os.close(fd)
                if mode == os.O_RDWR:
                    break
    return found
