"""`kvmfs run`: a device for one command.

The launcher makes a private mount namespace (and, without CAP_SYS_ADMIN, a user namespace), creates the device, forks
the broker that serves it and, when that is ready, the command. The device lives as long as the command: processes
that the command leaves behind find it gone (ENOTCONN, EIO), as they would if the module were unloaded.

Who sees whom: all are in the launcher's pid namespace, so the tids in requests mean something to the broker, and
what the command does in pid namespaces below is translated by the kernel. In the user namespace the broker, which is
forked and not executed, keeps all capabilities, among them CAP_SYS_PTRACE over the command; that satisfies Yama too.
"""

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kvmfs.cli import modparams, processes, supervise, view
from kvmfs.cli.caps import Capability, effective
from kvmfs.cli.transport import Transport
from kvmfs.wire import mount
from kvmfs.wire.connection import Connection
from kvmfs.wire.device import Device, Permissions, cuse_device, fuse_device


class SetupError(Exception):
    """The device cannot be had here; the message says what is missing."""


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
    mask = supervise.block_signals()
    with ExitStack() as undo:
        device = _private_device(options)
        undo.callback(device.remove)

        def served(connection: Connection, ready: Callable[[], None]) -> None:
            serve(connection, log=log, passthrough=options.passthrough, ready=ready)

        broker = processes.start_broker(device, served, keep)
        undo.callback(broker.stop)
        try:
            # In a user namespace the root node belongs to nobody, and cannot be opened for writing, until the kernel
            # has asked for its attributes.
            options.device.stat()
        except OSError as error:
            raise SetupError(f"the device does not answer: {error}") from None
        return supervise.supervise(processes.start_command(command, mask), broker)


def _private_device(options: Options) -> Device:
    privileged = Capability.SYS_ADMIN in effective()
    try:
        mount.private_namespace(user=not privileged)
    except OSError as error:
        what = "a mount namespace" if privileged else "a user namespace"
        raise SetupError(f"cannot make {what}: {error.strerror}") from None
    permissions = Permissions(0o666, os.geteuid(), os.getegid())
    try:
        view.make_room(options.device)
        if transport(options.transport, privileged) is Transport.CUSE:
            device = cuse_device(options.device, permissions, name=f"kvmfs/run-{os.getpid()}", replace=True)
        else:
            device = fuse_device(options.device, permissions, replace=True)
        view.show_modules(modparams.modules())
    except OSError as error:
        raise SetupError(f"cannot make the device: {error}") from None
    return device


def transport(wanted: Transport, privileged: bool) -> Transport:
    """What a private device goes through: FUSE where there is a choice, since of it the host sees nothing.

    :raises SetupError: neither can be used.
    """
    if wanted is not Transport.AUTO:
        return wanted
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Transport.FUSE
    if privileged and os.access("/dev/cuse", os.R_OK | os.W_OK):
        return Transport.CUSE
    raise SetupError("neither /dev/fuse nor /dev/cuse can be used")
