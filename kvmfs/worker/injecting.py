"""The rules that a worker has been given (kvmfs.kvm.inject): those about ioctls are kept here, the others by the VM."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from kvmfs.kvm.inject.ioctls import Fired, IoctlRules
from kvmfs.kvm.inject.rules import Rule, from_message
from kvmfs.worker.channel import Message


@runtime_checkable
class Injected(Protocol):
    """A VM whose guest's memory accesses can be interfered with."""

    def inject(self, rules: Sequence[tuple[int, Rule]]) -> None:
        """More rules, with their numbers; those about ioctls are not for it. Obeyed from the return on."""

    def stop_injecting(self) -> None:
        """No rules any more."""

    def injected(self) -> dict[int, tuple[int, int]]:
        """Matches and fires by number."""

    def note_injection(self, fired: Fired) -> None:
        """Log what befell an ioctl."""


class Injecting:
    """Of one VM; any thread may ask."""

    def __init__(self, vm: object, messages: Iterable[Message] = ()) -> None:
        """ValueError: a message is no rule."""
        self._vm = vm if isinstance(vm, Injected) else None
        self._ioctls = IoctlRules(self._vm.note_injection if self._vm else lambda fired: None)
        self._lock = threading.Lock()
        self._rules: list[tuple[int, Rule]] = []
        self._next = 1
        self.add(messages)

    def add(self, messages: Iterable[Message]) -> None:
        """ValueError: nothing was added."""
        rules = [from_message(message) for message in messages]
        with self._lock:
            new = list(enumerate(rules, self._next))
            self._next += len(new)
            self._rules += new
            self._ioctls.add(new)
            if self._vm:
                self._vm.inject(new)

    def clear(self) -> None:
        with self._lock:
            self._rules = []
            self._ioctls.clear()
            if self._vm:
                self._vm.stop_injecting()

    def report(self) -> list[dict[str, Any]]:
        """The rules: {number, rule, matched, fired}."""
        with self._lock:
            counts = self._ioctls.counts() | (self._vm.injected() if self._vm else {})
            return [
                {"number": number, "rule": rule.text, "matched": counts[number][0], "fired": counts[number][1]}
                for number, rule in self._rules
                if number in counts
            ]

    def before_ioctl(self, cmd: int, node: Any) -> None:
        """OSError: it is to fail with that."""
        if seconds := self._ioctls.ioctl(cmd, getattr(node, "id", None)):
            time.sleep(seconds)

    def before_fallocate(self) -> None:
        if seconds := self._ioctls.fallocate():
            time.sleep(seconds)
