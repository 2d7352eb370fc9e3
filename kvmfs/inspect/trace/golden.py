"""Traces compared: golden exits.

What two runs of one VMM have in common is kept: for each VM and each of its vCPUs the exits and ioctls in their order.
Left out is what differs from run to run: times, processes, host addresses, descriptors, and KVM_RUN that a signal
ended. Interleaving between vCPUs does not count.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Result
from kvmfs.inspect.trace.decode import Event

Stream = tuple[int, int | None]
"""The VM, numbered as they appear (0: /dev/kvm), and a vCPU's id; None: the VM itself."""


@dataclass(frozen=True)
class Difference:
    """The first place where two streams are not the same; None: one has ended."""

    stream: Stream
    index: int
    expected: Event | None
    found: Event | None

    def __str__(self) -> str:
        vm, vcpu = self.stream
        who = "/dev/kvm" if vm == 0 else f"VM {vm}" if vcpu is None else f"VM {vm}, vCPU {vcpu}"
        lines = [f"{who}, event {self.index + 1}:"]
        lines.append(f"  expected {_brief(self.expected)}")
        lines.append(f"  found    {_brief(self.found)}")
        for key, (old, new) in _changed(self.expected, self.found).items():
            lines.append(f"  {key}: {_number(old)} became {_number(new)}")
        return "\n".join(lines)


_KEPT: Final = ("kind", "name", "arg", "in", "out", "details", "rip", "errno")


def normal(event: Event) -> Event:
    """What is the same in every run."""
    kept: Event = {key: event[key] for key in _KEPT if key in event}
    row = ioctls.BY_NAME.get(event["name"])
    if row:
        for side in ("in", "out"):
            if side in kept:
                kept[side] = {
                    key: value for key, value in kept[side].items() if key not in (*row.addresses, *row.fds, "fd")
                }
        if row.result is not Result.FD and "result" in event:
            kept["result"] = event["result"]
    elif "result" in event:
        kept["result"] = event["result"]
    return kept


def streams(events: Iterable[Event], *, exits_only: bool = True) -> dict[Stream, list[Event]]:
    """What is compared. `exits_only`: no ioctls."""
    numbers = {"kvm": 0}
    found: dict[Stream, list[Event]] = {}
    for event in events:
        vm = numbers.setdefault(event["vm"], len(numbers))
        if exits_only and event["kind"] != "exit":
            continue
        if event["kind"] == "exit" and event.get("errno") == "EINTR":
            continue
        found.setdefault((vm, event.get("vcpu")), []).append(normal(event))
    return found


def compare(expected: Iterable[Event], found: Iterable[Event], *, exits_only: bool = True) -> Difference | None:
    """The first difference of the first stream that has one."""
    before, after = streams(expected, exits_only=exits_only), streams(found, exits_only=exits_only)
    for stream in sorted({*before, *after}, key=lambda stream: (stream[0], -1 if stream[1] is None else stream[1])):
        pairs = zip_longest(before.get(stream, []), after.get(stream, []))
        for index, (old, new) in enumerate(pairs):
            if old != new:
                return Difference(stream, index, old, new)
    return None


def load(lines: Iterable[str]) -> list[Event]:
    """Events of a file that `kvmfs trace --json` wrote. ValueError: it is none."""
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        event = json.loads(line)
        if not isinstance(event, dict) or not {"kind", "name", "vm"} <= event.keys():
            raise ValueError(f"line {number} is no event of a trace")
        events.append(event)
    return events


def _brief(event: Event | None) -> str:
    if event is None:
        return "nothing: the trace ends"
    fields = {**event.get("in", {}), **event.get("details", {})}
    text = " ".join(f"{key}={_number(value)}" for key, value in fields.items() if not isinstance(value, dict | list))
    outcome = event.get("errno", event.get("result", ""))
    return f"{event['name']} {text[:120]} = {outcome}".strip()


def _number(value: Any) -> str:
    return f"{value:#x}" if isinstance(value, int) and value > 9 else str(value)


def _changed(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if old is None or new is None or old == new:
        return {}
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                found |= _changed(old.get(key, ""), new.get(key, ""), f"{path}.{key}".lstrip("."))
        return found
    return {path: (old, new)}
