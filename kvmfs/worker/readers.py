"""The threads that read a connection, and the raw memory through which they and compiled code understand each other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvmfs.jit import build
from kvmfs.jit.raw import s64
from kvmfs.kvm.block import Block
from kvmfs.wire.connection import BUFFER_SIZE
from kvmfs.worker import block, loop
from kvmfs.worker.block import Conn, Reader, Seat


class Native:
    """The loop's functions, callable from Python without the GIL."""

    def __init__(self) -> None:
        for name, function in loop.group.members.items():
            code = getattr(function, "py_func", function).__code__
            setattr(self, name.removeprefix(loop.PREFIX), build.function(name, code.co_argcount))

    will_read: Callable[[int, int], int]
    serve: Callable[[int], int]
    go_on: Callable[[int], int]
    enter: Callable[[int], int]
    start_run: Callable[[int], int]
    finish_run: Callable[[int, int], int]
    take: Callable[[int], int]
    give: Callable[[int], int]
    interrupt: Callable[[int, int], int]
    put_down: Callable[[int], int]
    pass_gate: Callable[[int], int]
    leave_gate: Callable[[int], int]
    hold: Callable[[int], int]
    release: Callable[[int], int]
    is_client: Callable[[int, int], int]


class ReaderThread:
    """A reader block with its buffers, and the thread that uses it."""

    def __init__(self, conn: Block, body: Callable[[ReaderThread], None]) -> None:
        self.block = Block(Reader.SIZE)
        self.address = self.block.address
        self._buffer, self._reply = Block(BUFFER_SIZE), Block(block.REPLY_SIZE)
        self.block[Reader.CONN] = conn.address
        self.block[Reader.BUFFER] = self._buffer.address
        self.block[Reader.REPLY] = self._reply.address
        self._thread = threading.Thread(target=body, args=(self,), name="reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def result(self) -> int:
        """What read(2) gave last: a length or a negative errno."""
        return int(s64(self.block[Reader.LENGTH]))

    def message(self) -> bytes:
        """The message that was read last."""
        return self._buffer.read(0, self.result())


class Pool:
    """As many readers as are needed for one to be reading at any time."""

    def __init__(
        self, native: Native, fuse_fd: int, client: int, cached: bool, body: Callable[[ReaderThread], None]
    ) -> None:
        self._native = native
        self.conn = Block(Conn.SIZE)
        self._seats, self._readers = Block(8 * block.MAX_VCPUS), Block(8 * block.MAX_READERS)
        self.conn[Conn.FUSE_FD], self.conn[Conn.TGID], self.conn[Conn.CACHED] = fuse_fd, client, cached
        self.conn[Conn.SEATS], self.conn[Conn.READERS] = self._seats.address, self._readers.address
        self._body = body
        self._lock = threading.Lock()
        self._threads: list[ReaderThread] = []
        self._taken: list[Block] = []
        self._free: list[int] = []

    def ensure_reading(self) -> None:
        """To be called before anything that may take a reader long."""
        with self._lock:
            if self.conn[Conn.READING] or len(self._threads) == block.MAX_READERS:
                return
            thread = ReaderThread(self.conn, self._body)
            self._readers[8 * len(self._threads)] = thread.address
            self._threads.append(thread)
            self.conn[Conn.READER_COUNT] = len(self._threads)
            self._native.will_read(self.conn.address, 1)
            try:
                thread.start()
            except RuntimeError:  # at a limit of threads: who asked has to be quick, then
                self._native.will_read(self.conn.address, -1)
                self._threads.pop()
                self.conn[Conn.READER_COUNT] = len(self._threads)

    def seat(self) -> tuple[int, Block] | None:
        """A seat for a vCPU that is to be: its index and block; None when there is none left."""
        with self._lock:
            if self._free:
                index = self._free.pop()
                return index, self._taken[index]
            index = len(self._taken)
            if index == block.MAX_VCPUS:
                return None
            seat = Block(Seat.SIZE)
            seat[Seat.NODE] = block.VCPU_NODE + index
            self._seats[8 * index] = seat.address
            self._taken.append(seat)
            return index, seat

    def publish(self) -> None:
        """Let compiled code see all seats."""
        with self._lock:
            self.conn[Conn.SEAT_COUNT] = len(self._taken)

    def unseat(self, index: int) -> None:
        """The vCPU did not come to be."""
        with self._lock:
            self._free.append(index)
