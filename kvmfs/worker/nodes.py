"""The files of a VM's connection: what each stands for, and how many open files there are of it.

A file comes into being when the broker opens it to install it in the client, once: the client's duplicates and those it
inherits or passes on are the same open file. Nobody else can open one: reopening an anonymous inode through
/proc/PID/fd gives ENXIO, and so it does here.
"""

from __future__ import annotations

import stat
import threading
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from kvmfs.kvm.caller import Caller, Node
from kvmfs.wire.reply import Attributes
from kvmfs.worker.block import VCPU_NODE


@runtime_checkable
class Runnable(Protocol):
    """A vCPU: a Node on which KVM_RUN works, natively."""

    enter: int  # address of int64 enter(int64 context): KVM_RUN's result, -errno or block.SERVICE
    context: int
    request: int  # address of the word that makes enter() come back soon, and the bits to set in it
    stop: int
    caller: int  # address of the word that is told the calling thread's tid
    page: int  # address of the run page in our memory
    memfd: int  # the file it lies in, of the size that the client may map

    def service(self, caller: Caller) -> int | None:
        """enter() said SERVICE: do what it needs. None: enter() goes on; a number: the result of KVM_RUN."""


@dataclass(slots=True)
class Entry:
    """A node that is, or is about to be, open."""

    node: Node
    nodeid: int
    expected: int = 0  # opens that the broker has been asked for
    handles: int = 0  # open files
    installed: bool = False
    backing: int = 0
    seat: int | None = None  # a vCPU's index in the connection's seats

    @property
    def attributes(self) -> Attributes:
        mode = getattr(self.node, "mode", stat.S_IFREG | 0o600)
        return Attributes(self.nodeid, mode=mode, size=getattr(self.node, "size", 0))


class Nodes:
    """All entries of a connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_id: dict[int, Entry] = {}
        self._by_name: dict[bytes, Entry] = {}
        self._next = 2  # 1 is the root
        self._handles = 0
        self._begun = False

    def add(self, node: Node, seat: int | None = None) -> Entry:
        """An entry that is to be opened once."""
        with self._lock:
            if seat is None:
                nodeid, self._next = self._next, self._next + 1
            else:
                nodeid = VCPU_NODE + seat
            entry = Entry(node, nodeid, expected=1, seat=seat)
            self._by_id[nodeid] = self._by_name[node.name.encode()] = entry
            return entry

    def cancel(self, entry: Entry) -> bool:
        """No more opens of it. It goes with its last handle; True when the broker had not come as far as having one."""
        with self._lock:
            entry.expected = 0
            if not entry.handles:
                self._drop(entry)
            return not entry.handles

    def _drop(self, entry: Entry) -> None:
        self._by_id.pop(entry.nodeid, None)
        if self._by_name.get(name := entry.node.name.encode()) is entry:
            del self._by_name[name]

    def named(self, name: bytes) -> Entry | None:
        with self._lock:
            return self._by_name.get(name)

    def get(self, nodeid: int) -> Entry | None:
        with self._lock:
            return self._by_id.get(nodeid)

    def open(self, entry: Entry) -> bool:
        """Count an open; False when none is expected."""
        with self._lock:
            if not entry.expected:
                return False
            entry.expected -= 1
            entry.handles += 1
            self._handles += 1
            self._begun = True
            return True

    def release(self, entry: Entry) -> bool:
        """Count a release; True when it was the node's last handle."""
        with self._lock:
            entry.handles -= 1
            self._handles -= 1
            if entry.handles == 0:
                self._drop(entry)
            return entry.handles == 0

    @property
    def finished(self) -> bool:
        """Files have been open, and none is any more."""
        return self._begun and self._handles == 0
