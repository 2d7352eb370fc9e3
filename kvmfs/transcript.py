"""A readable transcript of private/shared conversions, from the log that `KVMFS_EVENT_LOG=FILE` makes workers write.

    python -m kvmfs.transcript FILE

The log is one JSON object a line: exits that ask the VMM to do something about memory (memory_fault, hypercall), and
what the VMM then did (set_memory_attributes, set_user_memory_region, fallocate, punch_hole).  Exits and what answers
them are paired here: by vCPU, since the thread that got the exit deals with it before it runs the vCPU again, and by
address, since other vCPUs do the same meanwhile.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvmfs.abi import memory, para
from kvmfs.abi.run import KVM_MEMORY_EXIT_FLAG_PRIVATE

_PAGE = 4096


@dataclass
class Row:
    """An exit with what the VMM did about it; or what it did without being asked, `exit` then being empty."""

    time: float  # seconds
    vcpu: int | None
    exit: str
    gpa: int
    size: int  # bytes
    detail: str  # flags of a fault, arguments of a hypercall
    answers: list[str] = field(default_factory=list)
    retried: bool = False  # the vCPU went on

    def overlaps(self, gpa: int, size: int) -> bool:
        return gpa < self.gpa + self.size and self.gpa < gpa + max(size, 1)


@dataclass
class Story:
    """All that one VM has to tell."""

    vm: str
    rows: list[Row] = field(default_factory=list)
    faults: int = 0
    hypercalls: int = 0

    def tell(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "memory_fault", "vcpu": vcpu, "gpa": gpa, "size": size, "flags": flags}:
                self._close(vcpu)
                self.faults += 1
                access = "private access" if flags & KVM_MEMORY_EXIT_FLAG_PRIVATE else "shared access"
                self.rows.append(Row(event["t"], vcpu, "memory fault", gpa, size, access))
            case {"event": "hypercall", "vcpu": vcpu, "nr": nr, "gpa": gpa, "pages": pages, "attributes": attributes}:
                self._close(vcpu)
                self.hypercalls += 1
                name = "MAP_GPA_RANGE" if nr == para.KVM_HC_MAP_GPA_RANGE else f"hypercall {nr}"
                self.rows.append(Row(event["t"], vcpu, name, gpa, pages * _PAGE, f"attributes {attributes:#x}"))
            case {"event": "run", "vcpu": vcpu}:
                self._close(vcpu)
            case {"event": "set_memory_attributes", "gpa": gpa, "size": size, "attributes": attributes}:
                to = "private" if attributes & memory.KVM_MEMORY_ATTRIBUTE_PRIVATE else "shared"
                self._answer(event["t"], gpa, size, f"made {to}")
            case {"event": "set_user_memory_region", "slot": slot, "gpa": gpa, "size": size, "flags": flags}:
                how = " with guest_memfd" if flags & memory.KVM_MEM_GUEST_MEMFD else ""
                self._answer(event["t"], gpa, size, f"slot {slot} {'set' + how if size else 'deleted'}")
            case {"event": "punch_hole" | "fallocate" as what, "offset": offset, "length": length}:
                done = "private pages freed" if what == "punch_hole" else "private pages allocated"
                self._answer_in_file(event["t"], offset, length, done)
            case _:
                pass

    def _close(self, vcpu: int) -> None:
        for row in reversed(self.rows):
            if row.vcpu == vcpu:
                row.retried = True
                return

    def _answer(self, time: float, gpa: int, size: int, done: str) -> None:
        for row in reversed(self.rows):
            if row.exit and not row.retried and row.overlaps(gpa, size):
                row.answers.append(done)
                return
        self.rows.append(Row(time, None, "", gpa, size, "", [done]))

    def _answer_in_file(self, time: float, offset: int, length: int, done: str) -> None:
        # The log has no guest address for these; a VMM that converts a range does so for all of it.
        for row in reversed(self.rows):
            if row.exit and not row.retried and row.size == length:
                row.answers.append(done)
                return
        self.rows.append(Row(time, None, "", offset, length, "in guest_memfd", [done]))


def stories(lines: Iterable[str]) -> list[Story]:
    """The VMs of a log, in the order in which they appear."""
    found: dict[str, Story] = {}
    for line in lines:
        event = json.loads(line)
        vm = str(event.get("vm", ""))
        found.setdefault(vm, Story(vm)).tell(event)
    return [story for story in found.values() if story.faults or story.hypercalls]


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and not size % unit:
            return f"{size // unit} {name}"
    return f"{size:#x}" if size else ""


def table(story: Story) -> Table:
    faults = "1 memory fault" if story.faults == 1 else f"{story.faults} memory faults"
    counts = f"{faults}, {story.hypercalls} conversions asked for by the guest"
    result = Table(title=f"VM {story.vm}: {counts}", title_justify="left", header_style="bold", expand=False)
    for name, justify in (("ms", "right"), ("vCPU", "right"), ("exit", "left"), ("gpa", "right"), ("size", "right")):
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    result.add_column("flags")
    result.add_column("what the VMM did")
    start = story.rows[0].time if story.rows else 0.0
    for row in story.rows:
        answer = Text(", ".join(row.answers))
        if not row.answers:
            answer = Text("retried" if row.retried else "did not go on", style="yellow" if row.retried else "red")
        style = "bold red" if row.exit == "memory fault" else "cyan" if row.exit else "dim"
        result.add_row(
            f"{(row.time - start) * 1000:.1f}",
            "" if row.vcpu is None else str(row.vcpu),
            Text(row.exit or "VMM", style=style),
            f"{row.gpa:#x}",
            _size(row.size),
            row.detail,
            answer,
        )
    return result


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m kvmfs.transcript FILE")
    # Not a terminal: wide enough that no cell wraps.
    console = Console(width=None if sys.stdout.isatty() else 140)
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        told = stories(lines)
    if not told:
        sys.exit(f"{sys.argv[1]}: no memory fault and no conversion in it")
    for story in told:
        console.print(table(story))
        console.print()


if __name__ == "__main__":
    main()
