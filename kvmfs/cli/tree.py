"""`kvmfs tree`: the inspection tree, on a directory or where kvm_stat looks for it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from kvmfs.cli import processes
from kvmfs.cli.caps import Capability, effective
from kvmfs.cli.notify import notify
from kvmfs.inspect import filesystem
from kvmfs.inspect.tree import Tree
from kvmfs.inspect.watch import Watch
from kvmfs.wire import mount

DEFAULT: Final = Path("/run/kvmfs")
_DEBUGFS: Final = Path("/sys/kernel/debug")


class TreeError(Exception):
    """The tree cannot be mounted; the message says why."""


def serve(directory: Path, log: logging.Logger, ready: Callable[[], None] = lambda: None) -> None:
    """Mount on a directory, which is made if need be and goes when it was; serve until SIGTERM or SIGINT.

    :raises TreeError: it cannot be mounted.
    """
    made = _make(directory)
    try:
        _mount(directory)

        def announce() -> None:
            notify("READY=1", f"STATUS=The tree is at {directory}")
            log.info("the tree is at %s", directory)
            ready()

        trio.run(_until_terminated, announce)
    finally:
        notify("STOPPING=1")
        if made:
            with suppress(OSError):
                directory.rmdir()


def run_with_debugfs(command: Sequence[str]) -> int:
    """Run a command that sees the tree as /sys/kernel/debug/kvm: its exit status.

    :raises TreeError: not root, or no debugfs; processes.StartError: the command cannot be executed.
    """
    if Capability.SYS_ADMIN not in effective():
        raise TreeError("--debugfs needs root")
    mount.private_namespace()
    try:
        # kvm_stat takes the first mount of type debugfs from /proc/mounts, and goes there by name: what lies over it
        # counts. In debugfs itself only the kernel makes directories.
        debugfs = mount.new_filesystem("debugfs", source="debugfs")
        mount.attach(debugfs, _DEBUGFS)
        os.close(debugfs)
        cover = mount.tmpfs()
        mount.attach(cover, _DEBUGFS)
        os.close(cover)
        (_DEBUGFS / "kvm").mkdir()
    except OSError as error:
        raise TreeError(f"no debugfs to put the tree in: {error}") from None
    _mount(_DEBUGFS / "kvm")
    status = 0

    async def go() -> None:
        async with trio.open_nursery() as nursery:
            started = trio.Event()
            nursery.start_soon(filesystem.serve, started.set)
            await started.wait()
            nursery.start_soon(wait, nursery.cancel_scope)

    async def wait(scope: trio.CancelScope) -> None:
        nonlocal status
        pid = processes.start_command(command, set())
        pidfd = os.pidfd_open(pid)
        await trio.lowlevel.wait_readable(pidfd)
        os.close(pidfd)
        status = processes.exit_status(os.waitpid(pid, 0)[1])
        scope.cancel()

    trio.run(go)
    return status


def _mount(directory: Path) -> None:
    tree = Tree(Watch(), os.geteuid(), os.getegid())
    try:
        filesystem.mount(tree, str(directory), everybody=os.geteuid() == 0)
    except RuntimeError as error:
        raise TreeError(f"cannot mount on {directory}: {error}") from None


def _make(directory: Path) -> bool:
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        _clear_stale(directory)
        return False
    except OSError as error:
        raise TreeError(f"cannot make {directory}: {error.strerror}") from None
    return True


def _clear_stale(directory: Path) -> None:
    """Take away what a server that was killed has left: a mount that answers ENOTCONN."""
    try:
        directory.stat()
    except OSError:
        with suppress(OSError):
            mount.unmount(directory)
    if not directory.is_dir():
        raise TreeError(f"{directory} is no directory")


async def _until_terminated(announce: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(filesystem.serve, announce)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return
