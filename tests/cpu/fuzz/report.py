"""Telling a mismatch: made as small as it stays one, with what reruns it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import forms as F
from . import layout as L
from .again import pack, smallest, unpack
from .compare import REGISTERS, SEGMENTS
from .fuzzer import Fuzzer, Mismatch, data_of

PLAIN = {"flags": 0x202, "mxcsr": 0x1F80, "fcw": 0x37F, "fsw": 0, "ftw": 0xFF, "fs_base": 0, "gs_base": 0}
ARRAYS = ("gpr", "vec", "st")


def _simpler(state: np.void) -> Iterator[np.void]:
    """The state with one part made plain."""
    for name, value in PLAIN.items():
        if state[name] != value:
            made = state.copy()
            made[name] = value
            yield made
    for name in ARRAYS:
        for index in range(len(state[name])):
            if np.any(state[name][index]):
                made = state.copy()
                made[name][index] = 0
                yield made


def minimised(fuzzer: Fuzzer, mismatch: Mismatch) -> Mismatch:
    """The same kind of mismatch with as many registers as possible at their plain values."""
    return smallest(
        mismatch, _simpler, lambda state: fuzzer.check([mismatch.form], 1, np.array([state]), mismatch.data).mismatches
    )


def packed(mismatch: Mismatch) -> str:
    """A word that holds the case: for --replay."""
    seed, number = mismatch.origin
    return pack([mismatch.form.name, mismatch.form.bits, seed, number], mismatch.before)


def unpacked(fuzzer: Fuzzer, word: str) -> list[Mismatch]:
    """Run a case again: a list of one mismatch, or empty."""
    (name, bits, seed, number), raw = unpack(word)
    state = np.frombuffer(raw, L.STATE)
    code = state["code"][0, : state["length"][0]].tobytes()
    form = F.known(name, code, bits, int(state["rip"][0]))
    found = fuzzer.check([form], 1, state, data_of(seed, number)).mismatches
    for mismatch in found:
        mismatch.origin = (seed, number)
    return found


def text(mismatch: Mismatch) -> str:
    """Bytes, disassembly, the state before, and what differs after."""
    form, before = mismatch.form, mismatch.before
    lines = [
        f"{form.code.hex(' ')}    {F.disassemble(form.code, form.bits)}    ({form.bits}-bit code, row {form.name})"
    ]
    gpr = [f"{name}={int(value):x}" for name, value in zip(REGISTERS, before["gpr"], strict=True) if value]
    lines.append(f"  before: rip={int(before['rip']):x} flags={int(before['flags']):x} " + " ".join(gpr))
    if form.bits == 64:
        lines.append(f"          fs_base={int(before['fs_base']):x} gs_base={int(before['gs_base']):x}")
    else:
        lines.append(
            "          " + " ".join(f"{n}={int(v):x}" for n, v in zip(SEGMENTS, before["segment"], strict=True))
        )
    for name, label in (("vec", "ymm"), ("st", "st")):
        for number, value in enumerate(before[name]):
            if np.any(value):
                lines.append(f"          {label}{number}={int.from_bytes(value.tobytes(), 'little'):x}")
    words = [f"{name}={int(before[name]):x}" for name in ("mxcsr", "fcw", "fsw", "ftw") if before[name] != PLAIN[name]]
    lines += ["          " + " ".join(words)] if words else []
    for what, _, expected, found in mismatch.differences:
        lines.append(f"  after:  {what}: the host's {expected:x}, ours {found:x}")
    lines.append(f"  again:  scripts/fuzz-cpu --replay {packed(mismatch)}")
    return "\n".join(lines)
