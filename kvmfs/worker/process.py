"""A worker's life, from the fork to its end."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from kvmfs.kvm.caller import Node
from kvmfs.kvm.inspection import Inspection
from kvmfs.kvm.tracer import Tracer
from kvmfs.syscalls import Sys, syscall
from kvmfs.wire.connection import Connection
from kvmfs.worker import channel
from kvmfs.worker.broker_link import BrokerLink
from kvmfs.worker.dispatch import Server
from kvmfs.worker.harden import harden
from kvmfs.worker.injecting import Injecting
from kvmfs.worker.readers import Native
from kvmfs.worker.seccomp import PR_SET_NAME

PR_SET_TIMERSLACK: Final = 29


class Core(Protocol):
    """The module that knows what a VM is."""

    def preload(self) -> None:
        """Called once, before any create_vm, in the process that workers are forked from."""

    def create_vm(self, *, kind: int, client: int, passthrough: bool, reads: bool) -> Node:
        """The VM's node. From when this has returned there is no file system any more. OSError."""


@runtime_checkable
class Inspected(Protocol):
    """A VM that can be looked into."""

    inspection: Inspection

    def inspect(self, what: str) -> object:
        """What can be said of the VM under this name, for JSON. OSError(ENOENT): nothing."""

    def trace(self, ring: int | None) -> Tracer | None:
        """Have vCPUs write to the ring behind this descriptor, or to none: what else is to be written with."""


_native: Native | None = None


def preload(core: Core) -> None:
    """What takes time and is the same for all workers: done in the zygote."""
    global _native
    _native = Native()
    core.preload()


def run(
    core: Core, fuse_fd: int, control: socket.socket, client_pidfd: int, empty: int, settings: channel.Message
) -> int:
    """Serve one VM until it is gone. In a fresh child of the zygote; returns the exit status.

    empty: a descriptor of an empty directory.
    settings: kind, the argument of KVM_CREATE_VM; client (tgid), uid, gid; passthrough, whether to try it; reads,
    whether clients can read files of ours; rules, messages of kvmfs.kvm.inject.rules.
    """
    assert _native
    faulthandler.enable()
    syscall(Sys.PRCTL, PR_SET_NAME, b"kvmfs-vm", 0, 0, 0)
    syscall(Sys.PRCTL, PR_SET_TIMERSLACK, 1, 0, 0, 0)  # threads to come inherit it: guests' timers are exact
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    broker = BrokerLink(control)
    connection = Connection(fuse_fd)
    negotiated = connection.handshake(passthrough=settings["passthrough"])
    client: int = settings["client"]
    try:
        able = {"passthrough": negotiated.passthrough, "reads": settings["reads"]}
        vm = core.create_vm(kind=settings["kind"], client=client, **able)
    except OSError as error:
        broker.tell("failed", errno=error.errno, what=str(error))
        return 0
    harden(client, settings["uid"], settings["gid"], empty)
    server = Server(
        connection, broker, _native, client=client, vm=vm, injecting=Injecting(vm, settings.get("rules", ()))
    )
    server.start()
    threading.Thread(target=_end_with, args=(client_pidfd,), name="client", daemon=True).start()
    shown: Inspected | None = vm if isinstance(vm, Inspected) else None
    visible = (shown.inspection.fd,) if shown else ()
    broker.tell("serving", visible, passthrough=negotiated.passthrough, resend=negotiated.resend)

    def command(message: channel.Message, fds: list[int]) -> tuple[channel.Message, list[int]] | None:
        match message["op"]:
            case "hold":
                server.hold()
                return {}, []
            case "release":
                server.release()
            case "device":
                server.device.put(message["device"])
            case "inspect" if message["what"] == "rules":
                return _report(server.injecting.report)
            case "inspect" if shown:
                return _report(lambda: shown.inspect(message["what"]))
            case "inject":
                return _inject(server.injecting, message)
            case "trace" if shown:
                server.trace = shown.trace(fds[0] if fds else None)
                return {}, []
            case _ if "id" in message:
                return {"errno": errno.ENOSYS}, []
        return None

    broker.listen(command)
    server.release()  # the broker may have died with our replies on hold
    threading.Event().wait()  # the VM goes on without it
    return 0


def _inject(injecting: Injecting, message: channel.Message) -> tuple[channel.Message, list[int]]:
    try:
        if message.get("clear"):
            injecting.clear()
        injecting.add(message["rules"])
    except (KeyError, TypeError, ValueError):
        return {"errno": errno.EINVAL}, []
    return {}, []


def _report(make: Callable[[], object]) -> tuple[channel.Message, list[int]]:
    try:
        report = json.dumps(make()).encode()
    except OSError as error:
        return {"errno": error.errno}, []
    fd = os.memfd_create("kvmfs-report", os.MFD_CLOEXEC)
    os.write(fd, report)
    return {}, [fd]


def _end_with(client_pidfd: int) -> None:
    """A VM without its client's mm answers EIO to everybody, as the connection of a dead worker does."""
    poll = select.poll()
    poll.register(client_pidfd, select.POLLIN)
    poll.poll()
    os._exit(0)
