"""A log of what happens to guest memory, for people and demonstrations: JSON, a line an event.

KVMFS_EVENT_LOG names a file that all VMs append to; without it nothing is written, and nothing is spent on it.

    {"t": seconds, "vm": "CLIENT-WORKER", "vcpu": id, "event": "memory_fault", "gpa": ..., "size": ..., "flags": ...}
    {"t": ..., "vm": ..., "vcpu": id, "event": "hypercall", "nr": ..., "gpa": ..., "pages": ..., "attributes": ...}
    {"t": ..., "vm": ..., "event": "set_user_memory_region", "slot": ..., "gpa": ..., "size": ..., "flags": ...}
    {"t": ..., "vm": ..., "event": "set_memory_attributes", "gpa": ..., "size": ..., "attributes": ...}
    {"t": ..., "vm": ..., "event": "punch_hole" | "fallocate", "offset": ..., "length": ...}
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

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
