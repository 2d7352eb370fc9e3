"""Rules as data: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvmfs.kvm.inject import rules, when
from kvmfs.kvm.inject.rules import from_dict, load, load_all, parse
from kvmfs.kvm.inject.when import ALL, CERTAIN, When


def fired(timing: When, matches: int) -> list[int]:
    """The ordinals at which a rule fires."""
    found: list[int] = []
    for ordinal in range(1, matches + 1):
        if not timing.is_spent(len(found)) and timing.fires(ordinal):
            found.append(ordinal)
    return found


@pytest.mark.parametrize(
    ("given", "ordinals"),
    [
        ({}, [1]),
        ({"after": 2}, [3]),
        ({"times": 2}, [1, 2]),
        ({"every": 3}, [3, 6, 9, 12]),
        ({"every": 3, "after": 1, "times": 2}, [4, 7]),
        ({"times": "all", "after": 8}, [9, 10, 11, 12]),
    ],
)
def test_which_matches_a_rule_fires_at(given: dict[str, Any], ordinals: list[int]) -> None:
    assert fired(from_dict({"do": "efault", **given}).when, 12) == ordinals


def test_chance_is_the_same_in_every_run_and_another_with_another_seed() -> None:
    first, second = (from_dict({"do": "efault", "probability": 0.25, "seed": seed}).when for seed in (1, 2))
    assert first.times == ALL
    assert fired(first, 60)[:4] == [16, 21, 22, 24]
    assert fired(first, 60) != fired(second, 60)
    assert 2300 < len(fired(first, 10_000)) < 2700
    assert max(when.draw(1, ordinal) for ordinal in range(1000)) < CERTAIN


def test_a_line_and_a_table_mean_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        """
[[rule]]
do = "other-kind"
gpa = ["0x402000+0x2000", 0x500010]
vcpu = [1, 3]
access = "write"
memory = "private"
after = 1
every = 2
times = 3
probability = 0.5
seed = 7

[[rule]]
do = "fail"
ioctl = "KVM_CREATE_VCPU"
errno = "ENOMEM"
after = 1
times = "all"
"""
    )
    line = (
        "other-kind:gpa=0x402000+0x2000,gpa=0x500010,vcpu=1,vcpu=3,access=write,memory=private,"
        "after=1,every=2,times=3,probability=0.5,seed=7"
    )
    for found, same in zip(load(file), (parse(line), parse("KVM_CREATE_VCPU=ENOMEM@2+")), strict=True):
        for name in ("do", "vcpus", "ioctl", "errno", "ranges", "accesses", "kinds", "delay"):
            assert getattr(found, name) == getattr(same, name)
        assert (found.when.after, found.when.every, found.when.times) == (
            same.when.after,
            same.when.every,
            same.when.times,
        )
    assert load(file)[0].ranges == ((0x402, 0x404), (0x500, 0x501))
    assert load(file)[0].when.seed == 7
    assert "gpa=0x402000+0x2000" in load(file)[0].text


def test_a_file_has_a_seed_for_all_its_rules_and_they_differ(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('seed = 40\n[[rule]]\ndo = "efault"\n[[rule]]\ndo = "efault"\n[[rule]]\ndo = "efault"\nseed = 9\n')
    assert [rule.when.seed for rule in load(file)] == [41, 42, 9]
    assert [rule.when.seed for rule in load_all([str(file), "efault"])] == [41, 42, 9, 2]


def test_a_rule_survives_its_way_to_another_process(tmp_path: Path) -> None:
    for line in ("efault:probability=0.5", "delay:for=1.5ms,gpa=0x1000+0x2000", "FALLOCATE=ENOSPC", "hwpoison:vcpu=2"):
        rule = parse(line, seed=3)
        assert rules.from_message(json.loads(json.dumps(rules.to_message(rule)))) == rule


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("KVM_RUN=EIO", "KVM_RUN is no ioctl that can be made to fail; rules about memory accesses make KVM_RUN fail"),
        ("NMI=EIO", "NMI is no ioctl"),
        ("KVM_NMI=E", "E is no errno"),
        ("KVM_NMI=EIO@0", "counted from 1"),
        ("KVM_NMI=EIO@-1", "do is 'KVM_NMI=EIO@-1'"),
        ("KVM_NMI", "do is 'KVM_NMI', not one of fail, memory-fault"),
        ("fail:errno=EIO", "has to be named"),
        ("efault:ioctl=KVM_NMI", "befalls memory accesses"),
        ("efault:gap=1", "'gap' is no key of efault; there are access, after"),
        ("efault:gpa", "'gpa' is not KEY=VALUE"),
        ("efault:times=1,times=2", "times is there twice"),
        ("efault:gpa=here", "gpa is 'here', not a whole number"),
        ("efault:gpa=0x1000+0", "gpa's size is '0', not from 1"),
        ("efault:gpa=0x10000000000000", "gpa is '0x10000000000000', not from 0"),
        ("efault:access=execute", "access is 'execute', not one of read, write, fetch"),
        ("efault:every=0", "every is '0', not from 1"),
        ("efault:probability=0", "not above 0"),
        ("efault:probability=often", "probability is 'often', not a number"),
        ("efault:vcpu=100000", "vcpu is '100000'"),
        ("delay:gpa=0", "how long"),
        ("delay:for=5", "for is '5', not a number with ns, us, ms or s"),
        ("delay:for=61s", "at most 60s"),
    ],
)
def test_what_is_no_rule_is_told_why(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_all([line])
    assert str(caught.value).startswith(f"{line}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "there is no table [[rule]]"),
        ("rule = 3", "there is no table [[rule]]"),
        ("[[rules]]", "'rules' is not known here"),
        ('[[rule]]\ndo = "efault"\n[[rule]]\ndo = "efault"\ntimes = true', "rule 2: times is True"),
        ('[[rule]]\ndo = "fail"\nioctl = "KVM_NMI"', "rule 1: what is it to fail with"),
        ("[[rule", "Expected"),
    ],
)
def test_a_file_with_a_mistake_is_told_where(text: str, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        load_all([str(file)])
    assert str(caught.value).startswith(str(file))
    assert complaint in str(caught.value)
