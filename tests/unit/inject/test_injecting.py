"""The rules that a worker keeps: numbered as they come, counted, and not believed."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from kvmfs.abi.ioctls import KVM_NMI
from kvmfs.kvm.inject.rules import parse, to_message
from kvmfs.worker.injecting import Injecting


def messages(*lines: str) -> list[dict[str, Any]]:
    return [to_message(parse(line)) for line in lines]


def test_rules_are_numbered_and_counted() -> None:
    injecting = Injecting(object(), messages("KVM_NMI=EIO", "KVM_NMI=EBUSY@2"))
    injecting.add(messages("FALLOCATE=ENOSPC"))
    for expected in (errno.EIO, 0, errno.EBUSY, 0):
        try:
            injecting.before_ioctl(KVM_NMI.number, None)
            failed = 0
        except OSError as error:
            failed = error.errno or 0
        assert failed == expected
    report = [(rule["number"], rule["matched"], rule["fired"]) for rule in injecting.report()]
    assert report == [(1, 1, 1), (2, 2, 1), (3, 0, 0)]
    injecting.clear()
    assert injecting.report() == []
    injecting.add(messages("KVM_NMI=EIO"))
    assert [rule["number"] for rule in injecting.report()] == [4]


@pytest.mark.parametrize(
    "message",
    [
        None, 5, "efault", [], {}, {"given": 5, "text": ""}, {"given": [1], "text": ""}, {"given": {}},
        {"given": {"do": ["efault"]}, "text": ""}, {"given": {"do": "efault", "vcpu": {"a": 1}}, "text": ""},
        {"given": {"do": "efault", "probability": float("nan")}, "text": ""},
        {"given": {"do": "efault", "times": 1.5}, "text": ""},
        {"given": {"do": "efault", "gpa": [None]}, "text": ""},
        {"given": {"do": "efault", "access": [["read"]]}, "text": ""},
        {"given": {"do": "delay", "for": float("inf")}, "text": ""},
        {"given": {"do": "fail", "ioctl": ["KVM_NMI"], "errno": "EIO"}, "text": ""},
        {"given": {"do": "fail", "ioctl": "KVM_NMI", "errno": {}}, "text": ""},
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_nothing_is_added(message: Any) -> None:
    injecting = Injecting(object())
    with pytest.raises(ValueError, match=r"."):
        injecting.add([*messages("KVM_NMI=EIO"), message])
    assert injecting.report() == []
