"""Rules about ioctls: which calls they fail or delay."""

from __future__ import annotations

import errno

import pytest

from kvmfs.abi.ioctls import KVM_GET_REGS, KVM_NMI
from kvmfs.kvm.inject.ioctls import Fired, IoctlRules
from kvmfs.kvm.inject.rules import parse


def rules(*lines: str) -> tuple[IoctlRules, list[Fired]]:
    told: list[Fired] = []
    made = IoctlRules(told.append)
    made.add(enumerate((parse(line) for line in lines), 1))
    return made, told


@pytest.mark.parametrize(
    ("rule", "failing"),
    [("KVM_NMI=EIO", [1]), ("KVM_NMI=EIO@3", [3]), ("KVM_NMI=EIO@2+", [2, 3, 4])],
)
def test_which_calls_fail(rule: str, failing: list[int]) -> None:
    made, told = rules(rule)
    failed = []
    for call in range(1, 5):
        try:
            made.ioctl(KVM_NMI.number)
        except OSError:
            failed.append(call)
        assert made.ioctl(KVM_GET_REGS.number) == 0
    assert failed == failing == [fired.ordinal for fired in told]
    assert made.counts() == {1: (failing[-1] if len(failing) == 1 else 4, len(failing))}


def test_calls_of_one_vcpu() -> None:
    made, told = rules("fail:ioctl=KVM_NMI,errno=EIO,vcpu=1")
    assert made.ioctl(KVM_NMI.number, vcpu=0) == 0
    with pytest.raises(OSError, match=r"."):
        made.ioctl(KVM_NMI.number, vcpu=1)
    assert [(fired.number, fired.vcpu, fired.cmd) for fired in told] == [(1, 1, KVM_NMI.number)]


def test_delays_add_up_and_come_before_a_failure() -> None:
    made, told = rules("delay:ioctl=KVM_NMI,for=2s,times=2", "delay:ioctl=KVM_NMI,for=500ms", "KVM_NMI=EBUSY@2")
    assert made.ioctl(KVM_NMI.number) == 2.5
    with pytest.raises(OSError, match=r"."):
        made.ioctl(KVM_NMI.number)
    assert [fired.number for fired in told] == [1, 2, 1, 3]


def test_the_first_rule_that_fires_decides_and_later_ones_do_not_see_the_call() -> None:
    made, _ = rules("KVM_NMI=EIO", "KVM_NMI=EBUSY")
    for expected in (errno.EIO, errno.EBUSY):
        with pytest.raises(OSError, match=r".") as caught:
            made.ioctl(KVM_NMI.number)
        assert caught.value.errno == expected
    assert made.ioctl(KVM_NMI.number) == 0


def test_fallocate_and_no_rules_any_more() -> None:
    made, _ = rules("FALLOCATE=ENOSPC@1+")
    with pytest.raises(OSError, match=r"."):
        made.fallocate()
    made.clear()
    assert made.fallocate() == 0
