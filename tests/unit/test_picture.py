"""`kvmfs map`: what a trace says about memory, drawn; and looked at by a real browser."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

from kvmfs.inspect import picture
from kvmfs.inspect.trace.decode import Event
from tests.support.paths import missing

PAGE = 4096


def ioctl(t: float, name: str, **fields: int) -> Event:
    return {"t": t, "d": 10.0, "vm": "7-4", "kind": "ioctl", "name": name, "in": fields, "result": 0}


def slot(t: float, number: int, gpa: int, size: int, flags: int = 0) -> Event:
    region = {"slot": number, "guest_phys_addr": gpa, "memory_size": size, "flags": flags}
    return ioctl(t, "KVM_SET_USER_MEMORY_REGION2", **region)


def convert(t: float, gpa: int, size: int, private: bool) -> Event:
    return ioctl(t, "KVM_SET_MEMORY_ATTRIBUTES", address=gpa, size=size, attributes=8 if private else 0)


def fault(t: float, gpa: int) -> Event:
    details = {"gpa": gpa, "size": PAGE, "flags": 8}
    exit_ = {"kind": "exit", "name": "KVM_EXIT_MEMORY_FAULT", "errno": "EFAULT", "details": details}
    return {"t": t, "d": 10.0, "vm": "7-4", "vcpu": 0, **exit_}


STORY = [
    slot(1.0, 0, 0, 16 * PAGE),
    slot(1.1, 1, 1 << 20, 16 * PAGE, flags=4),
    convert(2.0, 1 << 20, 4 * PAGE, True),
    fault(2.5, 1 << 20),
    convert(3.0, 1 << 20, 4 * PAGE, False),
    {"t": 3.1, "d": 1.0, "vm": "7-4", "kind": "fallocate", "name": "PUNCH_HOLE", "result": 0,
     "in": {"offset": 0, "len": 4 * PAGE, "mode": 3}},
    convert(3.5, 1 << 30, PAGE, True),
    ioctl(4.0, "KVM_GET_DIRTY_LOG", slot=0),
]  # fmt: skip


def bands(events: list[Event]) -> set[tuple[Any, ...]]:
    (history,) = picture.histories(events)
    return {(band.kind, band.gpa, band.gpa_end, band.start, round(band.end, 1)) for band in history.bands}


def test_bands_follow_slots_and_conversions() -> None:
    assert bands(STORY) >= {
        ("shared", 0, 16 * PAGE, 1.0, 4.0),
        ("shared", 1 << 20, (1 << 20) + 16 * PAGE, 1.1, 2.0),
        ("private", 1 << 20, (1 << 20) + 4 * PAGE, 2.0, 3.0),
        ("shared", (1 << 20) + 4 * PAGE, (1 << 20) + 16 * PAGE, 2.0, 3.0),
        ("unbacked", 1 << 30, (1 << 30) + PAGE, 3.5, 4.0),
    }


def test_a_slot_that_goes_ends_its_band() -> None:
    assert bands([slot(1.0, 0, 0, PAGE), slot(2.0, 0, 0, 0), convert(3.0, PAGE, PAGE, False)]) == {
        ("shared", 0, PAGE, 1.0, 2.0)
    }


def test_what_failed_did_not_happen() -> None:
    failed = {**convert(2.0, 0, PAGE, True), "errno": "EINVAL"}
    assert bands([slot(1.0, 0, 0, PAGE), failed, convert(3.0, 0, PAGE, False)]) == {("shared", 0, PAGE, 1.0, 3.0)}


def test_marks_are_where_and_when_it_happened() -> None:
    (history,) = picture.histories(STORY)
    marks = [(mark.kind, mark.gpa, mark.gpa_end) for mark in history.marks]
    assert marks == [
        ("conversion", 1 << 20, (1 << 20) + 4 * PAGE),
        ("fault", 1 << 20, (1 << 20) + PAGE),
        ("conversion", 1 << 20, (1 << 20) + 4 * PAGE),
        ("freed", 1 << 20, (1 << 20) + 4 * PAGE),
        ("conversion", 1 << 30, (1 << 30) + PAGE),
        ("dirty", 0, 16 * PAGE),
    ]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = picture.page(picture.histories(STORY), "<title>")
    assert "<script" not in page
    assert not re.search(r"(href|src)=|url\(|@import|https?:", page)
    assert "&lt;title&gt;" in page


def test_a_browser_shows_it(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("no chromium")
    page, shot = tmp_path / "map.html", tmp_path / "map.png"
    page.write_text(picture.page(picture.histories(STORY), "memory"), encoding="utf-8")
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,800", f"--screenshot={shot}", page.as_uri(),
        ],
        check=True, capture_output=True, timeout=100,
    )  # fmt: skip
    colours = pixels(shot.read_bytes())
    assert colours[0xA8, 0xD5, 0xA2] > 20_000  # shared memory is the most of it
    assert colours[0x6D, 0x8F, 0xD6] > 5_000  # private
    assert colours[0xD6, 0x27, 0x28] > 20  # the fault's dot


def pixels(png: bytes) -> dict[tuple[int, ...], int]:
    """How many there are of each colour: 8 bits, RGB or RGBA, not interlaced."""
    at, width, channels, data = 8, 0, 0, b""
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colour, *_ = struct.unpack(">IIBBBBB", body)
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            data += body
        at += 12 + length
    raw, stride = zlib.decompress(data), width * channels
    found: dict[tuple[int, ...], int] = {}
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, channels)
        for x in range(0, stride, channels):
            colour_at = tuple(line[x : x + 3])
            found[colour_at] = found.get(colour_at, 0) + 1
        above = line
    return found


def _unfiltered(kind: int, line: bytearray, above: bytearray, channels: int) -> bytearray:
    """PNG specification, 9.2."""
    for i in range(len(line)):
        left = line[i - channels] if i >= channels else 0
        corner = above[i - channels] if i >= channels else 0
        match kind:
            case 1:
                guess = left
            case 2:
                guess = above[i]
            case 3:
                guess = (left + above[i]) // 2
            case 4:
                guess = min((left, above[i], corner), key=lambda near: abs(left + above[i] - corner - near))
            case _:
                guess = 0
        line[i] = (line[i] + guess) & 0xFF
    return line
