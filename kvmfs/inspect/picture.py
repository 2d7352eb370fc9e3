"""Guest-physical memory over time as one HTML page: what was shared, private, faulted and freed, from a trace.

Left to right is time, bottom to top guest-physical memory: only what a slot or an attribute ever covered, so that gaps
cost nothing. The page is self-contained: SVG and a few lines of style, no script and nothing to fetch.
"""

from __future__ import annotations

import html
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from kvmfs.abi.memory import KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE
from kvmfs.abi.run import KVM_MEMORY_EXIT_FLAG_PRIVATE
from kvmfs.inspect.trace.decode import Event

WIDTH: Final = 1000
HEIGHT: Final = 480
LEFT: Final = 130
_GAP: Final = 14  # between pieces of memory that do not touch
_LEAST: Final = 6.0  # height of a band, however small its memory
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Band:
    """`kind`: "shared", "private", "unbacked" (private by its attributes, no slot). Seconds; bytes, end excluded."""

    kind: str
    start: float
    end: float
    gpa: int
    gpa_end: int
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: "fault", "conversion", "freed", "dirty"."""

    kind: str
    time: float
    gpa: int
    gpa_end: int
    label: str


@dataclass
class History:
    """What happened to one VM's memory."""

    vm: str
    start: float = 0.0
    end: float = 0.0
    bands: list[Band] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


class _Builder:
    def __init__(self, vm: str) -> None:
        self.history = History(vm)
        self._slots: dict[int, tuple[int, int, bool]] = {}  # gpa, end, has guest_memfd
        self._private: list[tuple[int, int]] = []  # disjoint, ascending
        self._since = 0.0

    def add(self, event: Event) -> None:
        history, time = self.history, float(event["t"])
        if not history.start:
            history.start = self._since = time
        history.end = max(history.end, time + event["d"] / 1e6)
        failed = "errno" in event
        match event["name"]:
            case "KVM_SET_USER_MEMORY_REGION" | "KVM_SET_USER_MEMORY_REGION2" if not failed:
                self._change(time)
                given = event["in"]
                if given["memory_size"]:
                    gpa = given["guest_phys_addr"]
                    private = bool(given["flags"] & KVM_MEM_GUEST_MEMFD)
                    self._slots[given["slot"]] = (gpa, gpa + given["memory_size"], private)
                else:
                    self._slots.pop(given["slot"], None)
            case "KVM_SET_MEMORY_ATTRIBUTES" if not failed:
                self._change(time)
                given = event["in"]
                gpa, end = given["address"], given["address"] + given["size"]
                private = bool(given["attributes"] & KVM_MEMORY_ATTRIBUTE_PRIVATE)
                self._set_private(gpa, end, private)
                kind = "private" if private else "shared"
                history.marks.append(Mark("conversion", time, gpa, end, f"made {kind}: {gpa:#x} to {end:#x}"))
            case "KVM_EXIT_MEMORY_FAULT":
                found = event["details"]
                gpa, size = found["gpa"], found["size"]
                kind = "private" if found["flags"] & KVM_MEMORY_EXIT_FLAG_PRIVATE else "shared"
                label = f"memory fault: {kind} access to {gpa:#x}, vCPU {event.get('vcpu', 0)}"
                history.marks.append(Mark("fault", time, gpa, gpa + size, label))
            case "KVM_GET_DIRTY_LOG" if not failed:
                slot = self._slots.get(event["in"].get("slot", -1))
                if slot:
                    history.marks.append(Mark("dirty", time, slot[0], slot[1], f"dirty log of {slot[0]:#x} read"))
            case "PUNCH_HOLE" if not failed:
                given = event["in"]
                for gpa, end, private in self._slots.values():
                    if private:
                        first = gpa + given["offset"]
                        last = min(first + given["len"], end)
                        history.marks.append(Mark("freed", time, first, last, f"private pages freed: {first:#x}"))
                        break

    def _set_private(self, gpa: int, end: int, private: bool) -> None:
        kept: list[tuple[int, int]] = []
        for first, last in self._private:
            if last <= gpa or first >= end:
                kept.append((first, last))
                continue
            if first < gpa:
                kept.append((first, gpa))
            if last > end:
                kept.append((end, last))
        if private:
            kept.append((gpa, end))
        self._private = sorted(kept)

    def _change(self, time: float) -> None:
        """What was so far ends here."""
        if time > self._since:
            for gpa, end, _ in self._slots.values():
                self._bands(gpa, end, time)
            for gpa, end in self._private:
                for first, last in _outside(gpa, end, [(slot[0], slot[1]) for slot in self._slots.values()]):
                    self._band("unbacked", first, last, time)
        self._since = time

    def _bands(self, gpa: int, end: int, time: float) -> None:
        inside = [(max(first, gpa), min(last, end)) for first, last in self._private if first < end and last > gpa]
        for first, last in inside:
            self._band("private", first, last, time)
        for first, last in _outside(gpa, end, inside):
            self._band("shared", first, last, time)

    def _band(self, kind: str, gpa: int, end: int, time: float) -> None:
        label = f"{kind}: {gpa:#x} to {end:#x}"
        bands = self.history.bands
        for index in range(len(bands) - 1, max(len(bands) - 64, -1), -1):
            old = bands[index]
            if (old.kind, old.gpa, old.gpa_end, old.end) == (kind, gpa, end, self._since):
                bands[index] = Band(kind, old.start, time, gpa, end, label)  # it goes on
                return
        bands.append(Band(kind, self._since, time, gpa, end, label))

    def finish(self) -> History:
        self._change(max(self.history.end, self._since + 1e-6))
        self.history.end = self._since
        return self.history


def _outside(gpa: int, end: int, pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of a range no piece covers."""
    found = []
    for first, last in sorted(pieces):
        if first > gpa:
            found.append((gpa, min(first, end)))
        gpa = max(gpa, last)
        if gpa >= end:
            return found
    return [*found, (gpa, end)]


def histories(events: Iterable[Event]) -> list[History]:
    """Of every VM that has memory."""
    builders: dict[str, _Builder] = {}
    for event in events:
        if event["vm"] != "kvm":
            builders.setdefault(event["vm"], _Builder(event["vm"])).add(event)
    found = [builder.finish() for builder in builders.values()]
    return [history for history in found if history.bands]


# Drawing --------------------------------------------------------------------------------------------------------------


class _Scale:
    """Guest-physical addresses as heights: pieces that touch are drawn together, by the logarithms of their sizes."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        edges = sorted({edge for first, last in ranges for edge in (first, last)})
        covered = sorted(set(ranges))
        self._edges: list[int] = edges
        weights = []
        for first, last in pairwise(edges):
            inside = any(low <= first and last <= high for low, high in covered)
            weights.append(max((last - first) // _PAGE, 1).bit_length() + 1.0 if inside else 0.0)
        total = sum(weights) or 1.0
        gaps = sum(1 for weight in weights if not weight)
        room = HEIGHT - _GAP * gaps - _LEAST * (len(weights) - gaps)
        self._heights = [0.0]
        for weight in weights:
            step = _LEAST + room * weight / total if weight else _GAP
            self._heights.append(self._heights[-1] + step)

    @property
    def edges(self) -> list[int]:
        return self._edges

    def y(self, gpa: int) -> float:
        """From the top."""
        index = min(max(bisect_right(self._edges, gpa) - 1, 0), len(self._edges) - 2)
        first, last = self._edges[index], self._edges[index + 1]
        part = min(max((gpa - first) / (last - first), 0.0), 1.0)
        height = self._heights[index] + part * (self._heights[index + 1] - self._heights[index])
        return HEIGHT - height


def svg(history: History) -> str:
    """One VM's picture."""
    ranges = [(band.gpa, band.gpa_end) for band in history.bands]
    ranges += [(mark.gpa, mark.gpa_end) for mark in history.marks if mark.gpa_end > mark.gpa]
    scale = _Scale(ranges)
    span = max(history.end - history.start, 1e-6)

    def x(time: float) -> float:
        return LEFT + (time - history.start) / span * (WIDTH - LEFT)

    parts = [f'<svg viewBox="0 -20 {WIDTH + 10} {HEIGHT + 60}" role="img">']
    for band in history.bands:
        top, bottom = scale.y(band.gpa_end), scale.y(band.gpa)
        parts.append(
            f'<rect class="{band.kind}" x="{x(band.start):.1f}" y="{top:.1f}" '
            f'width="{max(x(band.end) - x(band.start), 0.5):.1f}" height="{bottom - top:.1f}">'
            f"{_title(band.label)}</rect>"
        )
    for mark in history.marks:
        top, bottom, at = scale.y(mark.gpa_end), scale.y(mark.gpa), x(mark.time)
        if mark.kind == "fault":
            parts.append(
                f'<circle class="fault" cx="{at:.1f}" cy="{(top + bottom) / 2:.1f}" r="5">{_title(mark.label)}</circle>'
            )
        else:
            parts.append(
                f'<line class="{mark.kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}">'
                f"{_title(mark.label)}</line>"
            )
    last = float("inf")
    for edge in scale.edges:
        if last - scale.y(edge) >= 12:
            last = scale.y(edge)
            parts.append(f'<text x="{LEFT - 8}" y="{last + 4:.1f}" text-anchor="end">{edge:#x}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT + 24}">0</text>')
    parts.append(f'<text x="{WIDTH}" y="{HEIGHT + 24}" text-anchor="end">{span * 1000:.1f} ms</text></svg>')
    return "\n".join(parts)


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1060px; color: #222; background: #fff }
h2 { margin: 1.5em 0 .2em } svg { width: 100% } text { font: 11px ui-monospace, monospace; fill: #555 }
.shared { fill: #a8d5a2 } .private { fill: #6d8fd6 } .unbacked { fill: #ddd; stroke: #999; stroke-dasharray: 3 }
.fault { fill: #d62728; stroke: #fff } .conversion { stroke: #222; stroke-width: 1.5 }
.freed { stroke: #ff7f0e; stroke-width: 3 } .dirty { stroke: #b8860b; stroke-width: 2; stroke-dasharray: 2 }
.key { display: inline-block; width: 1em; height: 1em; vertical-align: -2px; margin: 0 .3em 0 1em }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } text { fill: #aaa } .conversion { stroke: #eee }
}
"""
_KEYS: Final = (
    ("shared", "#a8d5a2"), ("private", "#6d8fd6"), ("private, no slot", "#ddd"), ("memory fault", "#d62728"),
    ("conversion", "#222"), ("private pages freed", "#ff7f0e"), ("dirty log read", "#b8860b"),
)  # fmt: skip


def page(found: list[History], title: str) -> str:
    """The whole page."""
    keys = "".join(f'<span class="key" style="background:{colour}"></span>{name}' for name, colour in _KEYS)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>',
        f"<h1>{html.escape(title)}</h1><p>{keys}</p>",
    ]
    for history in found:
        faults = sum(mark.kind == "fault" for mark in history.marks)
        conversions = sum(mark.kind == "conversion" for mark in history.marks)
        parts.append(f"<h2>VM {html.escape(history.vm)}</h2><p>{faults} memory faults, {conversions} conversions</p>")
        parts.append(svg(history))
    return "\n".join(parts) + "</html>\n"
