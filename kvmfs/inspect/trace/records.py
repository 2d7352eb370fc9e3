"""A ring as its reader sees it, and a spool that takes records in faster than they can be decoded.

A worker is not believed more than its own VM: lengths are bounded, and what makes no sense is skipped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import tempfile
from dataclasses import dataclass
from typing import IO, Final

from kvmfs.kvm.ring import MASK, NOBODY, SLOT, SLOTS, Record, Ring

_HEAD: Final = struct.Struct("<9Q")
_MOST: Final = 1 << 20  # bytes of one record
_SPOOLED: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Raw:
    """A record. Times are seconds since 1970; `cmd` and `arg` as in kvmfs.kvm.ring."""

    source: int
    kind: int
    start: float
    end: float
    tid: int
    vcpu: int | None
    result: int
    cmd: int
    arg: int
    data: bytes


class RingReader:
    """The only reader of a ring, from its head on; `source` says which ring that is."""

    def __init__(self, fd: int, source: int) -> None:
        """`fd` is closed. ValueError: no ring."""
        try:
            if os.fstat(fd).st_size != Ring.SIZE:
                raise ValueError("not a ring")
            self._map = mmap.mmap(fd, Ring.SIZE)
        finally:
            os.close(fd)
        self.source = source
        self._words = memoryview(self._map).cast("Q")
        self._khz = max(self._words[Ring.TSC_KHZ // 8], 1)
        self._tsc, self._clock = self._words[Ring.TSC // 8], self._words[Ring.CLOCK // 8]
        # A ring that is used again goes on where the last reader left; what was written since then is of no interest.
        self._position = self._words[Ring.TAIL // 8] = self._words[Ring.TAIL // 8] and self._words[Ring.HEAD // 8]
        self._words[Ring.READER // 8] = 1
        self.lost = 0
        """Slots of records that were overwritten before they were read."""

    def drain(self) -> list[bytes]:
        """All records that are there, raw: header and data."""
        found: list[bytes] = []
        words, view = self._words, self._map
        while True:
            index = self._position & MASK
            at = Ring.RECORDS + index * SLOT
            if words[at >> 3] != self._position + 1:
                behind = words[Ring.HEAD // 8] - self._position
                if behind <= SLOTS:
                    break
                self._skip()
                continue
            length = words[at + Record.LENGTH >> 3]
            size = Record.DATA + length
            if length > _MOST:
                self._position += 1
                self.lost += 1
                continue
            slots = -(-size // SLOT)
            if index + slots <= SLOTS:
                record = view[at : at + size]
            else:
                first = view[at : Ring.SIZE]
                record = first + view[Ring.RECORDS : Ring.RECORDS + size - len(first)]
            if words[at >> 3] == self._position + 1:  # and still
                found.append(record)
                self._position += slots
                words[Ring.TAIL // 8] = self._position
        return found

    def _skip(self) -> None:
        """The writers were faster: go on with what is half a ring old."""
        before = self._position
        self._position = self._words[Ring.HEAD // 8] - SLOTS // 2
        while self._words[Ring.RECORDS + (self._position & MASK) * SLOT >> 3] != self._position + 1:
            self._position += 1
            if self._position >= self._words[Ring.HEAD // 8]:
                break
        self.lost += self._position - before
        self._words[Ring.TAIL // 8] = self._position

    def parse(self, record: bytes) -> Raw:
        _, kind, _, start, end, who, result, cmd, arg = _HEAD.unpack_from(record)
        vcpu = who & NOBODY
        return Raw(
            self.source,
            kind,
            self._seconds(start),
            self._seconds(end),
            who >> 32,
            None if vcpu == NOBODY else vcpu,
            ctypes.c_int64(result).value,
            cmd,
            arg,
            record[Record.DATA :],
        )

    def _seconds(self, ticks: int) -> float:
        since: float = (ticks - self._tsc) / self._khz / 1000
        return since + float(self._clock) / 1e9

    def close(self) -> None:
        """Writers need not wait for us any more."""
        self._words[Ring.READER // 8] = 0
        self._words.release()
        self._map.close()


class Spool:
    """Records on their way, in a file without a name: order kept, memory not used."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="kvmfs-trace-")  # noqa: SIM115
        self._read = self._written = 0

    def put(self, source: int, records: list[bytes]) -> None:
        if not records:
            return
        self._file.seek(self._written)
        data = b"".join(_SPOOLED.pack(source, len(record)) + record for record in records)
        self._file.write(data)
        self._written += len(data)

    def take(self, most: int) -> list[tuple[int, bytes]]:
        """The oldest records with their sources."""
        found: list[tuple[int, bytes]] = []
        self._file.seek(self._read)
        while len(found) < most and self._read < self._written:
            source, length = _SPOOLED.unpack(self._file.read(_SPOOLED.size))
            found.append((source, self._file.read(length)))
            self._read += _SPOOLED.size + length
        return found

    @property
    def is_empty(self) -> bool:
        return self._read == self._written

    def close(self) -> None:
        self._file.close()
