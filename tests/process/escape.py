"""What a worker that has been taken over may try, and what it gets: errno names by attempt."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvmfs.client import memory
from kvmfs.syscalls import Sys, syscall
from kvmfs.worker.broker_link import BrokerLink

_PTRACE_ATTACH, _PTRACE_SEIZE = 16, 0x4206
_NR_OPEN, _NR_EXECVE, _NR_CLONE3, _NR_CHDIR, _NR_STAT, _NR_KILL, _NR_IO_URING_SETUP = 2, 59, 435, 80, 4, 62, 425
_NR_PIDFD_OPEN, _NR_BPF, _NR_SETUID, _NR_PRCTL = 434, 321, 105, 157
_NR_PTRACE = 101
_PATH = ctypes.addressof(ctypes.create_string_buffer(b"/etc/passwd"))


_libc = ctypes.CDLL(None, use_errno=True)


def raw(number: int, *words: int) -> None:
    if _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, words)) < 0:
        raise OSError(ctypes.get_errno(), "")


def lies(link: BrokerLink, client: int) -> bytes:
    """What a worker may ask of the broker beyond what is its own. JSON: errno names by question."""
    here = os.eventfd(0)
    questions: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
        "a path": ("install", (), {"tid": client, "unique": 1, "name": "../etc/passwd"}),
        "a hidden name": ("install", (), {"tid": client, "unique": 1, "name": ".."}),
        "a long name": ("install", (), {"tid": client, "unique": 1, "name": "x" * 5000}),
        "no name": ("install", (), {"tid": client, "unique": 1, "name": ""}),
        "a name that is not there": ("install", (), {"tid": client, "unique": 1, "name": "nothing"}),
        "another process": ("install", (), {"tid": os.getppid(), "unique": 1, "name": "vm"}),
        "init's descriptors": ("getfd", (), {"tid": 1, "fd": 0}),
        "a thread far away": ("getfd", (), {"tid": 10**40, "fd": 0}),
        "a descriptor far away": ("getfd", (), {"tid": client, "fd": 10**40}),
        "init's memory": ("adopt", (), {"tid": 1, "unique": 1, "address": 0, "length": 4096}),
        "init's mappings": ("map_shared", (), {"tid": 1, "address": 0, "length": 4096}),
        "words for numbers": ("adopt", (), {"tid": "x", "unique": [], "address": {}, "length": None}),
        "nothing at all": ("install", (), {}),
        "an unknown service": ("reboot", (), {}),
        "a run page that is no memfd": ("backing", (here,), {}),
        "a run page that is not there": ("backing", (), {}),
        "too many run pages": ("backing", (here,) * 200, {}),
    }
    results = {}
    for name, (operation, fds, arguments) in questions.items():
        answer, given = link.call(operation, fds, **arguments)
        results[name] = errno.errorcode.get(answer.get("errno", 0)) if not given else "a descriptor"
    for statement in ({"tid": [1], "result": {}}, {"tid": client, "result": 0}):
        link.tell("finish", **statement)
    return json.dumps(results).encode()


def report(client: int) -> bytes:
    """JSON: what each attempt gets; null where it succeeds."""
    attempts: dict[str, Callable[[], Any]] = {
        "open a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "open by open(2)": lambda: raw(_NR_OPEN, _PATH, 0),
        "stat a file": lambda: Path("/etc/passwd").stat(),
        "list the root": lambda: list(Path("/").iterdir()),
        "execute": lambda: raw(_NR_EXECVE, _PATH, 0, 0),
        "fork": os.fork,
        "make a socket": lambda: socket.socket(),
        "trace the client": lambda: raw(_NR_PTRACE, _PTRACE_SEIZE, client, 0, 0),
        "trace init": lambda: raw(_NR_PTRACE, _PTRACE_ATTACH, 1, 0, 0),
        "read the broker": lambda: memory.read(os.getppid(), 0x400000, 8),
        "read init": lambda: memory.read(1, 0x400000, 8),
        "read another process": lambda: memory.read(os.getppid() - 1, 0x400000, 8),
        "write the zygote": lambda: memory.write(os.getppid(), 0x400000, b"x"),
        "kill the client": lambda: os.kill(client, signal.SIGTERM),
        "kill the zygote": lambda: os.kill(os.getppid(), 0),
        "open a pidfd": lambda: os.pidfd_open(client),
        "mount": lambda: syscall(Sys.MOUNT, None, "/", None, 0, None),
        "load BPF": lambda: raw(_NR_BPF, 0, 0, 0),
        "make an io_uring": lambda: raw(_NR_IO_URING_SETUP, 1, 0),
        "become root": lambda: raw(_NR_SETUID, 0),
        "become dumpable": lambda: raw(_NR_PRCTL, 4, 1, 0, 0, 0),
        # and what it needs
        "read the client": lambda: memory.read(client, 0, 8),
        "map memory": lambda: mmap.mmap(-1, 4096).close(),
        "make a memfd": lambda: os.close(os.memfd_create("x")),
    }
    results: dict[str, str | None] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            results[name] = None
        except OSError as error:
            results[name] = errno.errorcode.get(error.errno or 0)
    return json.dumps(results).encode()
