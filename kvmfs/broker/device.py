"""The connection of /dev/kvm: who opens it, system ioctls, and KVM_CREATE_VM.

CUSE ioctls are unrestricted and FUSE ones are not, which makes no difference here: arguments are read from the client's
memory, unless the kernel has brought them along, and results are written there.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from kvmfs.abi.ioctls import KVM_CREATE_VM
from kvmfs.broker.carrier import Carrier, FuseCarrier
from kvmfs.broker.clients import Client, Clients, Held
from kvmfs.broker.inspector import Inspector
from kvmfs.broker.vm import VmProcess
from kvmfs.broker.zygote import Zygote
from kvmfs.client import fds, memory
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.inject.ioctls import Fired, IoctlRules
from kvmfs.kvm.inject.rules import Rule, to_message
from kvmfs.wire import reply, request
from kvmfs.wire.aio import Receiver
from kvmfs.wire.connection import Connection, ConnectionEnded
from kvmfs.wire.fuse_h import IoctlFlag, OpenFlag

Log = Callable[[str], None]

DEFAULT_CORE = "kvmfs.kvm.vm"


async def serve(
    connection: Connection,
    *,
    log: Log,
    passthrough: bool = True,
    ready: Callable[[], None] = lambda: None,
    system: Any = None,
    core: str = DEFAULT_CORE,
    tracer: socket.socket | None = None,
    rules: tuple[Rule, ...] = (),
    carrier: Carrier | None = None,
) -> None:
    """Serve /dev/kvm until its connection ends and the last VM is gone, or until cancelled.

    Cancelled, the VMs that exist go on in their processes, but can't make new file descriptors.

    :param connection: of the device, handshake done; remains the caller's.
    :param log: takes lines for people.
    :param passthrough: use FUSE passthrough for run pages, if the kernel lets us.
    :param ready: called when clients are served.
    :param tracer: somebody who is told of all that happens from the start (kvmfs.broker.inspector).
    :param rules: faults on purpose (kvmfs.kvm.inject), for /dev/kvm and for each VM.
    :param carrier: how the files of VMs get to clients; None: as FUSE files.
    :param system: what answers system ioctls; :param core: the module that makes VMs in workers (for tests).
    """
    carrier = carrier or FuseCarrier()
    passthrough = passthrough and carrier.shares_pages()
    if system is None:
        from kvmfs.kvm.system import System

        system = System(shared_pages=passthrough, reads=carrier.reads)
    broker = Broker(connection, carrier, system, Zygote(core, log), log, passthrough, rules)
    if tracer:
        broker.inspector.trace_all(tracer)
    await broker.run(ready)


class SystemCaller:
    """The thread that made a system ioctl."""

    def __init__(self, message: request.Ioctl) -> None:
        self.tid = message.tid
        self._arg, self._data = message.arg, message.data

    @property
    def tgid(self) -> int:
        return fds.tgid_of(self.tid)

    def read(self, address: int, size: int) -> bytes:
        offset = address - self._arg
        if offset >= 0 and offset + size <= len(self._data):
            return self._data[offset : offset + size]
        return memory.read(self.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        memory.write(self.tid, address, data)

    def getfd(self, number: int) -> int:
        return fds.getfd(self.tid, number)

    def schedstat(self, *, own: bool) -> int:
        raise OSError(errno.ENOTTY, "not for system ioctls")

    def node_of(self, number: int) -> None:
        """No descriptor stands for a part of the system."""
        os.close(self.getfd(number))

    def install(self, node: object) -> int:
        raise OSError(errno.ENOTTY, "only KVM_CREATE_VM makes a descriptor here")

    def backing(self, address: int, length: int) -> list[Any]:
        raise OSError(errno.ENOTTY, "not for system ioctls")

    def adopt(self, address: int, length: int) -> int:
        raise OSError(errno.ENOTTY, "not for system ioctls")


@dataclass(eq=False, slots=True)
class Creation:
    """A KVM_CREATE_VM under way."""

    message: request.Ioctl
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Broker:
    def __init__(
        self,
        connection: Connection,
        carrier: Carrier,
        system: Any,
        zygote: Zygote,
        log: Log,
        passthrough: bool,
        rules: tuple[Rule, ...] = (),
    ) -> None:
        self._rules = [to_message(rule) for rule in rules]
        self._injecting = IoctlRules(self._note_injection)
        self._injecting.add(enumerate(rules, 1))
        self._connection, self._carrier = connection, carrier
        self._system = system
        self._zygote = zygote
        self._log = log
        self._passthrough = passthrough
        self._clients = Clients()
        self._creations: dict[int, Creation] = {}  # by the request's unique
        self.inspector = Inspector(log)

    async def run(self, ready: Callable[[], None]) -> None:
        async with trio.open_nursery() as background:
            background.start_soon(self._zygote.run)
            background.start_soon(self.inspector.run)
            async with trio.open_nursery() as vms:
                ready()
                receiver = Receiver(self._connection)
                try:
                    while True:
                        self._handle(await receiver.receive(), vms)
                except ConnectionEnded:
                    pass
            background.cancel_scope.cancel()

    def _handle(self, message: request.Request, vms: trio.Nursery) -> None:
        match message:
            case request.Ioctl(cmd=KVM_CREATE_VM.number):
                creation = Creation(message)
                self._creations[message.unique] = creation
                vms.start_soon(self._create_vm, creation)
                return
            case request.Interrupt():
                # All other requests are answered at once. A borrowed thread is interrupted by its being borrowed.
                if waiting := self._creations.get(message.target):
                    waiting.scope.cancel()
                return
            case request.Forget() | request.NotifyReply():
                return
            case request.Ioctl() if self._injecting.concerns(message.cmd):
                vms.start_soon(self._interfere, message)
                return
            case request.Ioctl():
                answer = self._ioctl(message)
            case request.Open():
                answer = reply.opened(message.unique, 0, OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH)
            case request.Release() | request.Destroy():
                answer = reply.ok(message.unique)
            case request.GetAttr():
                answer = reply.attr(message.unique, self._connection.attributes)
            case request.Statfs():
                answer = reply.statfs(message.unique)
            case request.Poll() | request.Flush() | request.Access() | request.Other():
                answer = reply.error(message.unique, errno.ENOSYS)  # as if the file had no such operation
            case request.SetAttr():
                answer = reply.error(message.unique, errno.EPERM)
            case _:
                answer = reply.error(message.unique, errno.EINVAL)
        self._answer(message, answer)

    def _answer(self, message: request.Request, answer: bytes) -> None:
        client = self._clients.held_back_of(message.tid) if isinstance(message, request.Ioctl) else None
        if client:
            client.answer(lambda: self._connection.reply(answer))
        else:
            self._connection.reply(answer)

    async def _interfere(self, message: request.Ioctl) -> None:
        """Answer an ioctl that rules are about."""
        failure: OSError | None = None
        try:
            await trio.sleep(self._injecting.ioctl(message.cmd))
        except OSError as error:
            failure = error
        self._answer(message, self._ioctl(message, failure))

    def _note_injection(self, fired: Fired) -> None:
        self._log(f"{fired.rule.text}: rule {fired.number} fires at match {fired.ordinal}")

    def _ioctl(self, message: request.Ioctl, failure: OSError | None = None) -> bytes:
        """`failure`: what it is to fail with."""
        try:
            if message.flags & (IoctlFlag.COMPAT | IoctlFlag.BIT32):
                raise OSError(errno.ENOTTY, "32-bit clients are not served")
            caller = SystemCaller(message)
            result = self.inspector.traced(self._system, caller, message, lambda seen: self._do(seen, message, failure))
        except OSError as error:
            result = -(error.errno or errno.EIO)
        except Exception as error:
            self._log(f"ioctl {message.cmd:#x} on /dev/kvm failed: {error!r}")
            result = -errno.EIO
        return reply.ioctl(message.unique, result)

    def _do(self, caller: Caller, message: request.Ioctl, failure: OSError | None) -> int:
        if failure:
            raise failure
        result: int = self._system.ioctl(caller, message.cmd, message.arg)
        return result

    # KVM_CREATE_VM -------------------------------------------------------------------------------------------------

    async def _create_vm(self, creation: Creation) -> None:
        """Answers the ioctl one way or another, and stays with the VM until it is gone."""
        message = creation.message
        vm: VmProcess | None = None
        client: Client | None = None
        try:
            try:
                await trio.sleep(self._injecting.ioctl(message.cmd))
                self._system.check_vm_type(message.arg)
                client = self._clients.get(fds.tgid_of(message.tid))
                await self._wait_for_zygote(creation)
                vm = VmProcess(client, self._carrier.files(client.tgid), self._log)
                who = {"uid": message.uid, "gid": message.gid}
                how = {"passthrough": self._passthrough, "reads": self._carrier.reads, "rules": self._rules}
                await vm.start(self._zygote, message.arg, how, **who)
            except OSError as error:
                self._log_failure(message, error)
                self.inspector.refused(message, error.errno or errno.EIO)
                self._answer(message, reply.ioctl(message.unique, -(error.errno or errno.EIO)))
                return
            except BaseException:
                self._connection.reply(reply.ioctl(message.unique, -errno.EIO))
                raise
            finally:
                del self._creations[message.unique]
            client.vms.add(vm)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hand_over, vm, client, message)
                await vm.run()
        finally:
            if vm:
                vm.client.vms.discard(vm)
                self.inspector.gone(vm)
                vm.close()
            if client:
                self._clients.put(client)

    async def _wait_for_zygote(self, creation: Creation) -> None:
        """Only here can a signal interrupt the ioctl: all that follows is short."""
        if self._zygote.is_ready:
            return
        self._log("the first VM waits for the vCPU's code to be loaded, or compiled if that was never done")
        with creation.scope:
            await self._zygote.wait_ready()
        if creation.scope.cancelled_caught:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    async def _hand_over(self, vm: VmProcess, client: Client, message: request.Ioctl) -> None:
        """Give the client its descriptor, or undo the VM."""
        failure = reply.ioctl(message.unique, -errno.EIO)
        held: Held | None = None
        started = time.monotonic_ns()

        async def take() -> Held:
            nonlocal held
            held = await Held.take(client, message.tid, lambda: self._connection.reply(failure), self._log)
            return held

        try:
            await self.inspector.created(vm)
            fd = await vm.first_file()
            try:
                result = await vm.files.give(fd, message.unique, take)
            finally:
                os.close(fd)
        except BaseException as error:
            number = error.errno or errno.EIO if isinstance(error, OSError) else errno.EIO
            if isinstance(error, OSError):
                self._log_failure(message, error)
            vm.kill()
            self.inspector.named(vm, message, started, -number)
            if held:
                await held.finish(-number)
            elif not getattr(error, "answered", False):
                self._answer(message, reply.ioctl(message.unique, -number))
            if not isinstance(error, OSError):
                raise
        else:
            vm.fd = result
            self.inspector.named(vm, message, started, result)
            if held:
                await held.finish(result)
            else:
                self._answer(message, reply.ioctl(message.unique, result))

    def _log_failure(self, message: request.Ioctl, error: OSError) -> None:
        self._log(f"KVM_CREATE_VM of thread {message.tid}: {error}")
