"""Adoption: private memory of a client becomes shared memory that we can map, in place, with all that is in it.

A thread of the client maps a memfd of ours over the range. No other thread may be at that memory while its pages are
carried over, and there are two ways to see to that:

- userfaultfd. The range is registered, then mremap(MREMAP_DONTUNMAP) takes all its pages elsewhere at a stroke.
  Whoever touches the range now waits, in user space or in a system call, in whatever process that shares the memory;
  threads that do not are not disturbed. The pages are copied from where they went, the memfd is mapped over the range,
  and closing the userfaultfd lets the others go on. If that fails half-way the pages go back where they were.
- ptrace, where there is no userfaultfd (containers forbid it): all other threads are stopped meanwhile. System calls
  that Linux does not restart after a stop (epoll_wait, ...: signal(7)) return EINTR in them. Threads that `busy` tells
  of, blocked in an ioctl whose answer a signal would change, are not stopped; they are safe for as long as they stay
  in there, and so are processes that share the memory without being threads, for as long as they leave it alone.

A private mapping of a file is adopted with a copy of what the file has there, always the second way: a touch of what is
in the page cache asks no userfaultfd. What others write to the file later is not seen (mmap(2) leaves that open).

What the mapping was goes with it: private memory is copied by fork, shared memory is not; MADV_* and mlock of the range
are gone, and a NUMA policy. Memory that a device or io_uring is about to write to (O_DIRECT) must not be adopted then:
the pages that it has pinned are no longer the client's. A page that transparent huge pages have filled with zeros is
carried over like any other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import heapq
import logging
import mmap
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kvmfs.client import memory, pagemap
from kvmfs.client.fds import threads_of
from kvmfs.client.inject import SYS_CLOSE, Injection, install
from kvmfs.client.limits import raised
from kvmfs.client.maps import Kind, Piece, backing, open_backing
from kvmfs.client.ptrace import Stop, Tracee
from kvmfs.client.userfault import Userfault

NAME = "kvmfs:guestmem"
"""Of the memfd; /proc/PID/maps shows it."""

COPY_LIMIT = 1 << 30
"""Bytes of files; the copy is memory that the client did not ask for."""

_SYS_MMAP, _SYS_MPROTECT, _SYS_MUNMAP, _SYS_IOCTL, _SYS_MREMAP = 9, 10, 11, 16, 25
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_BUFFER = 1 << 20
_HUGE = 2 << 20
_STOP_PATIENCE = 1.0  # seconds for another thread to stop
_KVM_IOCTL = 0xAE  # the type byte of KVM's ioctls

_log = logging.getLogger(__name__)


def in_kvm_ioctl(tid: int) -> bool:
    """Whether a thread is blocked in one of KVM's ioctls: what a stop would make return EINTR."""
    try:
        number, *arguments = Path(f"/proc/{tid}/syscall").read_text().split()
    except (OSError, ValueError):
        return False
    return number == str(_SYS_IOCTL) and int(arguments[1], 16) >> 8 & 0xFF == _KVM_IOCTL


def adopt(
    injection: Injection,
    address: int,
    length: int,
    busy: Callable[[int], bool] = in_kvm_ioctl,
    userfault: bool = True,
) -> int:
    """Make [address, address + length) of the client a shared mapping of a new memfd, which is returned.

    Within injection.calls(). `address` is at offset 0 of the memfd, which has `length` bytes and cannot shrink; the
    caller owns it. Pages that hold nothing stay holes. Protections stay as they were, mapping by mapping. `busy` tells
    the threads that must not be stopped, where threads have to be; `userfault` False has them stopped in any case.

    OSError, and nothing has changed: EINVAL when the range is not page-aligned or not private memory throughout, or
    cuts through huge pages; EFBIG when it is of a file that has more than COPY_LIMIT there; EBUSY when the client has a
    userfaultfd at it (known only where we can have one), or a thread to be stopped is traced; ENOMEM; EMFILE; EIO when
    a thread does not stop; ESRCH when the client dies. The mappings of a range are replaced one at a time: should the
    client run out of memory half-way, what is shared already stays so, which it cannot tell but from /proc.
    """
    tid = injection.tracee.tid
    pieces = _plan(tid, address, length)
    memfd = _create(length)
    try:
        with contextlib.ExitStack() as stack:
            theirs = install(injection, memfd)
            stack.callback(injection.syscall, SYS_CLOSE, theirs)
            transfer = _Transfer(injection, address, memfd, theirs)
            anonymous = all(piece.kind is Kind.ANONYMOUS for piece in pieces)
            if userfault and anonymous and (held := _userfault(injection)):
                stack.enter_context(held)
                transfer.aside(held, pieces)
            else:
                stack.enter_context(_others_stopped(injection.tracee, busy))
                transfer.in_place(pieces)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def _plan(tid: int, address: int, length: int) -> list[Piece]:
    if length <= 0 or address % mmap.PAGESIZE or length % mmap.PAGESIZE:
        raise OSError(errno.EINVAL, f"{length:#x} bytes at {address:#x} are not whole pages")
    pieces = backing(tid, address, length)
    for piece in pieces:
        if piece.kind not in (Kind.ANONYMOUS, Kind.PRIVATE):
            raise OSError(errno.EINVAL, f"memory at {piece.address:#x} is not private: {piece.kind}")
    if sum(end - start for piece in pieces for start, end in _file_data(tid, piece)) > COPY_LIMIT:
        raise OSError(errno.EFBIG, f"the files behind {length:#x} bytes at {address:#x} are too large to copy")
    return pieces


def _file_data(tid: int, piece: Piece) -> list[tuple[int, int]]:
    """Where the file of a PRIVATE piece has data, as addresses of whole pages; nothing for other pieces.

    OSError when it is no regular file, or not ours to open; EINVAL when the piece has parts of huge pages.
    """
    if piece.kind is not Kind.PRIVATE:
        return []
    fd = open_backing(tid, piece)
    try:
        status = os.fstat(fd)
        huge = status.st_blksize >= _HUGE  # hugetlbfs
        if huge and (piece.address | piece.length) % status.st_blksize:
            raise OSError(errno.EINVAL, f"{piece.length:#x} bytes at {piece.address:#x} are not whole huge pages")
        if huge and not status.st_blocks:
            return []  # it takes all for data
        extents = _extents(fd, piece.offset, min(piece.offset + piece.length, status.st_size))
        return [(piece.address + start - piece.offset, piece.address + end - piece.offset) for start, end in extents]
    finally:
        os.close(fd)


def _extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of whole pages of a file in which [start, end) has data; a part of a page counts as all of it."""
    while start < end:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # none is left
                return
            raise
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        if data < end:
            yield data // mmap.PAGESIZE * mmap.PAGESIZE, -(-min(hole, end) // mmap.PAGESIZE) * mmap.PAGESIZE
        start = hole


def _merged(*runs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The union of sorted runs."""
    first = last = 0
    for start, end in heapq.merge(*runs):
        if start > last:
            if last:
                yield first, last
            first = start
        last = max(last, end)
    if last:
        yield first, last


def _create(length: int) -> int:
    memfd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memfd, length)
        # The client could open it through /proc; a file cut short would be SIGBUS for us.
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def _userfault(injection: Injection) -> Userfault | None:
    try:
        return Userfault(injection)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EIO):
            raise
        _log.info("no userfaultfd, stopping the client's threads instead: %s", error)
        return None


class _Transfer:
    """The pages of a client on their way into our memfd, which the client has open as `theirs`."""

    def __init__(self, injection: Injection, address: int, memfd: int, theirs: int) -> None:
        self._injection = injection
        self._tid = injection.tracee.tid
        self._address = address
        self._memfd = memfd
        self._theirs = theirs
        self._buffer = ctypes.create_string_buffer(_BUFFER)

    def aside(self, held: Userfault, pieces: list[Piece]) -> None:
        """Move the pages away, copy them, map the memfd where they were."""
        call = self._injection.syscall
        for piece in pieces:
            held.hold(piece.address, piece.length)
        moved: dict[Piece, int] = {}
        try:
            with self._more_memory(sum(piece.length for piece in pieces)):
                for piece in pieces:
                    how = _MREMAP_MAYMOVE | _MREMAP_DONTUNMAP
                    moved[piece] = call(_SYS_MREMAP, piece.address, piece.length, piece.length, how, 0)
            for piece, place in moved.items():
                with self._readable(piece, place):
                    self._copy(piece, place)
            for piece in pieces:
                self._map(piece)
                place = moved.pop(piece)
                with contextlib.suppress(OSError):
                    call(_SYS_MUNMAP, place, piece.length)
        except BaseException:
            how = _MREMAP_MAYMOVE | _MREMAP_FIXED
            for piece, place in moved.items():
                call(_SYS_MREMAP, place, piece.length, piece.length, how, piece.address)
            raise

    def in_place(self, pieces: list[Piece]) -> None:
        """Copy the pages where they are, map the memfd over them."""
        for piece in pieces:
            with self._readable(piece, piece.address):
                self._copy(piece, piece.address)
        for piece in pieces:
            self._map(piece)

    def _copy(self, piece: Piece, place: int) -> None:
        # By way of a buffer that stays in the cache: pwrite, unlike a store to a mapping of ours, takes no page faults
        # and leaves no page tables.
        shift = piece.address - self._address - place
        view = memoryview(self._buffer)
        held = pagemap.present(self._tid, place, piece.length)
        for runs in _batches(_merged(held, _file_data(self._tid, piece))):
            memory.gather(self._tid, runs, self._buffer)
            at = 0
            for start, end in runs:
                part = view[at : at + end - start]
                if os.pwrite(self._memfd, part, start + shift) != len(part):
                    raise OSError(errno.ENOMEM, f"{NAME}: {os.strerror(errno.ENOMEM)}")
                at += len(part)

    def _map(self, piece: Piece) -> None:
        how, offset = mmap.MAP_SHARED | _MAP_FIXED, piece.address - self._address
        self._injection.syscall(_SYS_MMAP, piece.address, piece.length, piece.prot, how, self._theirs, offset)

    @contextlib.contextmanager
    def _readable(self, piece: Piece, place: int) -> Iterator[None]:
        """Where the client could not read it itself, let it be read at `place`."""
        if piece.prot & mmap.PROT_READ:
            yield
            return
        self._injection.syscall(_SYS_MPROTECT, place, piece.length, piece.prot | mmap.PROT_READ)
        try:
            yield
        finally:
            self._injection.syscall(_SYS_MPROTECT, place, piece.length, piece.prot)

    @contextlib.contextmanager
    def _more_memory(self, amount: int) -> Iterator[None]:
        """For a moment the client has the range twice, which it did not ask for."""
        with contextlib.ExitStack() as stack:
            for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_MEMLOCK):
                with contextlib.suppress(PermissionError):  # then the limit may do
                    stack.enter_context(raised(self._tid, kind, amount))
            yield


def _batches(runs: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The runs in lists of what goes into the buffer and one call."""
    batch: list[tuple[int, int]] = []
    room = _BUFFER
    for start, end in runs:
        while start < end:
            batch.append((start, min(end, start + room)))
            room -= batch[-1][1] - start
            start = batch[-1][1]
            if not room or len(batch) == memory.IOV_MAX:
                yield batch
                batch, room = [], _BUFFER
    if batch:
        yield batch


@contextlib.contextmanager
def _others_stopped(tracee: Tracee, busy: Callable[[int], bool]) -> Iterator[None]:
    """All threads of the client stopped, but for `tracee` and those that are busy."""
    known = {tracee.tid}
    stopped: list[tuple[Tracee, Stop]] = []
    try:
        while fresh := set(threads_of(tracee.tgid)) - known:  # a thread that ran until now may have started others
            known |= fresh
            seized = [other for tid in fresh if not busy(tid) and (other := _interrupted(tid))]
            for other in seized:
                with _unless_gone():
                    stopped.append((other, other.wait(_STOP_PATIENCE)))
        yield
    finally:
        for other, stop in stopped:
            with _unless_gone():
                other.detach(stop)


def _interrupted(tid: int) -> Tracee | None:
    with _unless_gone():
        other = Tracee(tid, calls=False)
        other.interrupt()
        return other
    return None


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ESRCH:
            raise
