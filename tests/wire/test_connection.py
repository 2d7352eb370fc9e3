"""Connections to the real kernel, over detached mounts."""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import trio

from kvmfs.wire import mount, reply, request
from kvmfs.wire.aio import Receiver
from kvmfs.wire.connection import Connection, ConnectionEnded, Kind
from kvmfs.wire.fuse_h import OpenFlag
from tests.wire.conftest import NO_REPLY, Server

pytestmark = pytest.mark.usefixtures("no_leaks")
IN, OUT, BOTH, NONE = 0x4008AE01, 0x8008AE02, 0xC008AE03, 0xAE04

Answer = Callable[[request.Request], bytes | None]
Start = Callable[..., tuple[Server, int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(answer)` -> (server, path of its file): a regular file as the root of a detached mount."""
    servers: list[Server] = []
    mounts: list[int] = []

    def go(answer: Answer = lambda asked: None) -> tuple[Server, str]:
        connection = Connection.open(Kind.FUSE)
        mounts.append(mount.fuse(connection.fileno(), root_mode=stat.S_IFREG | 0o600))
        connection.handshake(passthrough=True)
        servers.append(Server(connection, answer))
        return servers[-1], f"/proc/self/fd/{mounts[-1]}"

    yield go  # type: ignore[misc]
    for fd in mounts:
        os.close(fd)
    for server in servers:
        server.join()
        server.connection.close()


def test_ioctl_data_goes_both_ways(start: Start) -> None:
    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            return reply.ioctl(asked.unique, 5, asked.data[::-1] if asked.out_size else b"")
        return None

    server, path = start(answer)
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        data = bytearray(range(8))
        assert fcntl.ioctl(file, BOTH, data) == 5
        assert data == bytes(range(7, -1, -1))
        assert fcntl.ioctl(file, NONE, 42) == 5
    first, second = server.of(request.Ioctl)
    assert isinstance(first, request.Ioctl)
    assert isinstance(second, request.Ioctl)
    assert (first.cmd, first.data, first.out_size) == (BOTH, bytes(range(8)), 8)
    assert (second.cmd, second.data, second.out_size, second.arg) == (NONE, b"", 0, 42)
    assert first.tid == threading.get_native_id()


def test_an_error_with_data_copies_the_data_out(start: Start) -> None:
    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            return reply.ioctl(asked.unique, -errno.E2BIG, b"\x2a" * 8)
        return None

    _, path = start(answer)
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        data = bytearray(8)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fcntl.ioctl(file, OUT, data)
        assert caught.value.errno == errno.E2BIG


def test_largest_ioctl_argument(start: Start) -> None:
    largest = 0x3FFF
    sizes = []

    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            sizes.append(len(asked.data))
            return reply.ioctl(asked.unique, 0, asked.data)
        return None

    _, path = start(answer)
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        # fcntl.ioctl would keep the GIL.
        data = ctypes.create_string_buffer(largest)
        assert ctypes.CDLL(None).ioctl(file.fileno(), ctypes.c_ulong(0xC000AE00 | largest << 16), data) == 0
    assert sizes == [largest]


def test_interrupted_caller_is_named_and_a_late_reply_is_no_error(start: Start) -> None:
    """A signal for a caller that waits gives an Interrupt; answering the dead one's request says nobody waits."""
    waiting = threading.Event()
    late: list[request.Ioctl] = []

    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            late.append(asked)
            waiting.set()
            return NO_REPLY
        return None

    server, path = start(answer)
    script = (
        "import fcntl, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\n"
        "fcntl.ioctl(open(sys.argv[1], 'r+b', buffering=0), 0xAE04)"
    )
    number = int(path.rpartition("/")[2])
    client = subprocess.Popen([sys.executable, "-c", script, path], pass_fds=[number])
    assert waiting.wait(20)
    client.send_signal(signal.SIGUSR1)
    assert client.wait(20) == 3  # EINTR came through
    (interrupt,) = server.of(request.Interrupt)
    assert isinstance(interrupt, request.Interrupt)
    assert interrupt.target == late[0].unique
    assert server.connection.reply(reply.ioctl(late[0].unique, 0)) is False


def test_passthrough_maps_the_memory_itself(start: Start) -> None:
    memory = os.memfd_create("page")
    os.ftruncate(memory, 4096)

    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Open):
            return reply.opened(asked.unique, 1, OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, backing)
        return None

    server, path = start(answer)
    agreed = server.connection.negotiated
    assert agreed is not None
    if not agreed.passthrough:
        pytest.skip("no FUSE passthrough in this kernel")
    server.connection.attributes = reply.Attributes(1, stat.S_IFREG | 0o600, size=4096)
    backing = server.connection.backing_open(memory)
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 4096) as page:  # noqa: PTH123
        page[0:2] = b"hi"
        assert os.pread(memory, 2, 0) == b"hi"
        os.pwrite(memory, b"yo", 0)
        assert page[0:2] == b"yo"
    server.connection.backing_close(backing)
    os.close(memory)


def test_resend(start: Start) -> None:
    """Requests that were read and not answered come again, marked."""
    first: list[request.Request] = []

    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            if not asked.resent:
                first.append(asked)
                server.connection.resend()
                return NO_REPLY
            return reply.ioctl(asked.unique, 1)
        return None

    server, path = start(answer)
    assert server.connection.negotiated is not None
    if not server.connection.negotiated.resend:
        pytest.skip("no FUSE_NOTIFY_RESEND in this kernel")
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        assert fcntl.ioctl(file, NONE) == 1
    assert not first[0].resent


def test_abort_ends_callers_and_server(start: Start) -> None:
    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Ioctl):
            mount.abort_fuse(int(path.rpartition("/")[2]))
            return NO_REPLY
        return None

    server, path = start(answer)
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        with pytest.raises(ConnectionAbortedError):
            fcntl.ioctl(file, NONE)
        server.join()
        assert server.connection.ended
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fcntl.ioctl(file, NONE)
        assert caught.value.errno == errno.ENOTCONN


def test_closing_the_last_descriptor_aborts() -> None:
    connection = Connection.open(Kind.FUSE)
    node = mount.fuse(connection.fileno(), root_mode=stat.S_IFREG | 0o600)
    connection.handshake()
    connection.close()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.open(f"/proc/self/fd/{node}", os.O_RDWR)
    assert caught.value.errno == errno.ENOTCONN
    os.close(node)


def test_unmounting_ends_the_connection() -> None:
    with Connection.open(Kind.FUSE) as connection:
        os.close(mount.fuse(connection.fileno()))
        with pytest.raises(ConnectionEnded):
            connection.handshake()


def test_options_the_kernel_does_not_know_are_named() -> None:
    with Connection.open(Kind.FUSE) as connection, pytest.raises(OSError, match=r"fuse: .*"):
        mount.fuse(connection.fileno(), root_mode=0)


def test_trio_receiver_waits_and_ends() -> None:
    async def main() -> None:
        with Connection.open(Kind.FUSE) as connection:
            node = mount.fuse(connection.fileno(), root_mode=stat.S_IFREG | 0o600)
            connection.handshake()
            receiver = Receiver(connection)
            with trio.move_on_after(0):
                await receiver.receive()  # nothing there: cancelled, nothing lost
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, open_and_close, f"/proc/self/fd/{node}")
                asked = await receiver.receive()
                assert isinstance(asked, request.Open)
                connection.reply(reply.opened(asked.unique, 1, OpenFlag.NOFLUSH))
                assert isinstance(await receiver.receive(), request.Release)
            os.close(node)
            with pytest.raises(ConnectionEnded):
                await receiver.receive()

    def open_and_close(path: str) -> None:
        os.close(os.open(path, os.O_RDWR))

    trio.run(main)


def test_poll_is_notified(start: Start) -> None:
    ready = False
    handles: list[int] = []

    def answer(asked: request.Request) -> bytes | None:
        if isinstance(asked, request.Poll):
            if asked.schedule:
                handles.append(asked.kh)
            return reply.poll(asked.unique, select.POLLIN if ready else 0)
        return None

    server, path = start(answer)
    with open(path, "r+b", buffering=0) as file:  # noqa: PTH123
        waiter = select.epoll()
        waiter.register(file, select.EPOLLIN)
        assert waiter.poll(0) == []
        ready = True
        server.connection.reply(reply.notify_poll(handles[0]))
        assert waiter.poll(20) == [(file.fileno(), select.EPOLLIN)]
        waiter.close()
