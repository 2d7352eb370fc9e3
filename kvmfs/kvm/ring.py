"""The ring through which a VM tells what happens: binary records in a memfd, written by compiled code and by Python.

Any number of threads write; each takes as many slots as its record needs by adding to HEAD, and writes the record's
first word last. One reader, in another process, follows and says in TAIL how far it is. While it says that it is there,
writers that have lapped it wait, but not for long: a VM is never held up by a reader that has hung. Nothing that the
reader can write decides where a writer writes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Final

from kvmfs.jit.layout import Layout
from kvmfs.kvm.block import Block
from kvmfs.kvm.mapping import Mapping

SLOT: Final = 256
SLOTS: Final = 1 << 15
MASK: Final = SLOTS - 1
PATIENCE_KHZ: Final = 1000
"""A writer waits this many ms for the reader."""

EXIT: Final = 1
IOCTL: Final = 2
FALLOCATE: Final = 3
INJECTION: Final = 4
"""KIND of a record."""


class Ring:
    """The page before the records."""

    _l = Layout()
    TSC_KHZ = _l.u64()
    TSC = _l.u64()  # when the counter showed this,
    CLOCK = _l.u64()  # the real time was this, in ns
    HEAD = _l.bytes(8, align=64)  # slots that were ever taken
    LOST = _l.u64()  # records that overwrote others because the reader did not come along
    TAIL = _l.bytes(8, align=64)  # slots that were ever read
    READER = _l.u64()  # 1: somebody reads
    RECORDS = 4096
    SIZE = 4096 + SLOTS * SLOT


class Record:
    """The first slot of a record; more follow as the data needs."""

    _l = Layout()
    COMMIT = _l.u64()  # number of the slot + 1
    KIND = _l.u64()
    LENGTH = _l.u64()  # bytes of data
    START = _l.u64()  # host TSC
    END = _l.u64()
    WHO = _l.u64()  # tid << 32 | vCPU id; 0xFFFFFFFF: the VM
    RESULT = _l.u64()  # signed
    CMD = _l.u64()  # exit reason; ioctl number; mode of fallocate; outcome (kvmfs.kvm.inspection)
    ARG = _l.u64()  # of an ioctl; gpa of an injection
    DATA = _l.size  # EXIT: below; IOCTL: packets (tracer.py); INJECTION: rule, ordinal, linear address, access, RIP

    # Data of an exit
    RIP = DATA
    INSTRUCTIONS = DATA + 8  # that the vCPU has executed in its life
    DETAILS = DATA + 16  # struct kvm_run from the exit's union on
    DETAILS_SIZE = 96
    PIO = DETAILS + DETAILS_SIZE  # data of port output
    PIO_SIZE = SLOT - PIO


NOBODY: Final = 0xFFFF_FFFF


def create(khz: int, tsc: int, clock: int) -> int:
    """A ring nobody writes to yet: its memfd."""
    fd = os.memfd_create("kvmfs-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, Ring.SIZE)
    with mmap.mmap(fd, 4096) as header:
        words = memoryview(header).cast("Q")
        words[Ring.TSC_KHZ // 8], words[Ring.TSC // 8], words[Ring.CLOCK // 8] = khz, tsc, clock
        words.release()
    return fd


class Writer:
    """A mapping of a ring, and Python's way to write to it.

    `reserve(ring, slots)` and `commit(ring, slot)` are the compiled functions, or for a ring with one writer its own.
    """

    def __init__(
        self,
        fd: int,
        reserve: Callable[[int, int], int] | None = None,
        commit: Callable[[int, int], int] | None = None,
    ) -> None:
        self._map = Mapping(fd, 0, Ring.SIZE)
        self.block = Block(Ring.SIZE, self._map)
        self._reserve, self._commit = reserve or self._take, commit or self._publish

    @property
    def address(self) -> int:
        return self.block.address

    def write(
        self, kind: int, *, start: int, end: int, tid: int, vcpu: int, result: int, cmd: int, arg: int, data: bytes
    ) -> None:
        slots = -(-(Record.DATA + len(data)) // SLOT)
        slot = self._reserve(self.address, slots)
        at = Ring.RECORDS + (slot & MASK) * SLOT
        block = self.block
        for offset, word in (
            (Record.KIND, kind),
            (Record.LENGTH, len(data)),
            (Record.START, start),
            (Record.END, end),
            (Record.WHO, tid << 32 | vcpu & NOBODY),
            (Record.RESULT, result),
            (Record.CMD, cmd),
            (Record.ARG, arg),
        ):
            block[at + offset] = word
        first = min(len(data), Ring.SIZE - at - Record.DATA)
        block.write(at + Record.DATA, data[:first])
        if first < len(data):
            block.write(Ring.RECORDS, data[first:])
        self._commit(self.address, slot)

    def _take(self, ring: int, slots: int) -> int:
        slot = self.block[Ring.HEAD]
        self.block[Ring.HEAD] = slot + slots
        return slot

    def _publish(self, ring: int, slot: int) -> int:
        ctypes.c_uint64.from_address(ring + Ring.RECORDS + (slot & MASK) * SLOT).value = slot + 1
        return 0

    def close(self) -> None:
        """Nobody may use the address any more."""
        self.block.close()
        self._map.close()
