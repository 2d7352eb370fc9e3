"""Traces of real VMs: what is in them, attaching and detaching, comparing, ioctls that are made to fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.inspect.conftest import Client
from tests.process.harness import wait_until
from tests.support.paths import ROOT

KVMFS = (sys.executable, "-m", "kvmfs")


def kvmfs(*words: str | Path, input: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*KVMFS, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=100, input=input
    )
    assert done.returncode == status, done.stderr
    return done


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def recorded(vmm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of: create, OUT twice, a second vCPU 0, a memory fault."""
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    kvmfs("trace", "--json", "-o", path, "--", vmm, input="out out fail fault end\n")
    return path


def test_every_call_is_there_decoded(recorded: Path) -> None:
    events = load(recorded)
    names = [event["name"] for event in events]
    assert names[:3] == ["KVM_CREATE_VM", "KVM_CREATE_GUEST_MEMFD", "KVM_SET_USER_MEMORY_REGION2"]
    first = next(event for event in events if event["name"] == "KVM_CREATE_VM")
    assert (first["arg"], first["vm"]) == (1, "kvm")
    assert first["result"] > 2
    (low, high, gone) = (event for event in events if event["name"] == "KVM_SET_USER_MEMORY_REGION2")
    assert (low["in"]["memory_size"], high["in"]["guest_phys_addr"], gone["in"]["memory_size"]) == (2 << 20, 2 << 20, 0)
    assert low["vm"].split("-")[1] == str(first["result"])
    assert low["tid"] == first["tid"]
    sregs = next(event for event in events if event["name"] == "KVM_SET_SREGS")
    assert sregs["in"]["cr3"] == 0x10000
    assert sregs["in"]["cs"]["l"] == 1
    cpuid = next(event for event in events if event["name"] == "KVM_SET_CPUID2")
    assert [entry["function"] for entry in cpuid["in"]["entries"]][:2] == [0, 1]
    twice = [event for event in events if event["name"] == "KVM_CREATE_VCPU"]
    assert [event.get("errno") for event in twice] == [None, "EEXIST"]
    (attributes,) = (event for event in events if event["name"] == "KVM_SET_MEMORY_ATTRIBUTES")
    assert attributes["in"] == {"address": 2 << 20, "size": 2 << 20, "attributes": 8, "flags": 0}


def test_exits_have_their_details(recorded: Path) -> None:
    out, again, fault = (event for event in load(recorded) if event["kind"] == "exit")
    assert out["name"] == again["name"] == "KVM_EXIT_IO"
    assert out["details"] == {"direction": "out", "size": 1, "port": 16, "count": 1, "data": "55"}
    assert (out["rip"], out["vcpu"], out["result"]) == (0x1002, 0, 0)
    assert again["instructions"] > out["instructions"]
    assert (fault["name"], fault["errno"]) == ("KVM_EXIT_MEMORY_FAULT", "EFAULT")
    assert fault["details"] == {"flags": 8, "gpa": 0x200000, "size": 4096}


def test_times_are_real(recorded: Path) -> None:
    events = load(recorded)
    own = [event["t"] for event in events if event["vm"] != "kvm"]
    assert own == sorted(own)
    assert max(own) - min(own) < 100
    assert all(0 <= event["d"] < 100e6 for event in events)
    assert abs(events[0]["t"] - own[0]) < 20


def test_two_runs_have_the_same_exits_and_ioctls(recorded: Path, vmm: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    kvmfs("trace", "--json", "-o", again, "--", vmm, input="out out fail fault end\n")
    kvmfs("compare", recorded, again)
    kvmfs("compare", "--ioctls", recorded, again)


def test_the_first_difference_is_told(recorded: Path, vmm: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    kvmfs("trace", "--json", "-o", other, "--", vmm, input="out fault end\n")
    told = kvmfs("compare", recorded, other, status=1).stdout
    assert "VM 1, vCPU 0, event 2:" in told
    assert "expected KVM_EXIT_IO direction=out size=1 port=0x10" in told
    assert "found    KVM_EXIT_MEMORY_FAULT flags=8 gpa=0x200000" in told


def test_lines_for_people_and_a_summary(vmm: Path) -> None:
    told = kvmfs("trace", "--", vmm, input="out end\n").stderr
    assert "KVM_RUN() = 0 <" in told
    assert "KVM_EXIT_IO {direction=out, size=1, port=0x10, count=1, data=55} rip=0x1002" in told
    assert "KVM_SET_USER_MEMORY_REGION2({memory_size=0x200000, userspace_addr=0x" in told
    summary = kvmfs("trace", "-c", "--", vmm, input="out out fail end\n").stderr
    assert "KVM_RUN: KVM_EXIT_IO" in summary
    assert "1 EEXIST" in summary
    assert "rip=" not in summary


def test_the_commands_status_is_ours(vmm: Path) -> None:
    kvmfs("trace", "-c", "--", "sh", "-c", "exit 7", status=7)
    assert "KVM_CREATE_VM" not in kvmfs("trace", "-c", "--", "true").stderr


def test_a_vm_that_runs_is_traced_from_now_on(own: Client, tmp_path: Path) -> None:
    own.tell("out")
    path = tmp_path / "trace.json"
    with subprocess.Popen([*KVMFS, "trace", "--json", "-o", str(path), own.vm.name], cwd=ROOT) as tracer:
        wait_until(path.exists, "the tracer begins")
        own.tell("out")
        second = subprocess.run(
            [*KVMFS, "trace", own.vm.name], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
        )
        assert "being traced" in second.stderr
        own.tell("fail")
        own.end()
        assert tracer.wait(60) == 0
    names = [event["name"] for event in load(path)]
    assert names == ["KVM_EXIT_IO", "KVM_CREATE_VCPU"]


def test_a_trace_that_ends_leaves_the_vm_alone(own: Client, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for _ in range(2):
        with subprocess.Popen([*KVMFS, "trace", "--json", "-o", str(path), own.vm.name], cwd=ROOT) as tracer:
            wait_until(path.exists, "the tracer begins")
            own.tell("out")
            tracer.terminate()
        assert own.tell("out") == "0x10"
        path.unlink()


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("KVM_CREATE_VM=ENOMEM", "KVM_CREATE_VM: Cannot allocate memory"),
        ("KVM_CREATE_GUEST_MEMFD=EMFILE", "KVM_CREATE_GUEST_MEMFD: Too many open files"),
        ("KVM_SET_USER_MEMORY_REGION2=ENOMEM@2", "slot 1: Cannot allocate memory"),
        ("KVM_SET_SREGS=EINTR@1+", "KVM_SET_SREGS: Interrupted system call"),
    ],
)
def test_an_ioctl_that_is_to_fail_does(vmm: Path, rule: str, said: str) -> None:
    assert said in kvmfs("run", "--fail", rule, "--", vmm, status=1).stderr


def test_a_rule_that_is_none_is_refused(vmm: Path) -> None:
    for rule in ("KVM_RUN=EINTR", "KVM_FOO=EINTR", "KVM_CREATE_VM=EFOO", "KVM_CREATE_VM", "KVM_CREATE_VM=EIO@0"):
        kvmfs("run", "--fail", rule, "--", vmm, status=125)


def test_golden_traces_of_selftests(selftests_dir: Path, tmp_path: Path) -> None:
    """A program that is not ours: its exits are the same in two runs."""
    program = selftests_dir / "x86_64" / "private_mem_kvm_exits_test"
    for name in ("a", "b"):
        kvmfs("trace", "--json", "-o", tmp_path / name, "--", program)
    kvmfs("compare", tmp_path / "a", tmp_path / "b")
    exits = [event["name"] for event in load(tmp_path / "a") if event["kind"] == "exit"]
    assert "KVM_EXIT_MEMORY_FAULT" in exits
