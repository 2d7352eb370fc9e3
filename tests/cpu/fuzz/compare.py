"""Which results differ, once what cannot agree by design is set equal."""

from __future__ import annotations

import numpy as np

from . import layout as L
from .design import DIFFERENCES
from .forms import Form
from .states import ARITHMETIC, DF
from .undefined import flags

AC = 0x40000
PAGE_FAULT = 14
USER_END = (1 << 47) - L.PAGE  # Linux reports no more about what lies above than "not yours": P is always set
UNIMPLEMENTED = L.EXIT + 10
# What is not compared of any case, and why.
LEFT_OUT = (
    ("flags but those of arithmetic, DF and AC", "Linux has IF set in a process; TF and RF are the single step's"),
    ("upper halves of registers after code of 32 bits", "SDM vol. 1, 3.4.1.1: not preserved, undefined"),
    ("P of the error code of a page fault beyond user space", "Linux sets it, so that a process learns nothing"),
    ("RPL of null selectors", 'SDM vol. 2, IRET: Linux returns to the process by it, and it "clears" them'),
    ("bits 16 to 31 of MXCSR_MASK in an image", "AMD APM vol. 1, 4.2.2: MXCSR.MM, which is not offered"),
    ("FOP, FIP and FDP", "known to the signal frame without an exception pending on Intel's processors only"),
)  # fmt: skip
FIELDS = tuple(name for name in L.STATE.names if name not in ("fop", "repeat", "length", "image", "spare", "code"))  # type: ignore[union-attr]


def _normalise(side: np.ndarray, ignored: np.ndarray, wide: np.ndarray) -> np.ndarray:
    side = side.copy()
    # Switching to code of 32 bits loses upper halves (SDM vol. 1, 3.4.1.1).
    wide = wide & (side["segment"][:, L.CS] == L.USER64_CS)
    side["flags"] &= np.uint64(ARITHMETIC | DF | AC) & ~ignored
    side["gpr"][~wide] &= np.uint64(0xFFFF_FFFF)  # of 64-bit registers, 32-bit code has no upper halves
    side["gpr"][~wide, 8:] = 0
    side["fs_base"][~wide] = side["gs_base"][~wide] = 0
    side["rip"][~wide] &= np.uint64(0xFFFF_FFFF)
    side["segment"][side["segment"] < 4] = 0  # a return to user mode clears the RPL of null selectors
    beyond = (side["vector"] == PAGE_FAULT) & (side["address"] >= USER_END)
    side["error"][beyond] |= 1
    return side


def compare(
    forms: list[Form], each: int, before: np.ndarray, expected: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the cases that differ, and of those that our CPU does not implement."""
    ignored = np.repeat(np.array([flags(form.mnemonic) for form in forms], np.uint64), each)
    wide = np.repeat(np.array([form.bits == 64 for form in forms]), each)
    missing = found["vector"] == UNIMPLEMENTED
    theirs, ours = _normalise(expected, ignored, wide), _normalise(found, ignored, wide)
    wrong = np.zeros(len(before), bool)
    for name in FIELDS:
        unequal = theirs[name] != ours[name]
        wrong |= unequal.reshape(len(before), -1).any(1)
    wrong &= ~missing
    for number in np.flatnonzero(wrong):
        form = forms[number // each]
        wrong[number] = not any(rule.covers(form, before[number], theirs[number], ours[number]) for rule in DIFFERENCES)
    return np.flatnonzero(wrong), np.flatnonzero(missing)


def differences(form: Form, before: np.void, expected: np.void, found: np.void) -> list[tuple[str, int, int, int]]:
    """(what, before, expected, found) of everything that differs in a case."""
    ignored, wide = np.array([flags(form.mnemonic)], np.uint64), np.array([form.bits == 64])
    sides = [np.array([side], L.STATE) for side in (before, expected, found)]
    start, theirs, ours = (_normalise(side, ignored, wide)[0] for side in sides)
    lines = []
    for name in FIELDS:
        for index in np.ndindex(start[name].shape[:1] if name == "st" else start[name].shape):
            values = [side[name][index] for side in (start, theirs, ours)]
            integers = [int.from_bytes(v.tobytes()[:10], "little") if name == "st" else int(v) for v in values]
            if integers[1] != integers[2]:
                lines.append((_label(name, index), *integers))
    return lines


REGISTERS = [*("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"), *(f"r{n}" for n in range(8, 16))]
SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]


def _label(name: str, index: tuple[int, ...]) -> str:
    if name == "gpr":
        return REGISTERS[index[0]]
    if name == "segment":
        return SEGMENTS[index[0]]
    if name == "vec":
        return f"ymm{index[0]}[{64 * index[1]}..]"
    return f"{name}{index[0]}" if index else name
