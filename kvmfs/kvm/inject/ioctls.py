"""Rules about ioctls: kept by whoever serves them, and asked before each is made. What fails is not made at all.

Calls are counted for each VM by itself, and for /dev/kvm.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from kvmfs.abi import ioctls
from kvmfs.kvm.inject.rules import DELAY, FALLOCATE, Rule

_FALLOCATE: Final = 0  # instead of an ioctl's number


@dataclass(slots=True)
class _Kept:
    number: int
    rule: Rule
    matched: int = 0
    fired: int = 0


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule that fired. `cmd`: the ioctl's number, 0 for fallocate; `vcpu`: the id of the vCPU whose it was."""

    number: int
    ordinal: int
    rule: Rule
    cmd: int
    vcpu: int | None


class IoctlRules:
    """Any thread may ask."""

    def __init__(self, tell: Callable[[Fired], None] = lambda fired: None) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._rules: dict[int, list[_Kept]] = {}  # by the ioctl's number

    def add(self, rules: Iterable[tuple[int, Rule]]) -> None:
        """Rules with their numbers; those about memory are left out."""
        with self._lock:
            for number, rule in rules:
                if not rule.is_about_memory:
                    cmd = _FALLOCATE if rule.ioctl == FALLOCATE else ioctls.BY_NAME[rule.ioctl].number
                    self._rules.setdefault(cmd, []).append(_Kept(number, rule))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def counts(self) -> dict[int, tuple[int, int]]:
        """Matches and fires by number."""
        with self._lock:
            return {kept.number: (kept.matched, kept.fired) for rules in self._rules.values() for kept in rules}

    def concerns(self, cmd: int) -> bool:
        """Whether there is a rule about this ioctl."""
        return cmd in self._rules

    def fallocate(self) -> float:
        """ioctl() for fallocate(2)."""
        return self.ioctl(_FALLOCATE)

    def ioctl(self, cmd: int, vcpu: int | None = None) -> float:
        """To be called before an ioctl is made: how many seconds it has to wait. OSError: it is to fail with that."""
        if cmd not in self._rules:
            return 0.0
        seconds, failed = 0.0, None
        with self._lock:
            for kept in self._rules.get(cmd, ()):
                rule = kept.rule
                if rule.when.is_spent(kept.fired) or (rule.vcpus and vcpu not in rule.vcpus):
                    continue
                kept.matched += 1
                if not rule.when.fires(kept.matched):
                    continue
                kept.fired += 1
                self._tell(Fired(kept.number, kept.matched, rule, cmd, vcpu))
                if rule.do != DELAY:
                    failed = rule.errno
                    break
                seconds += rule.delay / 1e9
        if failed:
            raise OSError(failed, os.strerror(failed))
        return seconds
