"""Ioctls that are made to fail: for tests of what a VMM does then.

A rule is NAME=ERRNO, for the first call; NAME=ERRNO@N, for the Nth; NAME=ERRNO@N+, for that and all after it. Calls
are counted for each VM by itself, and for /dev/kvm. The call is not made: nothing else of it happens.

KVM_RUN cannot be chosen: compiled code answers it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kvmfs.abi import ioctls

FALLOCATE: Final = "FALLOCATE"
"""NAME for fallocate(2) of a guest_memfd."""

_RULE: Final = re.compile(r"(\w+)=(\w+)(?:@(\d+)(\+)?)?")


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    errno: int
    call: int
    """Counted from 1."""
    all_after: bool

    @classmethod
    def parse(cls, text: str) -> Rule:
        """ValueError: it is none."""
        match = _RULE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not NAME=ERRNO[@N[+]]")
        name, error, call, more = match.groups()
        if name != FALLOCATE and (name not in ioctls.BY_NAME or name == ioctls.KVM_RUN.name):
            raise ValueError(f"{name} is no ioctl that can be made to fail")
        number = getattr(errno, error, None)
        if number is None:
            raise ValueError(f"{error} is no errno")
        if call == "0":
            raise ValueError("calls are counted from 1")
        return cls(name, number, int(call or 1), bool(more))

    def applies(self, call: int) -> bool:
        return call == self.call or (self.all_after and call > self.call)


class Failures:
    """The rules that hold for one VM, or for /dev/kvm. Any thread may ask."""

    def __init__(self, rules: Iterable[str]) -> None:
        """ValueError."""
        self._rules = [Rule.parse(text) for text in rules]
        self._numbers = {ioctls.BY_NAME[rule.name].number: rule.name for rule in self._rules if rule.name != FALLOCATE}
        self._calls = dict.fromkeys((rule.name for rule in self._rules), 0)
        self._lock = threading.Lock()

    def ioctl(self, cmd: int) -> None:
        """To be called before an ioctl is made. OSError: it is to fail with that."""
        if name := self._numbers.get(cmd):
            self._count(name)

    def fallocate(self) -> None:
        """The same for fallocate(2)."""
        if FALLOCATE in self._calls:
            self._count(FALLOCATE)

    def _count(self, name: str) -> None:
        with self._lock:
            self._calls[name] += 1
            call = self._calls[name]
        for rule in self._rules:
            if rule.name == name and rule.applies(call):
                raise OSError(rule.errno, os.strerror(rule.errno))
