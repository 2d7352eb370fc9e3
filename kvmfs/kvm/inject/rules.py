"""A rule as data: what it is about, what happens, and when. docs/fault-injection.md is for those who write rules.

A rule comes as a line, as a table of a TOML file, or as a dictionary; all three mean the same:

    memory-fault:gpa=0x402000+0x1000,access=write,times=3
    [[rule]]  do = "memory-fault", gpa = "0x402000+0x1000", access = "write", times = 3
"""

from __future__ import annotations

import errno
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvmfs.abi import ioctls
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.limits import KVM_MAX_VCPU_IDS
from kvmfs.kvm.inject.when import ALL, CERTAIN, When

FALLOCATE: Final = "FALLOCATE"
"""`ioctl` for fallocate(2) of a guest_memfd."""

FAIL, DELAY = "fail", "delay"
MEMORY_ACTIONS: Final = ("memory-fault", "other-kind", "hwpoison", "efault", DELAY)
ACCESSES: Final = ("read", "write", "fetch")
KINDS: Final = ("shared", "private")
LONGEST_DELAY: Final = 60_000_000_000  # ns

_MEMORY_KEYS: Final = ("gpa", "access", "memory")
_IOCTL_KEYS: Final = ("ioctl", "errno")
_LISTS: Final = ("gpa", "vcpu", "access", "memory")
_SHORT: Final = re.compile(r"(\w+)=(\w+)(?:@(\d+)(\+)?)?")
_UNITS: Final = {"ns": 1, "us": 1000, "ms": 1_000_000, "s": 1_000_000_000}
_MAX_GPA: Final = 1 << 52
_LARGE: Final = 1 << 62


@dataclass(frozen=True)
class Rule:
    """`do`: FAIL or DELAY an ioctl, or one of MEMORY_ACTIONS. `text`: how it was written."""

    do: str
    when: When
    text: str
    vcpus: tuple[int, ...] = ()
    """By id; none: all."""
    ioctl: str = ""
    """Its name, "" for rules about memory accesses."""
    errno: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    """First gfn and end gfn; none: all memory."""
    accesses: tuple[str, ...] = ACCESSES
    kinds: tuple[str, ...] = KINDS
    delay: int = 0
    """ns"""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The keys that it was made of: from_dict() makes the same of them."""

    @property
    def is_about_memory(self) -> bool:
        return not self.ioctl


def parse(line: str, seed: int = 0) -> Rule:
    """A rule in one line: NAME=ERRNO[@N[+]], or DO:KEY=VALUE,... ValueError: it is none."""
    if short := _SHORT.fullmatch(line):
        name, error, call, more = short.groups()
        if call == "0":
            raise ValueError("calls are counted from 1")
        given: dict[str, Any] = {"do": FAIL, "ioctl": name, "errno": error, "after": int(call or 1) - 1}
        if more:
            given["times"] = "all"
        return from_dict(given, line, seed)
    do, _, rest = line.partition(":")
    given = {"do": do}
    for word in filter(None, rest.split(",")):
        key, separator, value = word.partition("=")
        if not separator:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        if key in _LISTS:
            given.setdefault(key, []).append(value)
        elif key in given:
            raise ValueError(f"{key} is there twice")
        else:
            given[key] = value
    return from_dict(given, line, seed)


def load(path: Path) -> list[Rule]:
    """The rules of a TOML file. OSError; ValueError: something in it is wrong, with its place."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if unknown := sorted(document.keys() - {"seed", "rule"}):
        raise ValueError(f"{path}: {unknown[0]!r} is not known here; there are `seed` and tables [[rule]]")
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        raise ValueError(f"{path}: there is no table [[rule]]")
    found = []
    for number, table in enumerate(tables, 1):
        try:
            found.append(from_dict(table, seed=_number("seed", document.get("seed", 0), 0, _LARGE) + number))
        except ValueError as error:
            raise ValueError(f"{path}: rule {number}: {error}") from None
    return found


def load_all(words: Iterable[str]) -> list[Rule]:
    """What a command line gives: lines, and names of files that end in .toml. OSError, ValueError."""
    found: list[Rule] = []
    for number, word in enumerate(words, 1):
        if word.endswith(".toml"):
            found += load(Path(word))
            continue
        try:
            found.append(parse(word, seed=number))
        except ValueError as error:
            raise ValueError(f"{word}: {error}") from None
    return found


def to_message(rule: Rule) -> dict[str, Any]:
    """For another process, as JSON."""
    return {"given": dict(rule.given), "text": rule.text}


def from_message(message: Any) -> Rule:
    """ValueError: it is none, whatever somebody has sent."""
    try:
        given, text = dict(message["given"]), str(message["text"])
    except (KeyError, TypeError):
        raise ValueError("not a rule") from None
    return from_dict(given, text)


def from_dict(given: Mapping[str, Any], text: str = "", seed: int = 0) -> Rule:
    """ValueError says which key is wrong. `seed`: for a rule that has none of its own."""
    keys = dict(given)
    do = keys.pop("do", None)
    about_ioctl = "ioctl" in keys
    if do not in (FAIL, *MEMORY_ACTIONS):
        raise ValueError(f"do is {do!r}, not one of {', '.join((FAIL, *MEMORY_ACTIONS))}")
    if do == FAIL and not about_ioctl:
        raise ValueError("an ioctl that is to fail has to be named: ioctl")
    if about_ioctl and do not in (FAIL, DELAY):
        raise ValueError(f"{do} befalls memory accesses; ioctls can {FAIL} and be delayed")
    allowed = {"vcpu", "after", "every", "times", "probability", "seed"}
    allowed |= set(_IOCTL_KEYS if about_ioctl else _MEMORY_KEYS) | ({"for"} if do == DELAY else set())
    if unknown := [key for key in keys if key not in allowed]:
        raise ValueError(f"{unknown[0]!r} is no key of {do}; there are {', '.join(sorted(allowed))}")
    return Rule(
        do,
        _when(keys, seed),
        text or _text(given),
        vcpus=tuple(_number("vcpu", word, 0, KVM_MAX_VCPU_IDS - 1) for word in _list(keys.get("vcpu", []))),
        ioctl=_ioctl(keys["ioctl"]) if about_ioctl else "",
        errno=_errno(keys.get("errno")) if do == FAIL else 0,
        ranges=tuple(_range(word) for word in _list(keys.get("gpa", []))),
        accesses=_choices("access", keys, ACCESSES),
        kinds=_choices("memory", keys, KINDS),
        delay=_duration(keys.get("for")) if do == DELAY else 0,
        given={**given, "seed": keys.get("seed", seed)},
    )


def _when(keys: Mapping[str, Any], seed: int) -> When:
    chance = keys.get("probability", 1)
    try:
        probability = float(chance)
    except (TypeError, ValueError):
        raise ValueError(f"probability is {chance!r}, not a number") from None
    if not 0 < probability <= 1:
        raise ValueError(f"probability is {chance!r}, not above 0 and at most 1")
    repeats = "every" in keys or "probability" in keys
    times = keys.get("times", "all" if repeats else 1)
    return When(
        after=_number("after", keys.get("after", 0), 0, _LARGE),
        every=_number("every", keys.get("every", 1), 1, _LARGE),
        times=ALL if times == "all" else _number("times", times, 1, _LARGE),
        chance=round(probability * CERTAIN),
        seed=_number("seed", keys.get("seed", seed), 0, _LARGE),
    )


def _number(key: str, word: Any, least: int, most: int) -> int:
    try:
        number = int(word, 0) if isinstance(word, str) else word
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{key} is {word!r}, not a whole number")
    if not least <= number <= most:
        raise ValueError(f"{key} is {word!r}, not from {least} to {most:#x}")
    return number


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _range(word: Any) -> tuple[int, int]:
    """ADDRESS, for its page, or ADDRESS+SIZE: all pages that it touches."""
    start, separator, size = word.partition("+") if isinstance(word, str) else (word, "", "")
    first = _number("gpa", start, 0, _MAX_GPA - 1)
    length = _number("gpa's size", size, 1, _MAX_GPA - first) if separator else 1
    return first // PAGE_SIZE, -(-(first + length) // PAGE_SIZE)


def _choices(key: str, keys: Mapping[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = _list(keys[key]) if key in keys else list(known)
    for word in chosen:
        if word not in known:
            raise ValueError(f"{key} is {word!r}, not one of {', '.join(known)}")
    return tuple(word for word in known if word in chosen)


def _ioctl(name: Any) -> str:
    known = isinstance(name, str) and (name == FALLOCATE or name in ioctls.BY_NAME)
    if not known or name == ioctls.KVM_RUN.name:
        hint = "; rules about memory accesses make KVM_RUN fail" if name == ioctls.KVM_RUN.name else ""
        raise ValueError(f"{name} is no ioctl that can be made to fail{hint}")
    return str(name)


def _errno(name: Any) -> int:
    if name is None:
        raise ValueError("what is it to fail with? errno")
    number = getattr(errno, str(name), None)
    if not isinstance(number, int):
        raise ValueError(f"{name} is no errno")
    return number


def _duration(word: Any) -> int:
    if word is None:
        raise ValueError('how long? for = "5ms"')
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ns|us|ms|s)", str(word))
    if match is None:
        raise ValueError(f"for is {word!r}, not a number with ns, us, ms or s")
    nanoseconds = round(float(match[1]) * _UNITS[match[2]])
    if not 0 < nanoseconds <= LONGEST_DELAY:
        raise ValueError(f"for is {word!r}, not above 0 and at most 60s")
    return nanoseconds


def _text(given: Mapping[str, Any]) -> str:
    words = [f"{key}={word}" for key, value in given.items() if key != "do" for word in _list(value)]
    return f"{given['do']}:{','.join(words)}" if words else str(given["do"])
