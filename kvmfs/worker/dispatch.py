"""Every request on a VM's connection that compiled code does not answer itself.

The files answer as KVM's do: anonymous inodes whose file operations are ioctl, mmap and little else. The kernel takes
ENOSYS to POLL, FLUSH and ACCESS as "never ask again", and then does what it does for files without such an operation.
"""

from __future__ import annotations

import errno
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kvmfs.abi.ioctls import KVM_RUN
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller, Node
from kvmfs.kvm.tracer import Tracer
from kvmfs.wire import reply, request
from kvmfs.wire.connection import Connection
from kvmfs.wire.fuse_h import ROOT_ID, IoctlFlag, OpenFlag
from kvmfs.wire.reply import Attributes
from kvmfs.worker import block
from kvmfs.worker.block import Reader, Seat
from kvmfs.worker.broker_link import BrokerLink
from kvmfs.worker.caller import FuseCaller
from kvmfs.worker.injecting import Injecting
from kvmfs.worker.nodes import Entry, Nodes, Runnable
from kvmfs.worker.readers import Native, Pool, ReaderThread

_NO_OPERATION = {
    request.Poll: errno.ENOSYS,
    request.Flush: errno.ENOSYS,
    request.Access: errno.ENOSYS,
    request.Other: errno.ENOSYS,
    request.Fsync: errno.EINVAL,
    request.SetAttr: errno.EINVAL,
    request.Lseek: errno.EINVAL,
}


@dataclass(slots=True)
class Parked:
    """An ioctl that waits for its vCPU's mutex."""

    request: request.Ioctl
    interrupted: bool = False


@dataclass(slots=True)
class Vcpu:
    """A vCPU's place in the connection."""

    node: Any  # a Node and Runnable
    seat: Block
    waiting: queue.SimpleQueue[Parked] = field(default_factory=queue.SimpleQueue)
    held: int = 0
    """The thread in whose KVM_RUN it is, borrowed by the broker: only to be interrupted by a signal (EINTR)."""


class Server:
    """One VM's files, served until the last of them is closed."""

    def __init__(
        self,
        connection: Connection,
        broker: BrokerLink,
        native: Native,
        *,
        client: int,
        vm: Node,
        injecting: Injecting | None = None,
    ) -> None:
        """`client`: its tgid. `vm`: the node that the broker is going to open first."""
        assert connection.negotiated
        self.injecting = injecting or Injecting(vm)
        self.client = client
        self.broker = broker
        self._connection = connection
        self.device: queue.SimpleQueue[int] = queue.SimpleQueue()
        """st_dev of the files, from the broker."""
        self._device = -1
        self._native = native
        self._cached = not connection.negotiated.passthrough
        self._pool = Pool(native, connection.fileno(), client, self._cached, self._read)
        self._nodes = Nodes()
        self._vcpus: list[Vcpu] = []  # by seat
        self._by_address: dict[int, Vcpu] = {}  # of the seat's block
        self._installing = threading.Lock()
        self._parked: dict[int, Parked] = {}
        self._nodes.add(vm).installed = True
        self.trace: Tracer | None = None
        """Writes what clients ask for into a ring."""

    def start(self) -> None:
        self._pool.ensure_reading()

    def is_client(self, tid: int) -> bool:
        return bool(self._native.is_client(self._pool.conn.address, tid))

    # Replies held back ---------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop all replies: whoever waits for one cannot run until release()."""
        self._native.hold(self._pool.conn.address)

    def release(self) -> None:
        self._native.release(self._pool.conn.address)

    def _reply(self, message: bytes) -> None:
        self._native.pass_gate(self._pool.conn.address)
        try:
            self._connection.reply(message)
        finally:
            self._native.leave_gate(self._pool.conn.address)

    # The threads ---------------------------------------------------------------------------------------------------

    def _read(self, reader: ReaderThread) -> None:
        while True:
            why = self._native.serve(reader.address)
            if why == block.ENDED:
                error = -reader.result()
                if error not in (0, errno.ENODEV, errno.ECONNABORTED):
                    self.broker.tell("log", text=f"worker: reading its connection: {os.strerror(error)}")
                self._end()
            try:
                self._pool.ensure_reading()
                self._attend(reader, why)
            except Exception:
                self._complain()
                if unique := reader.block[Reader.UNIQUE]:
                    self._reply(reply.error(unique, errno.EIO))
                    reader.block[Reader.UNIQUE] = 0
            self._native.will_read(self._pool.conn.address, 1)

    def _attend(self, reader: ReaderThread, why: int) -> None:
        if why == block.DISPATCH:
            message = request.parse(reader.message())
            try:
                self._dispatch(reader, message)
            except OSError as error:
                self._reply(reply.error(message.unique, error.errno or errno.EIO))
            except Exception:
                self._complain()
                self._reply(reply.error(message.unique, errno.EIO))
            reader.block[Reader.UNIQUE] = 0
            if self._nodes.finished:
                self._end()
        elif why == block.PARK:
            message = request.parse(reader.message())
            assert isinstance(message, request.Ioctl)
            self._park(reader, self._vcpus[message.nodeid - block.VCPU_NODE], message)
        elif why == block.GROW:
            self._attend(reader, self._native.go_on(reader.address))
        elif why:
            self._follow(reader, why)

    def _complain(self) -> None:
        self.broker.tell("log", text=f"worker: {traceback.format_exc()}")

    def _end(self) -> NoReturn:
        """All handles are released, or the connection is dead: the process ends, and with it all that the VM had."""
        self.broker.tell("bye")
        sys.stderr.flush()
        os._exit(0)

    # vCPUs: one ioctl at a time ------------------------------------------------------------------------------------

    def _park(self, reader: ReaderThread, vcpu: Vcpu, message: request.Ioctl) -> None:
        """Leave an ioctl, counted as a waiter already, to who has the vCPU's mutex."""
        parked = Parked(message)
        self._parked[message.unique] = parked  # before it is put down: an interrupt always finds one of the two
        parked.interrupted |= bool(self._native.put_down(reader.address))
        vcpu.waiting.put(parked)

    def _follow(self, reader: ReaderThread, why: int) -> None:
        """Go on after a run in compiled code with what needs Python, until the vCPU's mutex is given back."""
        while why:
            vcpu = self._seated(reader)
            why = self._serve_vcpu(reader, vcpu) if why == block.SERVE_VCPU else self._take_over(reader, vcpu)

    def _seated(self, reader: ReaderThread) -> Vcpu:
        return self._by_address[reader.block[Reader.SEAT]]

    def _serve_vcpu(self, reader: ReaderThread, vcpu: Vcpu) -> int:
        caller = FuseCaller(self, reader.block[Reader.TID], reader.block[Reader.UNIQUE], borrowable=False)
        result = self._result(lambda: vcpu.node.service(caller))
        if caller.held:
            vcpu.seat[Seat.RUNNING] = 0  # the broker has the thread, and answers
            vcpu.held = caller.tid
        native, at = self._native, reader.address
        why = native.enter(at) if result is None else native.finish_run(at, result)
        if vcpu.held and why != block.SERVE_VCPU:
            held, vcpu.held = vcpu.held, 0
            self.broker.tell("finish", tid=held, result=-errno.EINTR)
        return why

    def _take_over(self, reader: ReaderThread, vcpu: Vcpu) -> int:
        """The mutex is ours for a request that waits for it, or that is about to be put there."""
        parked = vcpu.waiting.get()
        message = parked.request
        reader.block[Reader.TID] = message.tid
        reader.block[Reader.UNIQUE] = message.unique
        del self._parked[message.unique]
        if message.cmd == KVM_RUN.number and message.arg == 0:
            if parked.interrupted:
                reader.block[Reader.INTERRUPTED] = message.unique
            return self._native.start_run(reader.address)
        return self._vcpu_ioctl(reader, vcpu, message)

    def _vcpu_ioctl(self, reader: ReaderThread, vcpu: Vcpu, message: request.Ioctl) -> int:
        """An ioctl on a vCPU whose mutex is ours. HANDOVER when it is still, for the next in the queue."""
        caller = self._caller(message)
        result = self._result(lambda: self._do(vcpu.node, caller, message))
        awaited = self._native.give(vcpu.seat.address)
        self._answer(caller, message, result)
        reader.block[Reader.UNIQUE] = 0
        return block.HANDOVER if awaited else 0

    # Ioctls --------------------------------------------------------------------------------------------------------

    def _caller(self, message: request.Ioctl) -> FuseCaller:
        return FuseCaller(self, message.tid, message.unique, message.arg, message.data)

    def _result(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Exception:
            self._complain()
            return -errno.EIO

    def _do(self, node: Any, caller: FuseCaller, message: request.Ioctl) -> Any:
        def work(caller: Caller) -> int:
            self.injecting.before_ioctl(message.cmd, node)
            result: int = node.ioctl(caller, message.cmd, message.arg)
            return result

        if self.trace:
            return self.trace.ioctl(node, caller, message.cmd, message.arg, work)
        return work(caller)

    def _answer(self, caller: FuseCaller, message: request.Ioctl, result: int) -> None:
        if caller.held:
            self.broker.tell("finish", tid=caller.tid, result=result)
        else:
            self._reply(reply.ioctl(message.unique, result))

    def _ioctl(self, reader: ReaderThread, message: request.Ioctl) -> None:
        entry = self._entry(message)
        if message.flags & (IoctlFlag.COMPAT | IoctlFlag.BIT32):
            raise OSError(errno.ENOTTY, "32-bit clients are not served")
        if message.nodeid >= block.VCPU_NODE:
            if not self.is_client(message.tid):
                raise OSError(errno.EIO, "not the process that made the VM")
            vcpu = self._vcpus[message.nodeid - block.VCPU_NODE]
            if not self._native.take(vcpu.seat.address):
                self._park(reader, vcpu, message)
                return
            reader.block[Reader.SEAT] = vcpu.seat.address
            self._follow(reader, self._vcpu_ioctl(reader, vcpu, message))
            return
        caller = self._caller(message)
        self._answer(caller, message, self._result(lambda: self._do(entry.node, caller, message)))

    # Installing ----------------------------------------------------------------------------------------------------

    def install(self, caller: FuseCaller, node: Node) -> int:
        with self._installing:  # names are looked up once each
            seat = self._pool.seat() if isinstance(node, Runnable) else None
            if seat is None and isinstance(node, Runnable):
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            entry = self._nodes.add(node, seat[0] if seat else None)
            try:
                if seat:
                    self._seat(entry, *seat)
                number = caller.request_install(node.name)
            except BaseException:
                if self._nodes.cancel(entry):
                    self._gone(entry)
                raise
            entry.installed = True
            return number

    def node_behind(self, fd: int, nodeid: int) -> Node | None:
        """The node of ours whose open file `fd` is. `nodeid`: its id, if the broker can tell."""
        if nodeid:
            entry = self._nodes.get(nodeid)
            return entry.node if entry else None
        with self._installing:
            if self._device < 0:
                self._device = self.device.get()
        status = os.fstat(fd)  # another reader answers, if the kernel asks
        entry = self._nodes.get(status.st_ino) if status.st_dev == self._device else None
        return entry.node if entry else None

    def _seat(self, entry: Entry, index: int, seat: Block) -> None:
        node: Any = entry.node
        seat[Seat.ENTER], seat[Seat.CONTEXT] = node.enter, node.context
        seat[Seat.REQUEST], seat[Seat.STOP], seat[Seat.PAGE] = node.request, node.stop, node.page
        seat[Seat.CALLER] = node.caller
        self._vcpus[index : index + 1] = [Vcpu(node, seat)]
        self._by_address[seat.address] = self._vcpus[index]
        self._pool.publish()
        if not self._cached:
            answer, _ = self.broker.call("backing", (node.memfd,))
            if answer.get("errno"):
                raise OSError(answer["errno"], os.strerror(answer["errno"]))
            entry.backing = answer["backing"]

    # File operations -----------------------------------------------------------------------------------------------

    def _entry(self, message: request.Request) -> Entry:
        entry = self._nodes.get(message.nodeid)
        if entry is None:
            raise OSError(errno.EIO, f"no node {message.nodeid:#x}")
        return entry

    def _dispatch(self, reader: ReaderThread, message: request.Request) -> None:
        match message:
            case request.Ioctl():
                self._ioctl(reader, message)
            case request.Interrupt():
                self._interrupt(message)
            case request.Forget() | request.NotifyReply():
                pass
            case request.Lookup():
                entry = self._nodes.named(message.name)
                if entry is None or not entry.expected:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                self._reply(reply.entry(message.unique, entry.nodeid, entry.attributes, valid=0))
            case request.GetAttr():
                if message.nodeid == ROOT_ID:
                    self._reply(reply.attr(message.unique, Attributes(ROOT_ID, mode=0o40755)))
                else:
                    self._reply(reply.attr(message.unique, self._entry(message).attributes, valid=0))
            case request.Open():
                self._open(message)
            case request.Release():
                self._release(message)
            case request.Read():
                node: Any = self._entry(message).node
                if not hasattr(node, "read"):
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                self._reply(reply.ok(message.unique, bytes(node.read(message.offset, message.size))))
            case request.Write():
                if not message.cached:
                    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                self._reply(reply.written(message.unique, len(message.data)))
            case request.Fallocate():
                file: Any = self._entry(message).node
                if not hasattr(file, "fallocate"):
                    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
                caller = FuseCaller(self, message.tid, message.unique)
                where = (message.mode, message.offset, message.length)

                def work() -> None:
                    self.injecting.before_fallocate()
                    file.fallocate(caller, *where)

                if self.trace:
                    self.trace.fallocate(file, caller, *where, work)
                else:
                    work()
                self._reply(reply.ok(message.unique))
            case request.Statfs():
                self._reply(reply.statfs(message.unique))
            case request.Destroy():
                self._reply(reply.ok(message.unique))
            case _:
                self._reply(reply.error(message.unique, _NO_OPERATION.get(type(message), errno.ENOSYS)))

    def _interrupt(self, message: request.Interrupt) -> None:
        """Compiled code does not know the request: it is parked, or answered, or read and not noted yet."""
        parked = self._parked.get(message.target)
        if parked is None:
            self._connection.reply(reply.error(message.unique, errno.EAGAIN))
        else:
            parked.interrupted = True
            self._native.interrupt(self._pool.conn.address, message.target)  # should it just have been taken over

    def _open(self, message: request.Open) -> None:
        entry = self._entry(message)
        if not self._nodes.open(entry):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        flags = OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH
        if isinstance(entry.node, Runnable):
            if self._cached:
                flags = OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH
                self._prime(entry)
            else:
                flags |= OpenFlag.PASSTHROUGH
        self._reply(reply.opened(message.unique, entry.nodeid, flags, entry.backing))

    def _prime(self, entry: Entry) -> None:
        """Fill the page cache, so that the client's first touch finds the run page there."""
        node: Any = entry.node
        for offset in range(0, entry.attributes.size, 4096):
            data = os.pread(node.memfd, 4096, offset)
            self._connection.reply(reply.notify_store(entry.nodeid, offset, data))

    def _release(self, message: request.Release) -> None:
        self._reply(reply.ok(message.unique))
        entry = self._entry(message)
        if self._nodes.release(entry):
            self._gone(entry)

    def _gone(self, entry: Entry) -> None:
        if entry.installed:
            entry.node.released()
        elif entry.seat is not None:
            self._pool.unseat(entry.seat)
