"""`kvmfs faults`: the fault log of a VM, as a table or as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from kvmfs.inspect import finder
from kvmfs.inspect.finder import Broker, Listed
from kvmfs.inspect.vm import Inspected

if TYPE_CHECKING:
    from rich.table import Table

_LOOK: Final = 0.05
"""Seconds between looks at a log that is followed."""
_COLUMNS: Final = (
    ("n", 7), ("s", 12), ("µs", 10), ("vCPU", 4), ("gva", 18), ("gpa", 14), ("access", 13), ("slot", 4),
    ("outcome", 28), ("rip", 18), ("rule", 0),
)  # fmt: skip


def show(name: str, as_json: bool, follow: bool) -> None:
    """Print the log; with `follow` until the VM ends. OSError: ENOENT, EEXIST. ValueError: of another version."""
    broker, vm = finder.find(name)
    with broker, Inspected(broker.inspection(vm.name)) as inspected:
        log = _Log(inspected)
        write = _write_json if as_json else _Lines(vm.created)
        while True:
            alive = follow and _is_there(broker, vm)
            for fault in log.news():
                write(fault)
            sys.stdout.flush()
            if not alive:
                break
            time.sleep(_LOOK)
        if log.lost:
            print(f"kvmfs: {log.lost} records were overwritten before they were read", file=sys.stderr)


def _is_there(broker: Broker, vm: Listed) -> bool:
    try:
        return any(other.worker == vm.worker for other in broker.vms())
    except ConnectionResetError:
        return False


class _Log:
    """What is new, again and again; `lost` counts what was overwritten meanwhile."""

    def __init__(self, inspected: Inspected) -> None:
        self._inspected = inspected
        self._last = 0
        self.lost = 0

    def news(self) -> Iterator[dict[str, Any]]:
        for fault in self._inspected.faults(self._last):
            self.lost += fault.number - self._last - 1
            self._last = fault.number
            yield asdict(fault)


def _write_json(fault: dict[str, Any]) -> None:
    print(json.dumps(fault, separators=(",", ":")))


class _Lines:
    """A table that can go on for ever: its columns have fixed widths."""

    def __init__(self, since: float) -> None:
        self._since = since
        print("  ".join(name.ljust(width) for name, width in _COLUMNS).rstrip())

    def __call__(self, fault: dict[str, Any]) -> None:
        cells = zip(fault_row(fault, self._since), _COLUMNS, strict=True)
        print("  ".join(cell.ljust(width) for cell, (_, width) in cells).rstrip())


def fault_row(fault: dict[str, Any], since: float) -> tuple[str, ...]:
    """The cells of _COLUMNS; `since`: what times count from."""

    def hexadecimal(key: str) -> str:
        return "" if fault[key] is None else f"{fault[key]:#x}"

    def text(key: str) -> str:
        return "" if fault[key] is None else str(fault[key])

    access = f"{'private' if fault['private'] else 'shared'} {fault['access']}"
    return (
        str(fault["number"]),
        f"{fault['time'] - since:.6f}",
        f"{fault['ns'] / 1000:.1f}",
        text("vcpu"),
        hexadecimal("gva"),
        "" if fault["ioctl"] else hexadecimal("gpa"),
        "" if fault["ioctl"] else access,
        text("slot"),
        fault["ioctl"] or fault["outcome"],
        "" if fault["ioctl"] else hexadecimal("rip"),
        "" if fault["rule"] is None else f"rule {fault['rule']}, match {fault['ordinal']}",
    )


def fault_table(title: str) -> Table:
    """For rows of fault_row()."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for name, _ in _COLUMNS:
        table.add_column(name)
    return table
