"""Notifications become FUSE requests to the broker and to workers, replies become the results of system calls.

This is a transport as the broker sees one (kvmfs.broker.carrier), and the kernel as those see it who serve a
connection. One thread receives notifications and never waits for anybody; each link has one that passes replies on.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from kvmfs.client import ptrace
from kvmfs.client.inject import Injection
from kvmfs.notify import filter as rules
from kvmfs.notify.handles import Handle, Handles
from kvmfs.notify.link import Answered, Link, Request, reply_struct
from kvmfs.notify.listener import Listener, Notification
from kvmfs.notify.opens import Opens
from kvmfs.notify.signals import Signals
from kvmfs.wire import fuse_h
from kvmfs.wire.connection import Connection
from kvmfs.wire.fuse_h import Opcode, OpenFlag

if TYPE_CHECKING:
    from kvmfs.broker.carrier import Files, Take

Log = Callable[[str], None]

_IOCTL: Final = struct.Struct("<QIIQII")  # fuse_ioctl_in


class Carrier:
    """Owner of all that a command's notifications need. `device`: what the broker serves."""

    reads = False  # of all that a command reads, nothing tells us what is ours

    def __init__(self, control: socket.socket, opens: Opens, log: Log) -> None:
        """:param control: where listeners come from, each with a byte."""
        ptrace.harmless_filters = 1
        self.handles = Handles()
        self.log = log
        self._opens = opens
        self._root = Link("device", negotiated=True)
        self._links: set[Link] = {self._root}
        self._files: set[VmFiles] = set()
        self.device: Connection = self._root.connection
        self.signals = Signals(self._waiting, self._interrupt)
        threading.Thread(target=self._listen, args=(control,), name="listeners", daemon=True).start()

    # The broker's side -----------------------------------------------------------------------------------------------

    def shares_pages(self) -> bool:
        return True

    def files(self, client: int) -> Files:
        link = Link("vm")
        self._links.add(link)
        files = VmFiles(self, link, client)
        self._files.add(files)
        return files

    def dropped(self, files: VmFiles, link: Link) -> None:
        self._links.discard(link)
        self._files.discard(files)
        if not any(other.client == files.client for other in self._files):
            self.signals.forget(files.client)

    def request_of(self, unique: int) -> Request | None:
        for link in list(self._links):
            if request := link.find(unique):
                return request
        return None

    # Notifications ---------------------------------------------------------------------------------------------------

    def _listen(self, control: socket.socket) -> None:
        """Take the listeners of commands that come."""
        with control:
            while True:
                said, fds, _, _ = socket.recv_fds(control, 1, 1)
                if not said:
                    return
                threading.Thread(target=self._serve, args=(Listener(*fds),), name="notifications", daemon=True).start()

    def _serve(self, listener: Listener) -> None:
        with suppress(EOFError):
            while True:
                self._receive(listener.receive())

    def _receive(self, notification: Notification) -> None:
        try:
            if notification.call == rules.IOCTL:
                self._ioctl(notification)
            elif notification.call == rules.FALLOCATE:
                self._fallocate(notification)
            else:
                self._open(notification)
        except OSError as error:
            notification.answer(-(error.errno or errno.EIO))
        except Exception:
            self.log(f"{notification}: {traceback.format_exc()}")
            notification.answer(-errno.EIO)

    def _handle(self, notification: Notification) -> Handle | None:
        """What the call's first argument stands for. None: there is nothing more to do."""
        handle = self.handles.of(notification.tid, notification.args[0] & 0xFFFF_FFFF)
        if handle is None:
            notification.go_on()
            return None
        return handle if notification.is_valid else None

    def _ioctl(self, notification: Notification) -> None:
        if not (handle := self._handle(notification)):
            return
        _, cmd, arg, *_ = notification.args
        payload = _IOCTL.pack(handle.fh, 0, cmd & 0xFFFF_FFFF, arg, 0, 0)

        def done(error: int, data: bytes) -> None:
            # fuse_ioctl_out begins with the result
            notification.answer(-error if error else int.from_bytes(data[:4], "little", signed=True))

        self._request(notification, handle.link, Opcode.IOCTL, handle.node, payload, done)
        self.signals.waits()

    def _fallocate(self, notification: Notification) -> None:
        if not (handle := self._handle(notification)):
            return
        _, mode, offset, length, *_ = notification.args
        if offset >> 63 or length >> 63 or not length:  # vfs_fallocate
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        payload = bytes(fuse_h.FallocateIn(handle.fh, offset, length, mode & 0xFFFF_FFFF))

        def done(error: int, data: bytes) -> None:
            notification.answer(-error)

        self._request(notification, handle.link, Opcode.FALLOCATE, handle.node, payload, done)

    def _request(
        self, notification: Notification, link: Link, opcode: int, node: int, payload: bytes, done: Answered
    ) -> None:
        owner = (0, 0)
        if link is self._root:  # who makes a VM is asked only there
            status = os.stat(f"/proc/{notification.tid}")  # noqa: PTH116
            owner = status.st_uid, status.st_gid
        link.request(opcode, node, payload, done, owner=owner, notification=notification)

    def _open(self, notification: Notification) -> None:
        path = self._opens.path(notification)
        if path is None or not notification.is_valid:
            notification.go_on()
            return
        flags = self._opens.flags(notification)
        if path in self._opens.contents:
            fd = _reading(self._opens.contents[path])
            try:
                notification.add(fd, cloexec=bool(flags & os.O_CLOEXEC), answer=True)
            finally:
                os.close(fd)
            return
        if flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if flags & os.O_DIRECTORY:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

        def opened(error: int, data: bytes) -> None:
            try:
                if error:
                    raise OSError(error, os.strerror(error))
                out = reply_struct(fuse_h.OpenOut, data)
                _, fd = self.handles.empty("kvm", 0, self._root, fuse_h.ROOT_ID, out.fh, _release)
                try:
                    notification.add(fd, cloexec=bool(flags & os.O_CLOEXEC), answer=True)
                finally:
                    os.close(fd)
            except OSError as failure:
                notification.answer(-(failure.errno or errno.EIO))

        payload = bytes(fuse_h.OpenIn(flags & os.O_ACCMODE, 0))
        self._request(notification, self._root, Opcode.OPEN, fuse_h.ROOT_ID, payload, opened)

    # Signals ---------------------------------------------------------------------------------------------------------

    def _waiting(self) -> Iterator[Request]:
        for link in list(self._links):
            yield from link.waiting()

    def _interrupt(self, request: Request) -> None:
        for link in list(self._links):
            if link.find(request.unique) is request:
                link.interrupt(request)


class VmFiles:
    """The files of one VM."""

    def __init__(self, carrier: Carrier, link: Link, client: int) -> None:
        self.connection = link.connection
        self.client = client
        self._carrier, self._link = carrier, link
        self._backing: dict[int, int] = {}

    def open(self, name: str) -> int:
        entry = reply_struct(fuse_h.EntryOut, self._link.call(Opcode.LOOKUP, fuse_h.ROOT_ID, name.encode() + b"\0"))
        node, attributes = entry.nodeid, entry.attr
        if attributes.mode & (stat.S_IRUSR | stat.S_IWUSR) == stat.S_IRUSR:
            raise OSError(errno.ENOTTY, f"{name} is there to be read")
        out = reply_struct(fuse_h.OpenOut, self._link.call(Opcode.OPEN, node, bytes(fuse_h.OpenIn(os.O_RDWR, 0))))
        make = self._carrier.handles
        try:
            if out.open_flags & OpenFlag.PASSTHROUGH:
                return make.memory(self._backing[out.backing_id], self._link, node, out.fh, _release)[1]
            return make.empty(f"kvm-{name}", attributes.size, self._link, node, out.fh, _release)[1]
        except BaseException:
            _tell_released(self._link, node, out.fh)
            raise

    async def give(self, fd: int, unique: int, take: Take) -> int:
        """While the request waits; with a client's first vCPU its thread is borrowed for once."""
        request = self._carrier.request_of(unique)
        if request is None or request.notification is None:
            raise OSError(errno.EINTR, "the caller is gone")
        number = request.notification.add(fd, cloexec=True)
        handle = self._carrier.handles.behind(fd)
        if handle and handle.runs and not self._carrier.signals.watches(self.client):
            await self._watch(take)
        return number

    async def _watch(self, take: Take) -> None:
        """See to it that we learn of the client's signals."""

        def work(injection: Injection) -> None:
            self._carrier.signals.watch(injection, self.client)

        try:
            held = await take()
            await trio.to_thread.run_sync(held.borrow.run, work)
        except OSError as error:
            if getattr(error, "answered", False):
                raise
            self._carrier.log(f"signals of process {self.client} are looked for every millisecond: {error}")

    def device(self, fd: int) -> int:
        return 0

    def node_behind(self, fd: int) -> int:
        handle = self._carrier.handles.behind(fd)
        return handle.node if handle and handle.link is self._link else 0

    def backing_open(self, memfd: int) -> int:
        number = max(self._backing, default=0) + 1
        self._backing[number] = os.dup(memfd)
        return number

    def backing_close(self, number: int) -> None:
        os.close(self._backing.pop(number))

    def settle(self) -> None:
        self._link.settle()

    async def abandon(self) -> None:
        """From now on the link answers EIO to everybody."""
        self._link.end()

    def close(self) -> None:
        self._carrier.dropped(self, self._link)
        for number in list(self._backing):
            self.backing_close(number)
        self._link.close()


def _release(handle: Handle) -> None:
    _tell_released(handle.link, handle.node, handle.fh)


def _tell_released(link: Link, node: int, fh: int) -> None:
    link.request(Opcode.RELEASE, node, bytes(fuse_h.ReleaseIn(fh, 0, 0, 0)), lambda *_: None)


def _reading(content: bytes) -> int:
    """A file that can be read only, at its beginning."""
    memfd = os.memfd_create("parameters", os.MFD_CLOEXEC)
    try:
        os.write(memfd, content)
        return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memfd)
