"""Counts, times and errors of a trace, by what was called and what guests left for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmfs.inspect.trace.decode import Event

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class Line:
    """One kind of call. `total`: µs in all; `most`: the longest one; `errors`: how many failed, by errno's name."""

    count: int = 0
    total: float = 0.0
    most: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


class Summary:
    def __init__(self) -> None:
        self.lines: dict[tuple[str, str], Line] = {}

    def add(self, event: Event) -> None:
        line = self.lines.setdefault((event["kind"], event["name"]), Line())
        line.count += 1
        line.total += event["d"]
        line.most = max(line.most, event["d"])
        if "errno" in event:
            line.errors[event["errno"]] = line.errors.get(event["errno"], 0) + 1

    def as_list(self) -> list[dict[str, Any]]:
        """By time, the longest first."""
        ordered = sorted(self.lines.items(), key=lambda item: -item[1].total)
        return [{"kind": kind, "name": name, **vars(line)} for (kind, name), line in ordered]

    def table(self) -> Table:
        from rich.table import Table

        table = Table(title="summary", title_justify="left", header_style="bold")
        for name, justify in (("what", "left"), ("calls", "right"), ("ms in all", "right"), ("µs each", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column("µs at most", justify="right")
        table.add_column("errors")
        for line in self.as_list():
            name = line["name"] if line["kind"] != "exit" else f"KVM_RUN: {line['name']}"
            errors = ", ".join(f"{count} {error}" for error, count in line["errors"].items())
            table.add_row(
                name, f"{line['count']:,}", f"{line['total'] / 1000:,.3f}", f"{line['total'] / line['count']:,.1f}",
                f"{line['most']:,.1f}", errors,
            )  # fmt: skip
        return table
