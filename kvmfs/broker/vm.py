"""A VM as the broker knows it: a worker, the connection that it reads, and the mount where its files are opened.

The broker's duplicate of the connection's file serves to answer requests whose threads it borrows, to register run
pages for passthrough, and to take over when the worker dies. Nothing that a worker says is believed further than its
own client and mount: files are opened by a bare name, without following links, on a mount without devices.

A worker must not outlive its client: the pid that it may reach into could become another process's. KVM answers EIO
to everybody once the mm that made the VM is gone, and so does a connection whose worker is dead.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import signal
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

from kvmfs.broker import files
from kvmfs.broker.carrier import Files
from kvmfs.broker.clients import Client, Held
from kvmfs.broker.link import Link
from kvmfs.broker.zygote import Zygote
from kvmfs.client import fds as client_fds
from kvmfs.kvm.inspection import Header
from kvmfs.wire import reply
from kvmfs.worker import channel
from kvmfs.worker.channel import Message

Log = Callable[[str], None]
Answer = tuple[Message, list[int]]

_MAX_REQUESTS: Final = 4096  # of one worker under way: more threads wait in ioctls that need us than a client has
_HOLD_PATIENCE: Final = 1.0  # seconds
_QUESTION_PATIENCE: Final = 5.0
_CRASH_TEXT: Final = 8192  # bytes of a dead worker's stderr that are worth logging


class Asked:
    """A question to a worker that waits for its answer."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._answer: Answer | None = None

    def answer(self, message: Message, fds: list[int]) -> None:
        if self._answer is None:
            self._answer = message, fds
            self._event.set()
        else:
            channel.close_all(fds)

    async def wait(self) -> Answer:
        await self._event.wait()
        assert self._answer
        answer, self._answer = self._answer, ({}, [])
        return answer

    def close(self) -> None:
        if self._answer:
            channel.close_all(self._answer[1])


class VmProcess:
    """Owner of the broker's side of one VM. `run` serves the worker until the VM is gone."""

    def __init__(self, client: Client, files: Files, log: Log) -> None:
        """`files`: of the VM; from now on its own."""
        self.client = client
        self._log = log
        self._held: dict[int, Held] = {}
        self._asked: dict[int, Asked] = {}
        self._questions = itertools.count(1)
        self.fd = -1
        """The number of the VM's first descriptor in the client, once it has it."""
        self.kind = self.uid = self.gid = 0
        self.created = time.time()
        self.inspection = -1
        """Its inspection file (kvmfs.kvm.inspection), open for reading; -1: it has none."""
        self._backing = 0
        self._goodbye = False
        self._started = trio.Event()
        self._stopped = trio.Event()
        self._failure: OSError | None = None
        self.pid = 0
        self._pidfd = -1
        self._threads = trio.CapacityLimiter(8)  # so that a worker which never answers an open harms itself only
        self.files = files
        ours, self._theirs = channel.pair()
        self._link = Link(ours)
        self._stderr = os.memfd_create("kvmfs-worker-stderr", os.MFD_CLOEXEC)
        self._client_pidfd = os.pidfd_open(client.tgid)

    async def start(self, zygote: Zygote, kind: int, how: Mapping[str, object], *, uid: int, gid: int) -> None:
        """Have the worker made. `kind`: the argument of KVM_CREATE_VM; `uid`, `gid`: its caller's; `how`: more that the
        worker is told (kvmfs.worker.process). OSError."""
        self.kind, self.uid, self.gid = kind, uid, gid
        self.pid, self._pidfd = await zygote.fork(
            [self.files.connection.fileno(), self._theirs.fileno(), self._stderr, self._client_pidfd],
            kind=kind,
            client=self.client.tgid,
            uid=uid,
            gid=gid,
            **how,
        )
        self._theirs.close()

    async def first_file(self) -> int:
        """The VM's own file, opened: a descriptor. OSError: there is no VM, or no worker any more."""
        await self.serving()
        fd, device = await trio.to_thread.run_sync(self._open_first, abandon_on_cancel=True, limiter=self._threads)
        try:
            await self._link.send({"op": "device", "device": device})
        except channel.ChannelClosed:
            os.close(fd)
            raise OSError(errno.EIO, "the VM's process has ended") from None
        return fd

    async def serving(self) -> None:
        """Returns when the worker does. OSError: it will not."""
        await self._started.wait()
        if self._failure:
            raise self._failure

    def clock(self) -> tuple[int, int, int]:
        """Of the worker's times: kHz of its counter, what that showed when, in ns. OSError(ENODATA)."""
        if self.inspection < 0:
            raise OSError(errno.ENODATA, "it shows nothing")
        khz, tsc, clock = struct.unpack("<3Q", os.pread(self.inspection, 24, Header.TSC_KHZ))
        return khz, tsc, clock

    def _open_first(self) -> tuple[int, int]:
        fd = self.files.open("vm")
        try:
            return fd, self.files.device(fd)
        except BaseException:
            os.close(fd)
            raise

    # The life of the worker ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what the worker asks for, until it is gone; then see to what it leaves."""
        watch = trio.CancelScope()
        async with trio.open_nursery() as afterwards:
            afterwards.start_soon(self._watch_client, watch)
            try:
                async with trio.open_nursery() as requests:
                    await self._serve(requests)
                    watch.cancel()
                    self._end(f"the VM's process has ended\n{self.stderr()}".rstrip())
                    if not self._goodbye:
                        # At once: what is being opened for the worker waits for an answer.
                        afterwards.start_soon(self.files.abandon)
            finally:
                for held in list(self._held.values()):
                    await held.finish(-errno.EIO)
                self._held.clear()

    async def _watch_client(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.lowlevel.wait_readable(self._client_pidfd)
            self.kill()

    def _client_has_ended(self) -> bool:
        """The worker, which looks for that, too, may have been faster."""
        poll = select.poll()
        poll.register(self._client_pidfd, select.POLLIN)
        return bool(poll.poll(0))

    # Answers held back ------------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Returns when the worker answers nobody, or is not in a state to."""
        self._stopped = trio.Event()
        with trio.move_on_after(_HOLD_PATIENCE), suppress(channel.ChannelClosed):
            await self._link.send({"op": "hold", "id": 0})
            await self._stopped.wait()
            await trio.to_thread.run_sync(self.files.settle, abandon_on_cancel=True, limiter=self._threads)

    async def release(self) -> None:
        with suppress(channel.ChannelClosed):
            await self._link.send({"op": "release"})

    # Questions --------------------------------------------------------------------------------------------------------

    async def ask(self, op: str, fds: tuple[int, ...] = (), **arguments: object) -> Answer:
        """Ask the worker: its answer, with descriptors, the caller's to close. OSError."""
        number = next(self._questions)
        asked = self._asked[number] = Asked()
        try:
            with trio.fail_after(_QUESTION_PATIENCE):
                await self._link.send({"op": op, "id": number, **arguments}, fds)
                message, received = await asked.wait()
        except channel.ChannelClosed:
            raise OSError(errno.ESRCH, "the VM's process has ended") from None
        except trio.TooSlowError:
            raise OSError(errno.ETIMEDOUT, "the VM's process does not answer") from None
        finally:
            del self._asked[number]
            asked.close()
        if number := int(message.get("errno", 0)):
            channel.close_all(received)
            raise OSError(number, os.strerror(number))
        return message, received

    async def _serve(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                message, fds = await self._link.receive()
            except channel.ChannelClosed:
                return
            except channel.MalformedMessage:
                self._log(f"VM process {self.pid} of {self.client.tgid} sends nonsense: killed")
                self.kill()
                continue
            if "op" not in message and message.get("id") in self._asked:
                self._asked[message["id"]].answer(message, fds)
                continue
            if "op" in message and message["op"] not in self._STATEMENTS and len(nursery.child_tasks) < _MAX_REQUESTS:
                nursery.start_soon(self._request, message, fds)
                continue
            try:
                if message.get("op") == "serving" and fds:
                    self.inspection = files.inspection(fds[0])
                self._STATEMENTS[message.get("op", "")](self, message)
            except (KeyError, TypeError, ValueError, OSError) as error:
                self._log(f"VM process {self.pid} of {self.client.tgid} sends {error!r}: killed")
                self.kill()
            finally:
                channel.close_all(fds)

    def _say_held(self, message: Message) -> None:
        self._stopped.set()  # the answer to `hold`, the only one that there is

    def _say_serving(self, message: Message) -> None:
        self._started.set()

    def _say_failed(self, message: Message) -> None:
        self._goodbye = True
        self._end(str(message["what"]), int(message["errno"]))

    def _say_bye(self, message: Message) -> None:
        self._goodbye = True

    def _say_log(self, message: Message) -> None:
        self._log(str(message["text"])[:_CRASH_TEXT])

    _STATEMENTS: Final[dict[str, Callable[[VmProcess, Message], None]]] = {
        "": _say_held,
        "serving": _say_serving,
        "failed": _say_failed,
        "bye": _say_bye,
        "log": _say_log,
    }

    def _end(self, why: str, number: int = errno.EIO) -> None:
        if not self._started.is_set():
            self._failure = OSError(number, why)
            self._started.set()
        elif not self._goodbye and not self._client_has_ended():
            self._log(f"VM process {self.pid} of {self.client.tgid} died\n{self.stderr()}".rstrip())

    def stderr(self) -> str:
        """The last words of the worker."""
        start = max(0, os.fstat(self._stderr).st_size - _CRASH_TEXT)
        return os.pread(self._stderr, _CRASH_TEXT, start).decode(errors="replace")

    def kill(self) -> None:
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Give everything back. What the client has open of a VM whose worker lives is not affected."""
        self._link.close()
        self._theirs.close()
        self.files.close()
        for asked in self._asked.values():
            asked.answer({"errno": errno.ESRCH}, [])
        for fd in (self._stderr, self._pidfd, self._client_pidfd, self.inspection):
            if fd >= 0:
                os.close(fd)
        self._stderr = self._pidfd = self._client_pidfd = self.inspection = -1

    # What the worker asks for --------------------------------------------------------------------------------------

    async def _request(self, message: Message, fds: list[int]) -> None:
        operation, number = message.get("op"), message.get("id")
        give: list[int] = []
        answer: Message
        try:
            handler = self._OPERATIONS[str(operation)]
            answer, give = await handler(self, message, fds)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "what": str(error)}
            answer["held"] = getattr(error, "answered", False)
        except Exception as error:  # whatever it is, the other VMs must not suffer
            self._log(f"{operation} for VM process {self.pid} of {self.client.tgid} failed: {error!r}")
            answer = {"errno": errno.EIO, "what": repr(error)}
        finally:
            channel.close_all(fds)
        if number is not None:
            if message.get("tid") in list(self._held):
                answer["held"] = True
            with suppress(channel.ChannelClosed):
                await self._link.send({**answer, "id": number}, give)
        channel.close_all(give)

    async def _take(self, tid: int, unique: int) -> Held:
        """The thread, borrowed now or by an earlier request of the same ioctl."""
        if held := self._held.get(tid):
            return held
        self._checked(tid)
        message = reply.ioctl(unique, -errno.EIO)
        held = await Held.take(self.client, tid, lambda: self.files.connection.reply(message), self._log)
        self._held[tid] = held
        return held

    async def _install(self, message: Message, fds: list[int]) -> Answer:
        name, tid, unique = str(message["name"]), int(message["tid"]), int(message["unique"])
        self._checked(tid)
        fd = await trio.to_thread.run_sync(self.files.open, name, abandon_on_cancel=True, limiter=self._threads)
        try:
            return {"fd": await self.files.give(fd, unique, lambda: self._take(tid, unique))}, []
        finally:
            os.close(fd)
            self._forget_backing()

    async def _adopt(self, message: Message, fds: list[int]) -> Answer:
        address, length = int(message["address"]), int(message["length"])
        held = await self._take(int(message["tid"]), int(message["unique"]))
        async with self.client.held_back():
            return {}, [await trio.to_thread.run_sync(held.borrow.adopt, address, length, limiter=self._threads)]

    async def _map_shared(self, message: Message, fds: list[int]) -> Answer:
        tid = self._checked(int(message["tid"]))
        address, length = int(message["address"]), int(message["length"])
        return await trio.to_thread.run_sync(files.map_shared, tid, address, length, limiter=self._threads)

    def _checked(self, tid: int) -> int:
        if client_fds.tgid_of(tid) != self.client.tgid:
            raise OSError(errno.ESRCH, f"{tid} is no thread of {self.client.tgid}")
        return tid

    async def _poison(self, message: Message, fds: list[int]) -> Answer:
        held = await self._take(int(message["tid"]), int(message["unique"]))
        await trio.to_thread.run_sync(held.borrow.poison, int(message["address"]), limiter=self._threads)
        return {}, []

    async def _finish(self, message: Message, fds: list[int]) -> Answer:
        held = self._held.pop(int(message["tid"]), None)
        if held:
            await held.finish(int(message["result"]))
        return {}, []

    async def _getfd(self, message: Message, fds: list[int]) -> Answer:
        tid = self._checked(int(message["tid"]))
        fd = client_fds.getfd(tid, int(message["fd"]))
        answer: Message = {"description": client_fds.description(fd)}
        if client_fds.is_eventfd(fd):
            answer["eventfd"] = client_fds.eventfd_id(fd)
        if node := self.files.node_behind(fd):
            answer["node"] = node
        return answer, [fd]

    async def _schedstat(self, message: Message, fds: list[int]) -> Answer:
        return {}, [files.schedstat(self.pid if message["own"] else self.client.tgid, int(message["tid"]))]

    async def _register_backing(self, message: Message, fds: list[int]) -> Answer:
        """The kernel will open the file again, for writing and with our rights: only a memfd may be given."""
        (memfd,) = fds
        if fcntl.fcntl(memfd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR or not files.is_memfd(memfd):
            raise OSError(errno.EINVAL, "not a memfd")
        self._forget_backing()
        self._backing = self.files.backing_open(memfd)
        return {"backing": self._backing}, []

    def _forget_backing(self) -> None:
        if self._backing:
            self.files.backing_close(self._backing)
            self._backing = 0

    _OPERATIONS: Final[dict[str, Callable[[VmProcess, Message, list[int]], Awaitable[Answer]]]] = {
        "install": _install,
        "adopt": _adopt,
        "map_shared": _map_shared,
        "poison": _poison,
        "finish": _finish,
        "getfd": _getfd,
        "schedstat": _schedstat,
        "backing": _register_backing,
    }
