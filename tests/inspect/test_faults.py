"""`kvmfs faults` and `kvmfs inject`: a VM that runs is looked at, and interfered with."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inspect.conftest import Client
from tests.process.harness import wait_until
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(120)


def kvmfs(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvmfs", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_the_fault_log_as_a_table_and_as_json(own: Client) -> None:
    own.tell("fault")
    records = [json.loads(line) for line in kvmfs("faults", "--json", own.vm.name).stdout.splitlines()]
    assert [record["number"] for record in records] == list(range(1, len(records) + 1))
    assert (records[-1]["outcome"], records[-1]["gva"], records[-1]["vcpu"]) == ("memory fault: no slot", 0x200000, 0)
    head, *rows = kvmfs("faults", str(own.pid)).stdout.splitlines()
    assert head.split() == ["n", "s", "µs", "vCPU", "gva", "gpa", "access", "slot", "outcome", "rip", "rule"]
    assert len(rows) == len(records)
    assert "0x200000" in rows[-1]
    assert "private write" in rows[-1]


def test_a_log_that_is_followed_ends_with_its_vm(own: Client) -> None:
    command = [sys.executable, "-m", "kvmfs", "faults", "--json", "--follow", own.vm.name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout
        own.tell("out")
        own.tell("fault")
        lines = [follower.stdout.readline()]
        while "memory fault" not in lines[-1]:
            lines.append(follower.stdout.readline())
        own.end()
        assert follower.stdout.read() == ""
        assert follower.wait(30) == 0


def test_rules_for_a_vm_that_runs(own: Client) -> None:
    vm = own.vm.name
    assert own.tell("fail") == str(errno.EEXIST)
    done = kvmfs("inject", vm, "KVM_CREATE_VCPU=ENOMEM@2", "delay:gpa=0x1000,access=fetch,for=1ms,times=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [own.tell("fail") for _ in range(3)] == [str(errno.EEXIST), str(errno.ENOMEM), str(errno.EEXIST)]
    for _ in range(4):
        own.tell("out")
    rules = json.loads(kvmfs("inject", "--json", vm).stdout)
    assert [(rule["number"], rule["fired"]) for rule in rules] == [(1, 1), (2, 2)]
    assert rules[0]["matched"] == 2
    assert "KVM_CREATE_VCPU=ENOMEM@2" in kvmfs("inject", vm).stdout
    records = [json.loads(line) for line in kvmfs("faults", "--json", vm).stdout.splitlines()]
    injected = [(r["rule"], r["ordinal"], r["outcome"], r["ioctl"]) for r in records if r["rule"]]
    assert injected == [
        (1, 2, "ioctl", "KVM_CREATE_VCPU"), (2, 1, "delayed", None), (2, 2, "delayed", None),
    ]  # fmt: skip
    assert all(record["ns"] >= 1_000_000 for record in records if record["outcome"] == "delayed")
    assert kvmfs("inject", vm, "--clear", "KVM_CREATE_VCPU=EIO").returncode == 0
    assert own.tell("fail") == str(errno.EIO)
    assert [rule["number"] for rule in json.loads(kvmfs("inject", "--json", vm).stdout)] == [3]


def test_a_guest_that_never_leaves_meets_a_rule(own: Client) -> None:
    own.tell("spin")
    wait_until(
        lambda: json.loads(kvmfs("show", "--json", own.vm.name).stdout)["vcpus"][0]["state"] == "in guest", "it runs"
    )
    assert kvmfs("inject", own.vm.name, "efault:access=fetch").returncode == 0
    wait_until(lambda: json.loads(kvmfs("inject", "--json", own.vm.name).stdout)[0]["fired"] == 1, "the rule fires")
    assert "EFAULT" in kvmfs("faults", own.vm.name).stdout.splitlines()[-1]


def test_mistakes_are_told(own: Client, tmp_path: Path) -> None:
    vm = own.vm.name
    wrong = kvmfs("inject", vm, "efault:gap=1")
    assert wrong.returncode == 2
    assert "no key of efault" in wrong.stderr
    assert kvmfs("inject", vm, str(tmp_path / "none.toml")).returncode == 2
    assert kvmfs("inject", "1-1", "efault").returncode == 1
    assert kvmfs("faults", "1-1").returncode == 1
    assert json.loads(kvmfs("inject", "--json", vm).stdout) == []
