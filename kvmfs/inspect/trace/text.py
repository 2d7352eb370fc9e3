"""Events as lines, as strace has them.

0.001234 4711-4 KVM_CREATE_VCPU(0x0) = 5 <412 µs>
0.001702 4711-4/vcpu0 KVM_RUN() = 0 <3.1 µs> KVM_EXIT_IO {direction=out, size=1, port=0x10, data=55} rip=0x1004
"""

from __future__ import annotations

from typing import Any, Final

from kvmfs.inspect.trace.decode import Event

_MOST_FIELDS: Final = 24
_MOST_ITEMS: Final = 8
_MOST_TEXT: Final = 64
_DECIMAL: Final = frozenset({"slot", "nent", "nmsrs", "nr", "ndata", "count"})


def line(event: Event, start: float, *, full: bool = False) -> str:
    """`start`: what times count from. `full`: nothing is left out."""
    where = event["vm"] if "vcpu" not in event else f"{event['vm']}/vcpu{event['vcpu']}"
    outcome = str(event["result"]) if "result" in event else f"-1 {event['errno']}"
    head = f"{event['t'] - start:10.6f} {where}"
    took = f"<{event['d']:.1f} µs>"
    if event["kind"] == "exit":
        details = f" {_value(event['details'], '', full)}" if "details" in event else ""
        return f"{head} KVM_RUN() = {outcome} {took} {event['name']}{details} rip={event['rip']:#x}"
    if event["kind"] == "injection":
        kind = "private" if event["private"] else "shared"
        return (
            f"{head} injected {event['name']} {took} gpa={event['gpa']:#x} {kind} {event['access']} "
            f"rip={event['rip']:#x} (rule {event['rule']}, match {event['ordinal']})"
        )
    arguments = [_value(event[key], "", full) for key in ("in", "arg") if key in event]
    if "out" in event:
        arguments.append(f"=> {_value(event['out'], '', full)}")
    return f"{head} {event['name']}({' '.join(arguments)}) = {outcome} {took}"


def _value(value: Any, name: str, full: bool) -> str:
    if isinstance(value, dict):
        shown = [(key, item) for key, item in value.items() if full or not _is_empty(item)]
        parts = [f"{key}={_value(item, key, full)}" for key, item in (shown if full else shown[:_MOST_FIELDS])]
        if len(parts) < len(shown):
            parts.append("…")
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        items = [_value(item, name, full) for item in (value if full else value[:_MOST_ITEMS])]
        if len(items) < len(value):
            items.append(f"… {len(value)} in all")
        return "[" + ", ".join(items) + "]"
    if isinstance(value, int):
        return str(value) if value < 10 or name in _DECIMAL else f"{value:#x}"
    text = str(value)
    return text if full or len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


def _is_empty(value: Any) -> bool:
    """Only zeros."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list):
        return all(map(_is_empty, value))
    if isinstance(value, str):
        return not value.strip("0")
    return bool(value == 0)
