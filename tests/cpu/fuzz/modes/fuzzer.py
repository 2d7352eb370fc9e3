"""Batches of cases, run on both sides and compared."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from . import forms as F
from . import layout as L
from .design import DIFFERENCES, undefined
from .forms import Form
from .ours import Ours
from .reference import Unicorn

FORMS, EACH = 256, 16  # of a batch
CORNERS = np.array([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32)
COMPARED_FLAGS = F.FLAGS | 1 << 17
FIELDS = tuple(
    name
    for name in L.CASE.names
    if name not in ("repeat", "length", "mode", "code", "frame", "frame_at")  # type: ignore[union-attr]
)


@dataclass
class Mismatch:
    """A case in which the two differ."""

    form: Form
    before: np.void
    expected: np.void
    found: np.void
    origin: tuple[int, int] = (0, 0)  # seed and batch: what data_of() takes

    @property
    def kind(self) -> str:
        """What mismatches of one cause have in common, mostly."""
        names = sorted({re.sub(r"[\d\[].*", "", what) for what, *_ in self.differences})
        return f"{self.form.mnemonic} {self.form.name} {L.MODES[self.form.mode].name} {'+'.join(names)}"

    @property
    def differences(self) -> list[tuple[str, int, int, int]]:
        """(what, before, Unicorn's, ours) of everything that differs."""
        sides = [np.array([side], L.CASE) for side in (self.expected, self.found)]
        theirs, ours = (_normalise(self.form, side)[0] for side in sides)
        lines = []
        for name in FIELDS:
            for index in np.ndindex(theirs[name].shape):
                if theirs[name][index] != ours[name][index]:
                    label = name + "".join(f"[{number}]" for number in index)
                    lines.append((label, *(int(side[name][index]) for side in (self.before, theirs, ours))))
        return lines


def _normalise(form: Form, side: np.ndarray) -> np.ndarray:
    side = side.copy()
    side["flags"] &= COMPARED_FLAGS & ~undefined(form)
    side["cr0"] |= 0x10  # ET: SDM vol. 3, 2.5: always 1
    outside = side["vector"] == L.OUTSIDE
    for name in FIELDS:
        if name != "vector":
            side[name][outside] = 0
    return side


@dataclass
class Outcome:
    """Of a batch. missing: nothing is."""

    cases: int
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)


class Fuzzer:
    """Both sides. only: a regular expression that mnemonics, row names or modes must match. A context manager."""

    def __init__(self, only: str | None = None) -> None:
        self._only = re.compile(only) if only else None
        self.ours, self._unicorn = Ours(), Unicorn()

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _forms(self, rng: random.Random) -> Iterator[Form]:
        rows = F.rows()
        for _ in range(40 * FORMS):
            number, row = rng.choice(rows)
            form = F.form(rng, number, row, rng.randrange(len(L.MODES)))
            if form and (self._only is None or self._only.search(f"{form.mnemonic} {form.name} {form.text}")):
                yield form

    def batch(self, seed: int, number: int) -> Outcome:
        """Batch `number` of a seed: the same cases every time, as long as the opcode tables are the same."""
        rng = random.Random(seed << 32 | number)
        forms = list(itertools.islice(self._forms(rng), FORMS))
        cases = np.concatenate([F.states(rng, form, EACH) for form in forms])
        outcome = self.check(forms, cases, data_of(seed, number))
        for mismatch in outcome.mismatches:
            mismatch.origin = (seed, number)
        return outcome

    def check(self, forms: list[Form], cases: np.ndarray, memory: np.ndarray) -> Outcome:
        """Run and compare; there are as many cases of every form."""
        each = len(cases) // len(forms)
        expected, found = self._unicorn.run_cases(cases, memory), self.ours.run_cases(cases, memory)
        outcome = Outcome(len(cases))
        for number, form in enumerate(forms):
            some = slice(number * each, (number + 1) * each)
            theirs, ours = _normalise(form, expected[some]), _normalise(form, found[some])
            wrong = np.zeros(each, bool)
            for name in FIELDS:
                wrong |= (theirs[name] != ours[name]).reshape(each, -1).any(1)
            for case in np.flatnonzero(wrong):
                before = cases[some][case]
                if not any(rule.covers(form, before, theirs[case], ours[case]) for rule in DIFFERENCES):
                    outcome.mismatches.append(Mismatch(form, before, expected[some][case], found[some][case]))
        return outcome


def data_of(seed: int, number: int) -> np.ndarray:
    """Memory of a batch: the tables, and interesting words."""
    rng = np.random.default_rng([seed, number, 4])
    memory = rng.choice(CORNERS, L.MEMORY // 4)
    memory = np.where(rng.random(L.MEMORY // 4) < 0.5, rng.integers(0, 1 << 32, L.MEMORY // 4, np.uint32), memory)
    raw = memory.view(np.uint8).copy()
    raw[: L.AREA] = np.frombuffer(L.tables(), np.uint8)
    raw[L.CODE - 0x100 : L.CODE + 0x100] = 0x90
    return raw
