"""Which of its matches a rule fires at: a pure function of their ordinal, so the same in every run.

access.py has the same in compiled code; a test holds them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ALL: Final = 0
"""`times` of a rule without a bound."""

_WORD: Final = (1 << 64) - 1
GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
FIRST_FACTOR: Final = 0xBF58_476D_1CE4_E5B9
SECOND_FACTOR: Final = 0x94D0_49BB_1331_11EB
CERTAIN: Final = 1 << 53
"""`chance` of a rule that leaves nothing to it."""


@dataclass(frozen=True, slots=True)
class When:
    """`after`: so many matches are let pass; `every`: then each so-manieth counts; `times`: it fires so often, ALL for
    always; `chance` in CERTAIN: how likely it is, by `seed`."""

    after: int = 0
    every: int = 1
    times: int = 1
    chance: int = CERTAIN
    seed: int = 0

    def fires(self, ordinal: int) -> bool:
        """At the match with this ordinal, counted from 1, if it has not fired `times` times yet."""
        counted = ordinal - self.after
        return counted > 0 and counted % self.every == 0 and draw(self.seed, ordinal) < self.chance

    def is_spent(self, fired: int) -> bool:
        return self.times != ALL and fired >= self.times


def draw(seed: int, ordinal: int) -> int:
    """A number below CERTAIN: splitmix64."""
    word = seed + ordinal * GOLDEN & _WORD
    word = (word ^ word >> 30) * FIRST_FACTOR & _WORD
    word = (word ^ word >> 27) * SECOND_FACTOR & _WORD
    return (word ^ word >> 31) >> 11
