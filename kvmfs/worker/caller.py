"""The client thread in whose request we are: its memory, its descriptors."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from kvmfs.client import memory
from kvmfs.kvm.caller import Backing, Kind, Node
from kvmfs.worker import channel

if TYPE_CHECKING:
    from kvmfs.worker.dispatch import Server


class FuseCaller:
    """kvmfs.kvm's Caller for one FUSE request.

    tid: the calling thread. tgid: its process, if that is the VM's client; 0 for any other process that has come by one
    of the VM's descriptors. held: the thread has been borrowed, so that its ioctl ends with the broker's `finish`.
    """

    def __init__(
        self, server: Server, tid: int, unique: int, arg: int = 0, data: bytes = b"", *, borrowable: bool = True
    ) -> None:
        self.tid = tid
        self.tgid = server.client if server.is_client(tid) else 0
        self.held = False
        self._server = server
        self._unique = unique
        self._borrowable = borrowable
        self._arg, self._data = arg, data

    def read(self, address: int, size: int) -> bytes:
        """Client memory. What the kernel copied in with the ioctl is not fetched again: KVM reads it once, too."""
        offset = address - self._arg
        if offset >= 0 and offset + size <= len(self._data):
            return self._data[offset : offset + size]
        return memory.read(self.tgid, address, size)

    def write(self, address: int, data: bytes) -> None:
        memory.write(self.tgid, address, data)

    def getfd(self, number: int) -> int:
        """A duplicate of the client's descriptor; OSError(EBADF)."""
        return self._getfd(number)[1][0]

    def eventfd(self, number: int) -> tuple[int, int]:
        """A duplicate of the client's eventfd, and what all descriptors of that eventfd have in common.

        OSError: EBADF; EINVAL when it is no eventfd.
        """
        answer, (fd,) = self._getfd(number)
        if "eventfd" not in answer:
            os.close(fd)
            raise OSError(errno.EINVAL, f"descriptor {number} is {answer['description']}")
        return fd, int(answer["eventfd"])

    def schedstat(self, *, own: bool) -> int:
        """The schedstat file of the calling thread, or of our own that serves it."""
        return self._call("schedstat", tid=threading.get_native_id() if own else self.tid, own=own)[1][0]

    def install(self, node: Node) -> int:
        """A new close-on-exec descriptor for `node` in the client: its number.

        When this fails the node is not, and will not be, released().
        """
        return self._server.install(self, node)

    def node_of(self, number: int) -> Node | None:
        """The node of this VM that one of its descriptors stands for."""
        answer, (fd,) = self._getfd(number)
        try:
            return self._server.node_behind(fd, answer.get("node", 0))
        finally:
            os.close(fd)

    def backing(self, address: int, length: int) -> list[Backing]:
        """What lies behind its memory; the descriptors are the caller's to close."""
        answer, fds = self._call("map_shared", tid=self.tid, address=address, length=length)
        return [
            Backing(start, size, Kind[kind], fds[index] if index >= 0 else -1, offset, writable)
            for start, size, kind, index, offset, writable in answer["pieces"]
        ]

    def adopt(self, address: int, length: int) -> int:
        """Turn the anonymous private memory there into a shared memfd, which is returned; the caller's to close."""
        return self._call("adopt", tid=self.tid, unique=self._unique, address=address, length=length)[1][0]

    def poison(self, address: int) -> None:
        """SIGBUS for the calling thread, as for poisoned memory at `address`; its ioctl has to end with EINTR.

        OSError, and then nothing happened: EBUSY when another debugger has the thread.
        """
        self._call("poison", tid=self.tid, unique=self._unique, address=address)

    def _getfd(self, number: int) -> tuple[channel.Message, list[int]]:
        if not 0 <= number < 1 << 31:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._call("getfd", tid=self.tid, fd=number)

    def request_install(self, name: str) -> int:
        return int(self._call("install", tid=self.tid, unique=self._unique, name=name)[0]["fd"])

    def _call(self, op: str, **arguments: Any) -> tuple[channel.Message, list[int]]:
        if not self._borrowable and op in ("install", "adopt"):
            raise OSError(errno.EBUSY, "a running vCPU's thread can't be borrowed")
        answer, fds = self._server.broker.call(op, **arguments)
        self.held |= bool(answer.get("held"))
        if number := answer.get("errno"):
            channel.close_all(fds)
            raise OSError(number, answer.get("what") or os.strerror(number))
        return answer, fds
