"""Brokers in this network namespace, and a conversation with each (kvmfs.broker.inspector has the messages)."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvmfs.worker import channel
from kvmfs.worker.channel import Message

PREFIX: Final = "kvmfs-"
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Listed:
    """A VM as its broker describes it. `name`: PID-FD. `worker`: the process that serves it."""

    name: str
    pid: int
    fd: int
    worker: int
    uid: int
    gid: int
    kind: int
    created: float
    """Seconds since 1970."""


class Broker:
    """A connection to a broker. OSError when it does not answer, or will not."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.connect(address)
        except BaseException:
            self._socket.close()
            raise

    @classmethod
    def over(cls, end: socket.socket) -> Broker:
        """A broker at the other end of a socket that we have."""
        broker = cls.__new__(cls)
        broker._socket = end
        return broker

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, op: str, **arguments: Any) -> tuple[Message, list[int]]:
        """The answer, and descriptors, the caller's to close. OSError."""
        self.send(op, **arguments)
        message, fds = self.receive()
        if number := message.get("errno"):
            channel.close_all(fds)
            raise OSError(int(number), os.strerror(int(number)), arguments.get("vm"))
        return message, fds

    def send(self, op: str, **arguments: Any) -> None:
        try:
            channel.send(self._socket, {"op": op, "id": 1, **arguments})
        except channel.ChannelClosed:
            raise _gone() from None

    def receive(self) -> tuple[Message, list[int]]:
        """The next message, whatever it is."""
        try:
            return channel.receive(self._socket)
        except (channel.ChannelClosed, channel.MalformedMessage):
            raise _gone() from None

    def vms(self) -> list[Listed]:
        answer, _ = self.ask("list")
        return [Listed(**{name: vm[name] for name in Listed.__slots__}) for vm in answer["vms"]]

    def inspection(self, vm: str) -> int:
        """The VM's inspection file (kvmfs.kvm.inspection)."""
        return self.ask("inspection", vm=vm)[1][0]

    def report(self, vm: str, what: str) -> Any:
        """What the VM says of itself (kvmfs.kvm.report)."""
        _, fds = self.ask("inspect", vm=vm, what=what)
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            return json.load(file)


def addresses() -> list[str]:
    """Of sockets that brokers listen on, as their names say."""
    found = []
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[7].startswith(f"@{PREFIX}") and int(fields[3], 16) & 0x10000:  # __SO_ACCEPTCON
            found.append("\0" + fields[7][1:])
    return sorted(found)


def find(name: str) -> tuple[Broker, Listed]:
    """A VM by PID-FD, or by PID when that has one only; the broker is the caller's to close.

    OSError: ENOENT, or EEXIST when a PID has several.
    """
    matching = [(address, vm) for address in addresses() for vm in _of(address) if name in (vm.name, str(vm.pid))]
    if not matching:
        raise FileNotFoundError(errno.ENOENT, "no such VM, or not yours", name)
    if len(matching) > 1:
        names = " ".join(vm.name for _, vm in matching)
        raise FileExistsError(errno.EEXIST, f"there are several VMs: {names}", name)
    address, vm = matching[0]
    return Broker(address), vm


def vms() -> list[Listed]:
    """Those that we may see, by name."""
    return sorted((vm for address in addresses() for vm in _of(address)), key=lambda vm: (vm.pid, vm.fd))


def _of(address: str) -> list[Listed]:
    """Of a broker that may be going away, or be no broker."""
    with suppress(OSError, KeyError, TypeError), Broker(address) as broker:
        return broker.vms()
    return []


def _gone() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the broker is gone")
