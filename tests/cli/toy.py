"""`kvmfs run` and `kvmfs serve` with a server that knows four ioctls, so that launching is tested by itself.

0xAE00 answers 12 (as KVM_GET_API_VERSION does), 0xAE10 the caller's tid as the server sees it, 0xAE11 ends the server
with SIGKILL, 0xAE12 tells whether a program that the server executes has CAP_SYS_PTRACE.

Usage: python -m tests.cli.toy run|serve ...
"""

import errno
import logging
import os
import signal
import subprocess
from collections.abc import Callable

from kvmfs.cli import serving
from kvmfs.wire import reply, request
from kvmfs.wire.connection import BUFFER_SIZE, Connection, ConnectionEnded
from kvmfs.wire.fuse_h import OpenFlag


class Terminated(BaseException):
    pass


def terminate(number: int, frame: object) -> None:
    raise Terminated


def serve(
    connection: Connection,
    *,
    log: logging.Logger,
    passthrough: bool | None,
    ready: Callable[[], None],
    carrier: object = None,
    rules: object = (),
) -> None:
    signal.signal(signal.SIGTERM, terminate)
    if os.environ.get("TOY") == "broken":
        raise RuntimeError("a broken broker")
    try:
        ready()
        _loop(connection)
    except (ConnectionEnded, Terminated):
        pass


def _loop(connection: Connection) -> None:
    buffer = bytearray(BUFFER_SIZE)
    while True:
        asked = connection.receive(buffer)
        answer = _answer(connection, asked)
        if answer:
            connection.reply(answer)


def _answer(connection: Connection, asked: request.Request) -> bytes | None:
    match asked:
        case request.Open():
            return reply.opened(asked.unique, 1, OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH)
        case request.GetAttr():
            return reply.attr(asked.unique, connection.attributes)
        case request.Release():
            return reply.ok(asked.unique)
        case request.Forget():
            return None
        case request.Interrupt():
            return reply.error(asked.target, errno.EINTR)
        case request.Ioctl(cmd=0xAE00):
            return reply.ioctl(asked.unique, 12)
        case request.Ioctl(cmd=0xAE10):
            return reply.ioctl(asked.unique, asked.tid)
        case request.Ioctl(cmd=0xAE11):
            os.kill(os.getpid(), signal.SIGKILL)
        case request.Ioctl(cmd=0xAE12):
            grep = subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, check=True)
            return reply.ioctl(asked.unique, int(grep.stdout.split()[1], 16) >> 19 & 1)
        case request.Ioctl():
            return reply.ioctl(asked.unique, -errno.ENOTTY)
    return reply.error(asked.unique, errno.ENOSYS)


if __name__ == "__main__":
    from kvmfs.cli import main

    serving.serve = serve
    main()
