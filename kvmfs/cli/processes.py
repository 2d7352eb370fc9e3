"""The two children of `kvmfs run`: the broker, and the command it is all for.

The broker must not be an ancestor of the command: it traces the command's threads, and a waitpid for its own children
would eat their stops. It must not share the command's fate at the terminal either, so it has a session of its own.

What ties the three together is PR_SET_PDEATHSIG, which the kernel sends when the thread that forked ends, however that
happens: a killed launcher takes the command with it, as if it had executed it in its own place, and has the broker
clean up. The launcher has one thread. exec of a set-user-ID program clears the setting.
"""

import errno
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

from kvmfs.cli.caps import keep_over_exec
from kvmfs.syscalls import Sys, syscall
from kvmfs.wire.connection import Connection
from kvmfs.wire.mount import CLONE_NEWNS

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_LAST_FD: Final = 0xFFFFFFFF
_START: Final = 60_000
"""Milliseconds that the broker has to be ready,"""
_GRACE: Final = 5000
"""and to stop."""

CANNOT_EXECUTE: Final = 126
NOT_FOUND: Final = 127
"""Exit statuses, as a shell's."""


class StartError(Exception):
    """A process did not come up. ``status``: what kvmfs exits with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class SetupError(Exception):
    """The device cannot be had here; the message says what is missing."""


class Serve(Protocol):
    """``kvmfs.broker.serve``: returns when the connection ends or after SIGTERM."""

    def __call__(
        self, connection: Connection, *, log: logging.Logger, passthrough: bool | None, ready: Callable[[], None]
    ) -> None: ...


class Broker:
    """The broker as its parent sees it. ``running`` until it has been waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.running = True

    def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL if that takes too long."""
        if not self.running:
            return
        os.kill(self.pid, signal.SIGTERM)
        fd = os.pidfd_open(self.pid)
        try:
            waiter = select.poll()
            waiter.register(fd, select.POLLIN)
            if not waiter.poll(_GRACE):
                print(f"kvmfs: the broker ({self.pid}) does not stop; killed", file=sys.stderr)
                os.kill(self.pid, signal.SIGKILL)
        finally:
            os.close(fd)
        os.waitpid(self.pid, 0)
        self.running = False


def start_broker(serve: Callable[[Callable[[], None]], None], keep: frozenset[int]) -> Broker:
    """Fork the process that serves the device, and wait until it does.

    :param serve: gets what to call when ready; runs in the new process.
    :param keep: the descriptors that it has.
    :raises StartError: it ended before it was ready, having said why.
    """
    launcher = os.getpid()
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _become_broker(launcher, {child_end, *keep})
            serve(lambda: _tell(child_end))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    broker = Broker(pid)
    os.close(child_end)
    with os.fdopen(parent_end, "rb", buffering=0) as pipe:
        waiter = select.poll()
        waiter.register(pipe, select.POLLIN)
        if not waiter.poll(_START):
            broker.stop()
            raise StartError(f"the broker is not ready after {_START // 1000} s", 125)
        if not pipe.read(1):
            _, status = os.waitpid(pid, 0)
            raise StartError(f"the broker did not start ({describe(status)})", 125)
    return broker


def occupy_standard_streams() -> None:
    """Where we were started without one of descriptors 0, 1, 2, nothing of ours may get its number. The command is
    again without it: what is opened here is closed on exec."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _become_broker(launcher: int, keep: set[int]) -> None:
    os.setsid()
    _die_with(launcher, signal.SIGTERM)
    syscall(Sys.PRCTL, _PR_SET_NAME, "kvmfs-broker", 0, 0, 0)
    _default_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    keep_over_exec()  # workers need CAP_SYS_PTRACE over the command, and are forked by a program that is executed
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    last = 2
    for fd in sorted(keep):
        if fd > last + 1:
            syscall(Sys.CLOSE_RANGE, last + 1, fd - 1, 0)
        last = fd
    syscall(Sys.CLOSE_RANGE, last + 1, _LAST_FD, 0)


def _tell(fd: int) -> None:
    os.write(fd, b"!")
    os.close(fd)


def own_mounts() -> None:
    """A mount namespace for the command, a copy of ours: what it mounts or unmounts does not pull /proc from under the
    broker."""
    syscall(Sys.UNSHARE, CLONE_NEWNS)


def start_command(command: Sequence[str], mask: set[signal.Signals], prepare: Callable[[], None] = own_mounts) -> int:
    """Fork and execute the command: its pid.

    :param mask: its signal mask.
    :param prepare: what it does before it is executed.
    :raises StartError: it cannot be executed.
    :raises SetupError: so says `prepare`.
    """
    launcher = os.getpid()
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _die_with(launcher, signal.SIGKILL)
            prepare()
            _default_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _execute(command)
        except OSError as error:
            os.write(child_end, str(error.errno).encode())
        except SetupError as error:
            os.write(child_end, str(error).encode())
        finally:
            os._exit(NOT_FOUND)
    os.close(child_end)
    with os.fdopen(parent_end, "rb", buffering=0) as pipe:
        failed = pipe.read()
    if failed:
        os.waitpid(pid, 0)
        if not failed.isdigit():
            raise SetupError(failed.decode())
        number = int(failed)
        status = NOT_FOUND if number in (errno.ENOENT, errno.ENOTDIR) else CANNOT_EXECUTE
        raise StartError(f"{command[0]}: {os.strerror(number)}", status)
    return pid


def _execute(command: Sequence[str]) -> NoReturn:
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execv("/bin/sh", ["sh", *command])  # a script without #!, as execvp(3) has it


def _die_with(launcher: int, how: signal.Signals) -> None:
    syscall(Sys.PRCTL, _PR_SET_PDEATHSIG, how, 0, 0, 0)
    if os.getppid() != launcher:
        os._exit(1)  # it died before we asked


def _default_signals() -> None:
    """Undo what Python did at its start; what was ignored when we were started stays ignored."""
    for name in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def exit_status(wait_status: int) -> int:
    """As a shell has it: 128 + n for signal n."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def describe(wait_status: int) -> str:
    code = os.waitstatus_to_exitcode(wait_status)
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
