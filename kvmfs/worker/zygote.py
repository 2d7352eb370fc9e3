"""The process that workers are forked from: everything imported, compiled code loaded, memory frozen.

fork() of a process with threads would copy locks in whatever state they are; so this one has a single thread, and the
garbage collector is told to leave what is there alone, so that workers share its pages. It serves one broker:

    {"op": "fork", "id", ...settings}, fds [fuse, control, stderr, client] -> {"id", "pid"}, fds [pidfd]
    {"ready": true} once it can fork; {"exited": pid, "status": wait status} for each worker that ends

It ends when the broker does; workers live on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from typing import NoReturn

from kvmfs.jit import build
from kvmfs.worker import channel, process


def main() -> None:
    """`python -m kvmfs.worker.zygote FD EMPTY CORE`.

    FD: the broker's socket; EMPTY: descriptor of an empty directory; CORE: the module that has `create_vm`.
    """
    broker = socket.socket(fileno=int(sys.argv[1]))
    broker.set_inheritable(False)
    empty = int(sys.argv[2])
    core: process.Core = importlib.import_module(sys.argv[3])
    if not build.is_warm():
        _compile(broker)
    process.preload(core)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    gc.collect()
    gc.freeze()
    try:
        channel.send(broker, {"ready": True})
    except channel.ChannelClosed:
        return  # it was stopped meanwhile
    _serve(broker, core, null, empty)


def _compile(broker: socket.socket) -> None:
    """Fill the code cache, in processes of our group: what the compiler has used must not stay with every worker."""
    code = "from kvmfs.jit.build import warm; warm()"
    compiler = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    pidfd = os.pidfd_open(compiler.pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(broker, select.POLLRDHUP)
    if any(fd != pidfd for fd, _ in poll.poll()):
        os.killpg(0, signal.SIGKILL)  # nobody waits for us any more
    os.close(pidfd)
    compiler.wait()  # had it failed, loading will say why


def _serve(broker: socket.socket, core: process.Core, null: int, empty: int) -> None:
    wakeup, wakeup_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_in, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(broker, select.POLLIN)
    poll.register(wakeup, select.POLLIN)
    while True:
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
        _reap(broker)
        try:
            broker.setblocking(False)
            message, fds = channel.receive(broker)
        except BlockingIOError:
            continue
        except channel.ChannelClosed:
            return
        finally:
            broker.setblocking(True)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _become_worker(core, message, fds, null, empty)
        channel.close_all(fds)
        pidfd = os.pidfd_open(pid)
        with contextlib.suppress(channel.ChannelClosed):
            channel.send(broker, {"id": message["id"], "pid": pid}, [pidfd])
        os.close(pidfd)


def _become_worker(core: process.Core, settings: channel.Message, fds: list[int], null: int, empty: int) -> NoReturn:
    """In the child: nothing but the worker's own descriptors stays open."""
    status = 1
    try:
        os.setsid()
        fuse_fd, control_fd, stderr_fd, client_fd = fds
        os.dup2(stderr_fd, 2)
        os.dup2(null, 0)
        os.dup2(null, 1)
        _close_all_but({fuse_fd, control_fd, client_fd, empty})
        status = process.run(core, fuse_fd, socket.socket(fileno=control_fd), client_fd, empty, settings)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _close_all_but(keep: set[int]) -> None:
    """Standard descriptors stay, too."""
    start = 3
    for fd in sorted(keep):
        if start < fd:
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)


def _reap(broker: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError, channel.ChannelClosed):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            channel.send(broker, {"exited": ended[0], "status": ended[1]})


if __name__ == "__main__":
    main()
