"""Batches: forms and states from a seed, run on both sides, compared."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from . import forms as F
from . import states
from .compare import compare, differences
from .forms import Form
from .hostcpu import Host
from .ours import Ours

FORMS, EACH = 256, 32  # of a batch
BATCH = FORMS * EACH
MODES = (64, 64, 32, 16)


def data_of(seed: int, number: int) -> np.ndarray:
    """Contents of the data pages in a batch."""
    return states.data(np.random.default_rng([seed, number, 1]))


@dataclass
class Mismatch:
    """A case in which the two differ."""

    form: Form
    before: np.void
    expected: np.void
    found: np.void
    data: np.ndarray
    origin: tuple[int, int] = (0, 0)  # seed and batch: what data_of() takes

    @property
    def kind(self) -> str:
        """What mismatches of one cause have in common, mostly."""
        names = sorted({re.sub(r"[\d\[].*", "", what) for what, *_ in self.differences})
        return f"{self.form.mnemonic} {self.form.name} {'+'.join(names)}"

    @property
    def differences(self) -> list[tuple[str, int, int, int]]:
        return differences(self.form, self.before, self.expected, self.found)


@dataclass
class Outcome:
    """Of a batch. missing: row names that our CPU does not implement, with how often they came."""

    cases: int
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)


class Fuzzer:
    """Both sides. only: a regular expression that mnemonics or row names must match. A context manager."""

    def __init__(self, only: str | None = None) -> None:
        self._only = re.compile(only) if only else None
        self.ours, self._host = Ours(), Host(BATCH)

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.__exit__()

    def _candidates(self, rng: random.Random) -> Iterator[Form | None]:
        rows = [row for row in F.rows() if self._only is None or self._only.search(row[1].mnemonic)]
        vex = F.vex_opcodes()
        while True:
            bits = rng.choice(MODES)
            if rows and rng.random() < 0.8:
                number, row = rng.choice(rows)
                yield F.form(rng, row.mnemonic, F.encode(rng, number, row, bits), bits)
            elif vex:
                bits = 64 if bits == 16 else bits
                yield F.form(rng, "vex", F.encode_vex(rng, *rng.choice(vex)), bits)

    def _forms(self, rng: random.Random) -> list[Form]:
        found: list[Form] = []
        for tries, form in enumerate(self._candidates(rng)):
            if form is not None and (self._only is None or self._only.search(f"{form.mnemonic} {form.name}")):
                found.append(form)
            if len(found) == FORMS or tries == 40 * FORMS:
                return found
        return found

    def batch(self, seed: int, number: int) -> Outcome:
        """Batch `number` of a seed: the same cases every time, as long as the opcode tables are the same."""
        forms = self._forms(random.Random(seed << 32 | number))
        before = states.make(np.random.default_rng([seed, number, 0]), forms, EACH)
        outcome = self.check(forms, EACH, before, data_of(seed, number))
        for mismatch in outcome.mismatches:
            mismatch.origin = (seed, number)
        return outcome

    def check(self, forms: list[Form], each: int, before: np.ndarray, data: np.ndarray) -> Outcome:
        """Run and compare `each` states of every form."""
        expected, found = self._host.run(before, data), self.ours.run_cases(before, data)
        wrong, missing = compare(forms, each, before, expected, found)
        outcome = Outcome(len(before))
        for case in missing:
            form = forms[case // each]
            name = form.mnemonic if form.mnemonic != "(bad)" else form.name
            outcome.missing[name] = outcome.missing.get(name, 0) + 1
        for case in wrong:
            outcome.mismatches.append(Mismatch(forms[case // each], before[case], expected[case], found[case], data))
        return outcome
