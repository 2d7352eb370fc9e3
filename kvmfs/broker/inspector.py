"""Those who look on: `kvmfs ls`, `show`, `top`, `trace`, the tree. They come through a socket with an abstract name.

A name in the abstract namespace leaves nothing behind, whatever happens to the broker, and is found from anywhere in
the same network namespace (/proc/net/unix). Who connects is known from SO_PEERCRED, and sees the VMs of that user;
root, and the user that the broker runs as, see all. Messages are kvmfs.worker.channel's:

    {"op": "list", "id"}                          -> broker: {...}, vms: [{name, pid, fd, worker, uid, gid, kind, ...}]
    {"op": "inspection", "id", "vm": name}        -> fds [inspection file (kvmfs.kvm.inspection), for reading]
    {"op": "inspect", "id", "vm": name, "what"}   -> fds [memfd of JSON (kvmfs.kvm.report)]
    {"op": "inject", "id", "vm": name, "rules", "clear"}   -> {}; rules: messages of kvmfs.kvm.inject.rules
    {"op": "trace", "id", "vm": name}             -> and before that, without being asked:
        {"ring": worker, "name"}, fds [kvmfs.kvm.ring]   records come from there; 0: those of /dev/kvm
        {"named": worker, "name"}                    a VM that was new has its name
        {"gone": worker}                             no more will come
An "errno" in an answer says why there is none. A VM is named PID-FD, as in debugfs: its client's pid, and the number
of its descriptor there.

A trace lasts as long as its connection. A VM has one ring, so it is traced by one at a time (EBUSY).
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

import kvmfs
from kvmfs.broker.link import Link
from kvmfs.kvm import ring
from kvmfs.kvm.tracer import Tracer
from kvmfs.wire import request
from kvmfs.worker import channel
from kvmfs.worker.channel import Message

if TYPE_CHECKING:
    from kvmfs.broker.vm import VmProcess

PREFIX: Final = "kvmfs-"
_MOST: Final = 64
"""Connections at a time."""
_NS_KHZ: Final = 1_000_000
"""The broker's rings have nanoseconds for ticks."""

Answer = tuple[Message, list[int]]


class Onlooker:
    """A connection. `uid`: whose."""

    def __init__(self, link: Link, uid: int) -> None:
        self.link, self.uid = link, uid
        self.traces: list[VmProcess] = []
        self.all = False

    def may_see(self, vm: VmProcess) -> bool:
        return self.uid in (0, os.geteuid(), vm.uid)


class Inspector:
    """A broker's."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._vms: list[VmProcess] = []
        self._rings: dict[int, int] = {}  # by the VM's worker
        self._tracing: dict[int, Onlooker] = {}
        self._tracer: Onlooker | None = None  # of everything
        self._socket: socket.socket | None = None
        self._system: Tracer | None = None
        self._system_ring = -1
        try:
            self._socket = _listen()
        except OSError as error:
            log(f"no inspection: {error}")

    def trace_all(self, end: socket.socket) -> None:
        """Tell `end`, from now on, of everything. Before run()."""
        self._tracer = Onlooker(Link(end), 0)
        self._tracer.all = True
        fd = ring.create(_NS_KHZ, time.monotonic_ns(), time.time_ns())
        self._system = Tracer(ring.Writer(fd), time.monotonic_ns)
        self._system_ring = fd

    def traced(self, node: Any, caller: Any, message: request.Ioctl, work: Callable[[Any], int]) -> int:
        """Do an ioctl of /dev/kvm, seen by who traces."""
        if self._system is None:
            return work(caller)
        return self._system.ioctl(node, caller, message.cmd, message.arg, work)

    async def run(self) -> None:
        """Serve who comes, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                if self._tracer:
                    _tell(self._tracer, {"ring": 0, "name": "kvm"}, [self._system_ring])
                    os.close(self._system_ring)
                    nursery.start_soon(self._serve, self._tracer)
                if self._socket is None:
                    return
                while True:
                    await trio.lowlevel.wait_readable(self._socket)
                    with suppress(OSError):
                        end, _ = self._socket.accept()
                        if len(nursery.child_tasks) >= _MOST:
                            end.close()
                            continue
                        nursery.start_soon(self._serve, Onlooker(Link(end), _uid(end)))
        finally:
            if self._socket:
                self._socket.close()
            if self._tracer:
                self._tracer.link.close()

    # VMs come and go --------------------------------------------------------------------------------------------------

    async def created(self, vm: VmProcess) -> None:
        """It has a worker, and nobody has it yet."""
        self._vms.append(vm)
        if self._tracer:
            with suppress(OSError):
                await self._trace(self._tracer, vm)

    def named(self, vm: VmProcess, message: request.Ioctl, started: int, result: int) -> None:
        """The client's KVM_CREATE_VM has an answer: vm.fd, or -errno."""
        if self._system:
            self._system.done(message.tid, message.cmd, message.arg, started, result)
        if vm.fd >= 0 and (onlooker := self._tracing.get(vm.pid)):
            _tell(onlooker, {"named": vm.pid, "name": _name(vm)})

    def refused(self, message: request.Ioctl, number: int) -> None:
        """A KVM_CREATE_VM came to no VM at all."""
        if self._system:
            self._system.done(message.tid, message.cmd, message.arg, time.monotonic_ns(), -number)

    def gone(self, vm: VmProcess) -> None:
        with suppress(ValueError):
            self._vms.remove(vm)
        if onlooker := self._tracing.pop(vm.pid, None):
            _tell(onlooker, {"gone": vm.pid})
        if (fd := self._rings.pop(vm.pid, -1)) >= 0:
            os.close(fd)

    def _find(self, onlooker: Onlooker, name: str) -> VmProcess:
        for vm in self._vms:
            if _name(vm) == name and onlooker.may_see(vm):
                return vm
        raise OSError(errno.ENOENT, name)

    # An onlooker ------------------------------------------------------------------------------------------------------

    async def _serve(self, onlooker: Onlooker) -> None:
        try:
            with suppress(channel.ChannelClosed, channel.MalformedMessage):
                while True:
                    message, fds = await onlooker.link.receive()
                    channel.close_all(fds)
                    answer, give = await self._answer(onlooker, message)
                    try:
                        await onlooker.link.send({"id": message.get("id"), **answer}, give)
                    finally:
                        channel.close_all(give)
        finally:
            onlooker.link.close()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                for vm in onlooker.traces:
                    if self._tracing.pop(vm.pid, None):
                        with suppress(OSError):
                            await vm.ask("trace")
            if onlooker is self._tracer:
                self._tracer = self._system = None

    async def _answer(self, onlooker: Onlooker, message: Message) -> Answer:
        try:
            operation = self._OPERATIONS.get(str(message.get("op")))
            if operation is None:
                raise OSError(errno.ENOSYS, "no such operation")
            return await operation(self, onlooker, message)
        except OSError as error:
            return {"errno": error.errno or errno.EIO, "what": str(error)}, []
        except Exception as error:  # whatever somebody sent
            self._log(f"inspection: {error!r}")
            return {"errno": errno.EINVAL, "what": repr(error)}, []

    async def _list(self, onlooker: Onlooker, message: Message) -> Answer:
        vms = [_describe(vm) for vm in self._vms if vm.fd >= 0 and onlooker.may_see(vm)]
        return {"broker": {"pid": os.getpid(), "version": kvmfs.__version__}, "vms": vms}, []

    async def _inspection(self, onlooker: Onlooker, message: Message) -> Answer:
        vm = self._find(onlooker, message["vm"])
        if vm.inspection < 0:
            raise OSError(errno.ENODATA, "it shows nothing")
        return _describe(vm), [os.dup(vm.inspection)]

    async def _inspect(self, onlooker: Onlooker, message: Message) -> Answer:
        _, fds = await self._find(onlooker, message["vm"]).ask("inspect", what=str(message["what"]))
        return {}, fds

    async def _inject(self, onlooker: Onlooker, message: Message) -> Answer:
        vm = self._find(onlooker, message["vm"])
        await vm.ask("inject", rules=list(message["rules"]), clear=bool(message.get("clear")))
        return {}, []

    async def _begin(self, onlooker: Onlooker, message: Message) -> Answer:
        await self._trace(onlooker, self._find(onlooker, message["vm"]))
        return {}, []

    _OPERATIONS: Final[dict[str, Callable[[Inspector, Onlooker, Message], Awaitable[Answer]]]] = {
        "list": _list,
        "inspection": _inspection,
        "inspect": _inspect,
        "inject": _inject,
        "trace": _begin,
    }

    # Traces -----------------------------------------------------------------------------------------------------------

    async def _trace(self, onlooker: Onlooker, vm: VmProcess) -> None:
        if vm.pid in self._tracing:
            raise OSError(errno.EBUSY, "it is being traced")
        self._tracing[vm.pid] = onlooker
        onlooker.traces.append(vm)
        try:
            await vm.serving()
            if vm.pid not in self._rings:
                self._rings[vm.pid] = ring.create(*vm.clock())
            await vm.ask("trace", (self._rings[vm.pid],))
            _tell(onlooker, {"ring": vm.pid, "name": _name(vm) if vm.fd >= 0 else ""}, [self._rings[vm.pid]])
        except BaseException:
            self._tracing.pop(vm.pid, None)
            raise


def _tell(onlooker: Onlooker, message: Message, fds: list[int] | tuple[int, ...] = ()) -> None:
    """Whoever does not read what he asked for does not get it."""
    with suppress(channel.ChannelClosed, BlockingIOError):
        onlooker.link.send_nowait(message, fds)


def _listen() -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.bind(f"\0{PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
        end.listen()
    except BaseException:
        end.close()
        raise
    return end


def _uid(end: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _name(vm: VmProcess) -> str:
    return f"{vm.client.tgid}-{vm.fd}"


def _describe(vm: VmProcess) -> Message:
    return {
        "name": _name(vm),
        "pid": vm.client.tgid,
        "fd": vm.fd,
        "worker": vm.pid,
        "uid": vm.uid,
        "gid": vm.gid,
        "kind": vm.kind,
        "created": vm.created,
    }
