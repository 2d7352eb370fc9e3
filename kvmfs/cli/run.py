"""`kvmfs run`: a device for one command.

The launcher makes the device, forks the broker that serves it and, when that is ready, the command. The device lives as
long as the command: processes that the command leaves behind find it gone (ENOTCONN, EIO, ENOSYS), as they would if the
module were unloaded.

A device that is mounted is in a private mount namespace (without CAP_SYS_ADMIN, in a user namespace, too); where
nothing can be mounted there is none, and the command's system calls are notified (kvmfs.notify).

Who sees whom: all are in the launcher's pid namespace, so the tids in requests mean something to the broker, and
what the command does in pid namespaces below is translated by the kernel. In the user namespace the broker, which is
forked and not executed, keeps all capabilities, among them CAP_SYS_PTRACE over the command; that satisfies Yama too.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from kvmfs.cli import modparams, probes, processes, supervise, view
from kvmfs.cli.caps import Capability, effective
from kvmfs.cli.notified import Notified
from kvmfs.cli.processes import SetupError
from kvmfs.cli.transport import Transport
from kvmfs.wire import mount
from kvmfs.wire.device import Device, Permissions, cuse_device, fuse_device


@dataclass(frozen=True, slots=True)
class Options:
    device: Path = Path("/dev/kvm")
    transport: Transport = Transport.AUTO
    passthrough: bool | None = None
    """Back vCPU mappings with memory instead of the page cache; None: if the kernel can."""


def run(
    command: Sequence[str],
    options: Options,
    serve: processes.Serve,
    log: logging.Logger,
    *,
    keep: frozenset[int] = frozenset(),
) -> int:
    """Run ``command`` with a device of its own. :returns: its exit status, 128 + n for signal n.

    :param keep: descriptors that ``serve`` needs.

    :raises SetupError: no device.
    :raises processes.StartError: the broker or the command do not start.
    """
    processes.occupy_standard_streams()
    privileged = Capability.SYS_ADMIN in effective()
    chosen = transport(options.transport, privileged)
    fallback = chosen is Transport.SECCOMP is not options.transport
    log.log(logging.WARNING if fallback else logging.INFO, "transport: %s", chosen)
    mask = supervise.block_signals()
    with ExitStack() as undo:
        how = _notified if chosen is Transport.SECCOMP else _mounted
        broker, prepare = how(options, chosen, privileged, serve, log, keep, undo)
        return supervise.supervise(processes.start_command(command, mask, prepare), broker)


def _mounted(
    options: Options,
    chosen: Transport,
    privileged: bool,
    serve: processes.Serve,
    log: logging.Logger,
    keep: frozenset[int],
    undo: ExitStack,
) -> tuple[processes.Broker, Callable[[], None]]:
    """A device in the file system."""
    device = _private_device(options, chosen, privileged)
    undo.callback(device.remove)

    def served(ready: Callable[[], None]) -> None:
        device.leave_node()
        serve(device.connection, log=log, passthrough=options.passthrough, ready=ready)

    broker = processes.start_broker(served, keep | {device.connection.fileno()})
    undo.callback(broker.stop)
    device.leave_connection()
    try:
        # In a user namespace the root node belongs to nobody, and cannot be opened for writing, until the kernel
        # has asked for its attributes.
        options.device.stat()
    except OSError as error:
        raise SetupError(f"the device does not answer: {error}") from None
    return broker, processes.own_mounts


def _notified(
    options: Options,
    chosen: Transport,
    privileged: bool,
    serve: processes.Serve,
    log: logging.Logger,
    keep: frozenset[int],
    undo: ExitStack,
) -> tuple[processes.Broker, Callable[[], None]]:
    """None: the command's system calls are notified."""
    notified = Notified()
    undo.callback(notified.close)

    def served(ready: Callable[[], None]) -> None:
        notified.serve(options.device, serve, log, ready)

    broker = processes.start_broker(served, keep | {notified.fileno()})
    undo.callback(broker.stop)
    return broker, notified.bind


def _private_device(options: Options, chosen: Transport, privileged: bool) -> Device:
    try:
        mount.private_namespace(user=not privileged)
    except OSError as error:
        what = "a mount namespace" if privileged else "a user namespace"
        raise SetupError(f"cannot make {what}: {error.strerror}") from None
    permissions = Permissions(0o666, os.geteuid(), os.getegid())
    try:
        view.make_room(options.device)
        if chosen is Transport.CUSE:
            device = cuse_device(options.device, permissions, name=f"kvmfs/run-{os.getpid()}", replace=True)
        else:
            device = fuse_device(options.device, permissions, replace=True)
        view.show_modules(modparams.modules())
    except OSError as error:
        raise SetupError(f"cannot make the device: {error}") from None
    return device


def transport(wanted: Transport, privileged: bool) -> Transport:
    """What a private device goes through, by trial: FUSE where there is a choice, since of it the host sees nothing and
    it is the fastest; where nothing can be mounted, seccomp."""
    if wanted is not Transport.AUTO:
        return wanted
    with suppress(OSError):
        probes.in_child(lambda: probes.fuse_mount(user=not privileged))
        return Transport.FUSE
    if privileged and os.access("/dev/cuse", os.R_OK | os.W_OK):
        with suppress(OSError):
            probes.in_child(lambda: probes.namespaces(user=False))
            return Transport.CUSE
    return Transport.SECCOMP
