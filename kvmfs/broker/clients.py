"""Client processes, as far as the broker keeps anything about them: their VMs, and who is being borrowed.

Threads of one client are borrowed one at a time (an adoption may stop all the others, and a thread has one tracer);
different clients don't wait for each other. Between the answer to its request and `finish` a borrowed thread stays
stopped, and its client locked: a worker must not wait for another borrow of the same client while it holds one.

While memory is adopted, nobody may write to it unseen. A thread that waits in a request of ours would not stop for
ptrace without its ioctl failing with EINTR, and needs not: it stays where it is as long as it gets no answer. So all
answers to that client are held back meanwhile, ours and those of its workers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import trio

from kvmfs.client import fds
from kvmfs.client.borrow import Borrow

Log = Callable[[str], None]


class Holding(Protocol):
    """A VM, whose worker can hold its answers back."""

    async def hold(self) -> None: ...
    async def release(self) -> None: ...


class Client:
    """A process that has VMs, or is about to have one."""

    def __init__(self, tgid: int) -> None:
        self.tgid = tgid
        self.users = 0
        self.turn = trio.Semaphore(1)  # held by tasks that are not the ones to release it
        self.threads = trio.CapacityLimiter(4)
        self.vms: set[Holding] = set()
        self._postponed: list[Callable[[], object]] | None = None

    @asynccontextmanager
    async def held_back(self) -> AsyncIterator[None]:
        """No thread of the client that waits for an answer gets one inside. The caller has the client's turn."""
        self._postponed = []
        vms = list(self.vms)
        try:
            async with trio.open_nursery() as nursery:
                for vm in vms:
                    nursery.start_soon(vm.hold)
            yield
        finally:
            with trio.CancelScope(shield=True):
                for vm in vms:
                    await vm.release()
            postponed, self._postponed = self._postponed, None
            for answer in postponed:
                answer()

    @property
    def is_held_back(self) -> bool:
        return self._postponed is not None

    def answer(self, answer: Callable[[], object]) -> None:
        """Call `answer`, which lets a thread of the client go on, as soon as that may be."""
        if self._postponed is None:
            answer()
        else:
            self._postponed.append(answer)


class Clients:
    """All of them, by tgid, each as long as somebody uses it."""

    def __init__(self) -> None:
        self._clients: dict[int, Client] = {}

    def get(self, tgid: int) -> Client:
        """To be given back with `put`."""
        client = self._clients.get(tgid)
        if client is None:
            client = self._clients[tgid] = Client(tgid)
        client.users += 1
        return client

    def held_back_of(self, tid: int) -> Client | None:
        """The client that thread `tid` belongs to, if answers to it are held back."""
        if not any(client.is_held_back for client in self._clients.values()):
            return None
        with suppress(OSError):
            return self._clients.get(fds.tgid_of(tid))
        return None

    def put(self, client: Client) -> None:
        client.users -= 1
        if not client.users:
            del self._clients[client.tgid]


class Held:
    """A thread of a client, borrowed; the client's lock goes with it."""

    def __init__(self, client: Client, borrow: Borrow) -> None:
        self._client = client
        self.borrow = borrow

    @classmethod
    async def take(cls, client: Client, tid: int, answer: Callable[[], object], log: Log) -> Held:
        """Borrow `tid`, whose request `answer` ends with an error.

        OSError with attribute `answered`, which tells whether the request has been answered when this failed.
        """
        await client.turn.acquire()
        answered = False

        def end_request() -> None:
            nonlocal answered
            answered = True
            answer()

        def stop() -> Borrow:
            borrow = Borrow.seize(tid)
            try:
                borrow.stop_after(end_request)
            except BaseException:
                borrow.abandon()  # answered, it is on its way out of the ioctl with that error
                raise
            return borrow

        try:
            borrow = await trio.to_thread.run_sync(stop, limiter=client.threads)
        except BaseException as error:
            client.turn.release()
            if isinstance(error, OSError):
                if error.errno == errno.EBUSY and not answered:
                    log(f"process {client.tgid} is traced by {_tracer(tid)}: it can't be given file descriptors")
                error.answered = answered  # type: ignore[attr-defined]
            raise
        return cls(client, borrow)

    async def finish(self, result: int) -> None:
        """Let the thread go on with the result of its ioctl."""
        with trio.CancelScope(shield=True):
            try:
                with suppress(OSError):  # it is dead
                    await trio.to_thread.run_sync(self.borrow.finish, result, limiter=self._client.threads)
            finally:
                self._client.turn.release()


def _tracer(tid: int) -> str:
    with suppress(OSError, KeyError, ValueError):
        pid = int(fds.status_of(tid)["TracerPid"])
        return f"{pid} ({fds.status_of(pid)['Name']})"
    return os.strerror(errno.ESRCH)
