"""Trials of what kvmfs needs, each as it will be done later, each in a child process of its own.

Namespaces, traced processes and mounts of a trial end with its child. Written so that "is it allowed here" is answered
by the kernel, with all its modules, filters and limits, and not by reading settings.
"""

import contextlib
import os
import pickle
import signal
import socket
import stat
from collections.abc import Callable
from typing import Final, TypeVar

from kvmfs.client import fds
from kvmfs.notify import filter as rules
from kvmfs.notify.listener import Listener
from kvmfs.syscalls import Sys, syscall
from kvmfs.wire import mount
from kvmfs.wire.connection import Connection, Kind

_PTRACE_SEIZE: Final = 0x4206
_PTRACE_DETACH: Final = 17
_PTRACE_INTERRUPT: Final = 0x4207
_WALL: Final = 0x40000000

T = TypeVar("T")


def in_child(trial: Callable[[], T], timeout: int = 10) -> T:
    """Result of ``trial`` in a forked child; its OSError is raised here.

    :param timeout: seconds.
    :raises TimeoutError: it hangs.
    """
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(timeout)
        try:
            answer: object = (True, trial())
        except OSError as error:
            answer = (False, (error.errno or 0, error.strerror or str(error)))
        except BaseException as error:
            answer = (False, (0, repr(error)))
        with contextlib.suppress(BaseException):
            os.write(child_end, pickle.dumps(answer))
        os._exit(0)
    os.close(child_end)
    with os.fdopen(parent_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise TimeoutError(f"no answer within {timeout} s" if os.WIFSIGNALED(status) else "no answer")
    worked, result = pickle.loads(data)
    if not worked:
        raise OSError(*result)
    answered: T = result
    return answered


def namespaces(user: bool) -> None:
    """A private mount namespace, in a user namespace if asked."""
    mount.private_namespace(user=user)


def fuse_mount(user: bool) -> tuple[int, bool, str]:
    """A detached FUSE mount whose server shakes hands.

    :returns: protocol minor; whether a memfd can be put behind a file; why not.
    """
    mount.private_namespace(user=user)
    with Connection.open(Kind.FUSE) as connection:
        node = mount.fuse(connection.fileno(), root_mode=stat.S_IFREG | 0o600)
        try:
            agreed = connection.handshake(passthrough=True)
            if not agreed.passthrough:
                return agreed.minor, False, "the kernel does not offer it (Linux 6.9, CONFIG_FUSE_PASSTHROUGH)"
            memory = os.memfd_create("kvmfs-check")
            os.ftruncate(memory, 4096)
            try:
                connection.backing_close(connection.backing_open(memory))
            except OSError as error:
                return agreed.minor, False, f"refused: {os.strerror(error.errno or 0)}"
            return agreed.minor, True, ""
        finally:
            os.close(node)


def notification() -> None:
    """A process whose open of a file that need not be there is answered with a descriptor of ours (kvmfs.notify)."""
    ours, theirs = socket.socketpair()
    client = os.fork()
    if client == 0:
        status = 1
        try:
            socket.send_fds(theirs, [b"!"], [rules.install()])
            os.close(os.open("/dev/kvm", os.O_RDWR))
            status = 0
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    theirs.close()
    _, listeners, _, _ = socket.recv_fds(ours, 1, 1)
    if listeners:
        Listener(listeners[0]).receive().add(ours.fileno(), cloexec=True, answer=True)
    _, status = os.waitpid(client, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, os.strerror(code))


def trace(user: bool, declared: bool = False) -> None:
    """Seize and stop a process that is not our descendant but our parent's, and take a descriptor of it, as the broker
    does with clients.

    :param user: in a user namespace. :param declared: one that has said it may be (kvmfs.notify.filter).
    """
    if user:
        mount.private_namespace(user=True)
    reading, writing = os.pipe()
    waiting, telling = os.pipe()
    client = os.fork()
    if client == 0:
        os.close(writing)
        if declared:
            rules.allow_tracing()
        os.close(telling)
        os.read(reading, 1)  # until our end is closed, by our death at the latest
        os._exit(0)
    os.close(reading)
    os.close(telling)
    os.read(waiting, 1)
    os.close(waiting)
    tracer = os.fork()
    if tracer == 0:
        os.close(writing)
        status = 0
        try:
            os.close(fds.getfd(client, reading))
            syscall(Sys.PTRACE, _PTRACE_SEIZE, client, 0, 0)
            syscall(Sys.PTRACE, _PTRACE_INTERRUPT, client, 0, 0)
            os.waitpid(client, _WALL)
            syscall(Sys.PTRACE, _PTRACE_DETACH, client, 0, 0)
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    _, status = os.waitpid(tracer, 0)
    os.close(writing)
    os.waitpid(client, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise OSError(code, os.strerror(code))
