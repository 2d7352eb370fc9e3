"""All VMs that we may see, kept up to date for who looks again and again: the tree.

Brokers are asked for their lists when a look is older than FRESH seconds; what has been mapped stays mapped until its
VM is gone, so reading a counter costs no system call.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any, Final

from kvmfs.inspect import finder
from kvmfs.inspect.finder import Broker, Listed
from kvmfs.inspect.vm import Inspected

FRESH: Final = 0.1


class Watched:
    """A VM with its mapped file, and the way to ask its worker."""

    def __init__(self, address: str, listed: Listed, seen: Inspected) -> None:
        self._address, self.listed, self.seen = address, listed, seen

    @property
    def name(self) -> str:
        return self.listed.name

    def report(self, what: str) -> Any:
        """See finder.Broker.report. OSError."""
        with Broker(self._address) as broker:
            return broker.report(self.name, what)


class Watch:
    """Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = 0.0
        self._vms: dict[tuple[str, str, int], Watched] = {}  # by broker, name and worker

    def vms(self) -> dict[str, Watched]:
        """By name."""
        with self._lock:
            if time.monotonic() - self._looked > FRESH:
                self._look()
                self._looked = time.monotonic()
            return {vm.name: vm for vm in self._vms.values()}

    def _look(self) -> None:
        found: dict[tuple[str, str, int], Watched] = {}
        for address in finder.addresses():
            with suppress(OSError, KeyError, TypeError), Broker(address) as broker:
                for listed in broker.vms():
                    key = (address, listed.name, listed.worker)
                    if known := self._vms.get(key):
                        found[key] = known
                        continue
                    with suppress(OSError, ValueError):
                        found[key] = Watched(address, listed, Inspected(broker.inspection(listed.name)))
        # Not closed: a reader may be in the middle of one. The mapping goes with its last user.
        self._vms = found
