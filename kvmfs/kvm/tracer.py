"""A VM's ioctls as records of a ring: what exits are for compiled code, all else is here.

The data of a record is what passed between the client's memory and us: packets {u64 address, u32 length, u32 written},
each followed by its bytes, padded to 8. What is too long is cut, and says so by its length.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kvmfs.kvm import ring
from kvmfs.kvm.caller import Backing, Caller, Node
from kvmfs.kvm.ring import NOBODY, Writer

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

PACKET: Final = struct.Struct("<QII")
MOST: Final = 4096
"""Bytes that are kept of one packet,"""
MOST_PACKETS: Final = 16
"""and packets of one record."""


class TracingCaller:
    """A Caller whose reads and writes are kept."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.data = bytearray()
        self._packets = 0

    def _keep(self, address: int, data: bytes, written: int) -> None:
        if self._packets < MOST_PACKETS:
            self._packets += 1
            kept = data[:MOST]
            self.data += PACKET.pack(address, len(data), written) + kept + bytes(-len(kept) % 8)

    def read(self, address: int, size: int) -> bytes:
        data = self._caller.read(address, size)
        self._keep(address, data, 0)
        return data

    def write(self, address: int, data: bytes) -> None:
        self._caller.write(address, data)
        self._keep(address, data, 1)

    @property
    def tid(self) -> int:
        return self._caller.tid

    @property
    def tgid(self) -> int:
        return self._caller.tgid

    def getfd(self, number: int) -> int:
        return self._caller.getfd(number)

    def schedstat(self, *, own: bool) -> int:
        return self._caller.schedstat(own=own)

    def node_of(self, number: int) -> Node | None:
        return self._caller.node_of(number)

    def install(self, node: Node) -> int:
        return self._caller.install(node)

    def backing(self, address: int, length: int) -> list[Backing]:
        return self._caller.backing(address, length)

    def adopt(self, address: int, length: int) -> int:
        return self._caller.adopt(address, length)

    def __getattr__(self, name: str) -> Any:  # what only some callers have
        return getattr(self._caller, name)


class Tracer:
    """Writes what is not an exit. `clock()` is in ticks of the ring's TSC_KHZ."""

    def __init__(self, writer: Writer, clock: Callable[[], int]) -> None:
        self._writer, self._clock = writer, clock

    def ioctl(self, node: Node, caller: Caller, cmd: int, arg: int, work: Callable[[Caller], int]) -> int:
        """Do `work` as the ioctl. OSError as it comes."""
        seen = TracingCaller(caller)
        return self._record(ring.IOCTL, node, seen, cmd, arg, lambda: work(seen))

    def fallocate(
        self, node: Node, caller: Caller, mode: int, offset: int, length: int, work: Callable[[], None]
    ) -> None:
        seen = TracingCaller(caller)
        seen.data += struct.pack("<QQ", offset, length)

        def do() -> int:
            work()
            return 0

        self._record(ring.FALLOCATE, node, seen, mode, 0, do)

    def done(self, tid: int, cmd: int, arg: int, start: int, result: int) -> None:
        """An ioctl without data that is over."""
        self._writer.write(
            ring.IOCTL, start=start, end=self._clock(), tid=tid, vcpu=NOBODY, result=result, cmd=cmd, arg=arg, data=b""
        )

    def _record(self, kind: int, node: Node, caller: TracingCaller, cmd: int, arg: int, work: Callable[[], int]) -> int:
        start = self._clock()
        result = -5
        try:
            result = work()
        except OSError as error:
            result = -(error.errno or 5)
            raise
        finally:
            self._writer.write(
                kind,
                start=start,
                end=self._clock(),
                tid=caller.tid,
                vcpu=_vcpu_id(node),
                result=result,
                cmd=cmd,
                arg=arg,
                data=bytes(caller.data),
            )
        return result


def _vcpu_id(node: Any) -> int:
    vcpu: Vcpu = node
    return vcpu.id if getattr(node, "context", None) is not None else NOBODY


class VmTrace:
    """A VM's ring, once it has one: never unmapped while the VM lives, as a vCPU may be writing to it."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self._inode: tuple[int, int] | None = None
        self._writer: Writer | None = None
        self.address = 0
        """For compiled code; 0: nobody traces."""

    def begin(self, fd: int) -> Tracer:
        status = os.fstat(fd)
        if self._writer is None or self._inode != (status.st_dev, status.st_ino):
            self._writer = Writer(fd, self._native.ring_reserve, self._native.ring_commit)
            self._inode = (status.st_dev, status.st_ino)
        self.address = self._writer.address
        return Tracer(self._writer, self._native.rdtsc)

    def end(self) -> None:
        self.address = 0
