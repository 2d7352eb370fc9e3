"""No address that a client passes crashes, hangs or fools kvmfs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from tests.support.processes import Finished

# What KVM refuses before it looks at the argument: by the state of the VM, or because it is not offered.
REFUSED_FIRST = {"ENOTTY", "EINVAL", "ENXIO", "EEXIST", "EBUSY", "EPERM", "ENODEV"}


@pytest.fixture(scope="module")
def answers(kvmfs_run: Callable[..., Finished]) -> dict[str, str]:
    done = kvmfs_run(sys.executable, "-m", "tests.hostile.bad_pointers", timeout=100)
    assert done.status == 0, done.output
    found: dict[str, str] = json.loads(done.output.splitlines()[-1])
    return found


def test_bad_addresses_are_refused(answers: dict[str, str]) -> None:
    """EFAULT, unless KVM has a reason to refuse first."""
    wrong = {key: answer for key, answer in answers.items() if answer != "EFAULT" and answer not in REFUSED_FIRST}
    assert not wrong


def test_most_say_so(answers: dict[str, str]) -> None:
    """Those that are offered and have no reason to refuse first do answer EFAULT."""
    always = ["VCPU KVM_SET_REGS", "VCPU KVM_GET_SREGS", "VCPU KVM_SET_CPUID2", "VCPU KVM_GET_MSRS", "VCPU KVM_GET_FPU"]
    always += ["VM KVM_SET_USER_MEMORY_REGION", "VM KVM_SET_USER_MEMORY_REGION2", "VM KVM_SET_MEMORY_ATTRIBUTES"]
    always += ["VM KVM_CREATE_GUEST_MEMFD", "SYSTEM KVM_GET_SUPPORTED_CPUID", "SYSTEM KVM_GET_MSR_INDEX_LIST"]
    for name in always:
        for key in (key for key in answers if key.startswith(f"{name} ")):
            assert answers[key] == "EFAULT", key
