"""A log of what happens to guest memory, for people and demonstrations: JSON, a line an event.

KVMFS_EVENT_LOG names a file that all VMs append to; without it nothing is written, and nothing is spent on it.

    {"t": seconds, "vm": "CLIENT-WORKER", "vcpu": id, "event": "memory_fault", "gpa": ..., "size": ..., "flags": ...}
    {"t": ..., "vm": ..., "vcpu": id, "event": "injected", "rule": ..., "ordinal": ..., "gpa": ...}
    {"t": ..., "vm": ..., "event": "injected", "rule": ..., "ordinal": ..., "ioctl": number}
    {"t": ..., "vm": ..., "vcpu": id, "event": "hypercall", "nr": ..., "gpa": ..., "pages": ..., "attributes": ...}
    {"t": ..., "vm": ..., "event": "set_user_memory_region", "slot": ..., "gpa": ..., "size": ..., "flags": ...}
    {"t": ..., "vm": ..., "event": "set_memory_attributes", "gpa": ..., "size": ..., "attributes": ...}
    {"t": ..., "vm": ..., "event": "punch_hole" | "fallocate", "offset": ..., "length": ...}
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.run import KVM_MEMORY_EXIT_FLAG_PRIVATE
from kvmfs.kvm import faults
from kvmfs.kvm.faults import Record, Words

VARIABLE = "KVMFS_EVENT_LOG"


class EventLog:
    """Lines are written whole (one write to a file opened for appending), so VMs can share it."""

    def __init__(self, vm: str, path: str | None = None) -> None:
        self._vm = vm
        path = os.environ.get(VARIABLE) if path is None else path
        self._fd = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644) if path else -1

    @property
    def enabled(self) -> bool:
        return self._fd >= 0

    def write(self, event: str, *, vcpu: int | None = None, **details: int) -> None:
        if not self.enabled:
            return
        entry: dict[str, object] = {"t": round(time.time(), 6), "vm": self._vm}
        if vcpu is not None:
            entry["vcpu"] = vcpu
        os.write(self._fd, (json.dumps({**entry, "event": event, **details}) + "\n").encode())


class FaultEvents:
    """What of a VM's fault log people look for: memory faults, and what rules did."""

    def __init__(self, log: EventLog, words: Words) -> None:
        self._log, self._words = log, words
        self._lock = threading.Lock()
        self._after = 0

    def write(self) -> None:
        """What has come since the last time."""
        if not self._log.enabled:
            return
        with self._lock:
            for record in faults.read(self._words, self._after):
                self._after = record.number
                if record.rule is not None:
                    self._injected(record)
                if record.is_memory_fault:
                    flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if record.private else 0
                    gpa = record.gpa & -PAGE_SIZE
                    self._log.write("memory_fault", vcpu=record.vcpu, gpa=gpa, size=PAGE_SIZE, flags=flags)

    def _injected(self, record: Record) -> None:
        assert record.rule is not None
        assert record.ordinal is not None
        about = {"ioctl": record.detail} if record.outcome == "ioctl" else {"gpa": record.gpa}
        self._log.write("injected", vcpu=record.vcpu, rule=record.rule, ordinal=record.ordinal, **about)
