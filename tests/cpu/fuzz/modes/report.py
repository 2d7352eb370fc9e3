"""Telling a mismatch with Unicorn: made as small as it stays one, with what reruns it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..again import pack, smallest, unpack
from . import forms as F
from . import layout as L
from .fuzzer import Fuzzer, Mismatch, data_of

GPR = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


def _simpler(case: np.void) -> Iterator[np.void]:
    """The case with one part made plain."""
    plain = case.copy()
    plain["flags"] &= 0x20002
    if plain["flags"] != case["flags"]:
        yield plain
    for name in ("gpr", "frame"):
        for index in np.flatnonzero(case[name]):
            plain = case.copy()
            plain[name][index] = 0
            yield plain


def minimised(fuzzer: Fuzzer, mismatch: Mismatch) -> Mismatch:
    """The same kind of mismatch with as much as possible at plain values."""
    data = data_of(*mismatch.origin)
    return smallest(
        mismatch, _simpler, lambda case: fuzzer.check([mismatch.form], np.array([case], L.CASE), data).mismatches
    )


def packed(mismatch: Mismatch) -> str:
    """A word that holds the case: for --replay."""
    return pack([mismatch.form.name, *mismatch.origin], mismatch.before)


def unpacked(fuzzer: Fuzzer, word: str) -> list[Mismatch]:
    """Run a case again: a list of one mismatch, or empty."""
    (name, *origin), raw = unpack(word)
    case = np.frombuffer(raw, L.CASE)
    code = case["code"][0, : case["length"][0]].tobytes()
    found = fuzzer.check([F.known(name, code, int(case["mode"][0]))], case, data_of(*origin)).mismatches
    for mismatch in found:
        mismatch.origin = (origin[0], origin[1])
    return found


def text(mismatch: Mismatch) -> str:
    """Bytes, disassembly, the state before, and what differs after."""
    before = mismatch.before
    words = " ".join(f"{name}={int(value):x}" for name, value in zip(GPR, before["gpr"], strict=True) if value)
    segments = " ".join(f"{name}={int(value):x}" for name, value in zip(SEGMENTS, before["segment"], strict=True))
    lines = [mismatch.form.text, f"  before: flags={int(before['flags']):x} {words}", f"          {segments}"]
    if before["frame_at"]:
        lines.append(f"          at {int(before['frame_at']):x}: {before['frame'].tobytes().hex(' ')}")
    lines += [f"  after:  {what}: Unicorn's {x:x}, ours {y:x}" for what, _, x, y in mismatch.differences]
    lines.append(f"  again:  scripts/fuzz-cpu --against unicorn --replay {packed(mismatch)}")
    return "\n".join(lines)
