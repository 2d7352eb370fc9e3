"""Cases by themselves, against whatever: made as small as they still show something, and packed into a word."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np


class Mismatch(Protocol):
    """What both fuzzers' have."""

    before: np.void
    origin: tuple[int, int]

    @property
    def kind(self) -> str: ...


M = TypeVar("M", bound=Mismatch)


def smallest(mismatch: M, simpler: Callable[[np.void], Iterator[np.void]], check: Callable[[np.void], list[M]]) -> M:
    """The same kind of mismatch with as much as possible made plain.

    simpler: a state with one part made plain, each in turn. check: the mismatches of one state.
    """
    least, going = mismatch, True
    while going:
        going = False
        for state in simpler(least.before):
            found = check(state)
            if found and found[0].kind == mismatch.kind:
                least, going = found[0], True
                least.origin = mismatch.origin
                break
    return least


def pack(head: list[Any], state: np.void) -> str:
    """A word for --replay: what JSON can say, and a state."""
    body = zlib.compress(json.dumps(head).encode() + b"\n" + state.tobytes(), 9)
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def unpack(word: str) -> tuple[list[Any], bytes]:
    """pack's two."""
    head, _, raw = zlib.decompress(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))).partition(b"\n")
    return json.loads(head), raw
