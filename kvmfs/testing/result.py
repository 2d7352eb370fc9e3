"""What a VMM did under test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmfs.inspect.trace import golden
from kvmfs.inspect.trace.decode import Event


@dataclass(frozen=True)
class Result:
    """`status`: as a shell has it, 128 + n for signal n. `trace`: all events (kvmfs.inspect.trace.decode), in order."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str
    seconds: float
    trace: list[Event] = field(default_factory=list, repr=False)

    @property
    def exits(self) -> list[Event]:
        """Returns of KVM_RUN."""
        return [event for event in self.trace if event["kind"] == "exit"]

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The details of each KVM_EXIT_MEMORY_FAULT: gpa, size, flags."""
        return [event["details"] for event in self.exits if event["name"] == "KVM_EXIT_MEMORY_FAULT"]

    @property
    def injections(self) -> list[Event]:
        """What rules about memory accesses did (kvmfs_inject): name, rule, ordinal, vcpu, gva, gpa, access, private."""
        return [event for event in self.trace if event["kind"] == "injection"]

    def ioctls(self, name: str | None = None) -> list[Event]:
        """Those with this name, such as "KVM_SET_MEMORY_ATTRIBUTES"; KVM_RUN is in `exits`."""
        return [event for event in self.trace if event["kind"] == "ioctl" and name in (None, event["name"])]

    def save(self, path: Path, *, exits_only: bool = True) -> None:
        """What is the same in every run, for difference() with later ones; an event a line."""
        names = {"kvm": "kvm"}
        lines = []
        for event in self.trace:
            vm = names.setdefault(event["vm"], f"vm{len(names)}")
            if event["kind"] == "exit" or not exits_only:
                where = {"vm": vm, **{key: event[key] for key in ("vcpu",) if key in event}}
                lines.append(json.dumps({**where, **golden.normal(event)}, separators=(",", ":")) + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))

    def difference(self, path: Path, *, exits_only: bool = True) -> golden.Difference | None:
        """From the trace in a file. OSError, ValueError."""
        with path.open(encoding="utf-8") as lines:
            return golden.compare(golden.load(lines), self.trace, exits_only=exits_only)

    def __str__(self) -> str:
        output = "".join(f"\n{text.rstrip()}" for text in (self.stdout, self.stderr) if text)
        return f"$ {' '.join(self.argv)}{output}\n(exit status {self.status} after {self.seconds:.1f} s)"
