"""A trace under way: rings come with the VMs that they are of, and go with them."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from kvmfs.inspect.finder import Broker
from kvmfs.inspect.trace.decode import Event, event
from kvmfs.inspect.trace.records import RingReader, Spool
from kvmfs.worker import channel

_PAUSE: Final = 10  # ms between looks at rings that are empty
_BATCH: Final = 256


class Session:
    """What comes through a connection to a broker that traces for us."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._rings: dict[int, RingReader] = {}
        self._parsers: dict[int, RingReader] = {}
        self._names: dict[int, str] = {}
        self._spool = Spool()
        self._open = True
        self.lost = 0
        """Records that came faster than they were read."""

    @classmethod
    def attached(cls, broker: Broker, vm: str) -> Session:
        """Of one VM from now on. OSError: EBUSY, ENOENT."""
        session = cls(broker)
        broker.send("trace", vm=vm)
        while True:
            message, fds = broker.receive()
            if "id" in message:
                if number := int(message.get("errno", 0)):
                    session.close()
                    raise OSError(number, str(message.get("what")), vm)
                return session
            session._understand(message, fds)

    def events(self) -> Iterator[Event]:
        """As they come, nearly in order; the end is when the broker, or the last VM that is traced, is gone."""
        poll = select.poll()
        poll.register(self._broker, select.POLLIN)
        while True:
            idle = self._drain() == 0 and self._spool.is_empty
            while self._open and poll.poll(_PAUSE if idle else 0):
                self._hear()
                idle = False
            for source, record in self._spool.take(_BATCH):
                yield event(self._parsers[source].parse(record), self._names.get(source) or f"vm{source}")
            if not self._open and self._drain() == 0 and self._spool.is_empty:
                return

    def _hear(self) -> None:
        try:
            message, fds = self._broker.receive()
        except OSError:
            self._open = False
            return
        self._understand(message, fds)
        if "gone" in message and not self._rings:
            self._open = False

    def _understand(self, message: dict[str, Any], fds: list[int]) -> None:
        if "ring" in message and fds:
            source = int(message["ring"])
            self._names[source] = str(message["name"])
            with suppress(ValueError):
                self._rings[source] = self._parsers[source] = RingReader(fds.pop(), source)
        elif "named" in message:
            self._names[int(message["named"])] = str(message["name"])
        elif "gone" in message:
            self._drain()
            if ring := self._rings.pop(int(message["gone"]), None):
                ring.close()
        channel.close_all(fds)

    def _drain(self) -> int:
        count = 0
        for ring in self._rings.values():
            records = ring.drain()
            self._spool.put(ring.source, records)
            count += len(records)
            self.lost += ring.lost
            ring.lost = 0
        return count

    def close(self) -> None:
        for ring in self._rings.values():
            ring.close()
        self._broker.close()
        self._spool.close()
