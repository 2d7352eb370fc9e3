"""Counters, registers, memory and faults of a VM that runs, seen by other processes; and who may see them."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmfs.inspect import finder
from kvmfs.inspect.vm import Inspected
from kvmfs.kvm import inspection
from tests.inspect.conftest import Client
from tests.process.harness import wait_until
from tests.support.paths import ROOT, missing


def kvmfs(*words: str) -> subprocess.CompletedProcess[str]:
    return _python("-m", "kvmfs", *words)


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def look(client: Client) -> Inspected:
    broker, vm = finder.find(client.vm.name)
    with broker:
        return Inspected(broker.inspection(vm.name))


def test_counters_follow_the_guest(client: Client) -> None:
    with look(client) as seen:
        (vcpu,) = seen.vcpus
        before = vcpu.statistics
        assert (vcpu.id, vcpu.state) == (0, "runnable")
        for _ in range(3):
            assert client.tell("out") == "0x10"
        after = vcpu.statistics
        counted = {name: after[name] - before[name] for name in after}
        assert (counted["io_exits"], counted["userspace_exits"]) == (3, 3)
        assert counted["instructions"] in (7, 8)  # MOV and OUT three times, a JMP between them
        assert vcpu.registers["rax"] == 0x55
        assert vcpu.registers["cs"]["selector"] == 8
        assert seen.statistics["io_exits"] == after["io_exits"]


def test_a_guest_that_never_leaves_is_seen_to_work(own: Client) -> None:
    own.tell("spin")
    with look(own) as seen:
        (vcpu,) = seen.vcpus
        wait_until(lambda: vcpu.state == "in guest", "the guest is entered")
        some = vcpu.statistics["instructions"]
        wait_until(lambda: vcpu.statistics["instructions"] > some + 10_000, "the guest works")


def test_memory_faults_are_logged(own: Client) -> None:
    with look(own) as seen:
        assert not list(seen.faults())
        assert own.tell("fault") == "0x200000"
        *before, fault = seen.faults()
        assert (fault.vcpu, fault.gva, fault.gpa, fault.access, fault.private) == (0, 0x200000, 0x200000, "write", True)
        assert (fault.outcome, fault.slot, fault.rip) == ("memory fault: no slot", None, 0x1100)
        assert [other.outcome for other in before] == ["page"] * len(before)
        assert (seen.statistics["memory_faults"], seen.statistics["pf_taken"]) == (1, fault.number)
        assert not list(seen.faults(after=fault.number))


def test_nobody_can_write_to_what_is_seen(client: Client) -> None:
    broker, vm = finder.find(client.vm.name)
    with broker:
        fd = broker.inspection(vm.name)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 4096)
        writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)  # root may open it again
        try:
            with pytest.raises(PermissionError):
                mmap.mmap(writable, 4096)
            with pytest.raises(PermissionError):
                os.pwrite(writable, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(writable, 0)
        finally:
            os.close(writable)
    finally:
        os.close(fd)


def test_ls_and_show_tell_of_it_in_json(own: Client) -> None:
    own.tell("out")
    (listed,) = (vm for vm in json.loads(kvmfs("ls", "--json").stdout) if vm["pid"] == own.pid)
    assert listed["command"] == "vmm"
    assert listed["stats"]["io_exits"] == 1
    shown = json.loads(kvmfs("show", "--json", listed["name"]).stdout)
    assert [(slot["gpa"], slot["size"], slot["guest_memfd"]) for slot in shown["slots"]] == [
        (0, 2 << 20, None),
        (2 << 20, 2 << 20, "gmem0"),
    ]
    assert shown["guest_memfd"] == [{"name": "gmem0", "size": 2 << 20, "allocated": 0}]
    assert shown["vcpus"][0]["exits"] == {"IO": 1}
    own.tell("fault")
    shown = json.loads(kvmfs("show", "--json", str(own.pid)).stdout)
    assert shown["attributes"] == [{"gpa": 2 << 20, "size": 2 << 20, "attributes": 8}]
    assert shown["faults"][-1]["gpa"] == 2 << 20
    assert shown["rules"] == []


def test_tables_for_people(own: Client) -> None:
    own.tell("fault")
    assert own.vm.name in kvmfs("ls").stdout
    output = kvmfs("show", own.vm.name).stdout
    for word in ("memslots", "memory attributes", "guest_memfd", "last memory faults", "0x200000", "1 MEMORY_FAULT"):
        assert word in output


def test_top_has_rates(own: Client) -> None:
    own.tell("spin")
    done = kvmfs("top", "--json", "-n", "2", "-d", "0.2")
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 2
    rates = [vm["rates"]["instructions"] for look in looks for vm in look["vms"] if vm["pid"] == own.pid]
    assert max(rates) > 10_000
    assert "MIPS" in kvmfs("top", "-n", "1", "-d", "0.1").stdout


def test_another_users_vm_is_not_to_be_seen(client: Client) -> None:
    name = client.vm.name
    assert json.loads(_as_nobody("ls", "--json").stdout) == []
    refused = _as_nobody("show", name)
    assert refused.returncode == 1
    assert "no such VM, or not yours" in refused.stderr


def _as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    if os.geteuid():
        missing("root's rights, to become somebody else")
    return _python("-m", "tests.cli.unprivileged", sys.executable, "-m", "kvmfs", *words)


def test_a_vm_is_gone_with_its_client(own: Client) -> None:
    name = own.vm.name
    seen = look(own)
    own.end()
    wait_until(lambda: name not in [vm.name for vm in finder.vms()], "the VM is gone")
    with seen:  # what is mapped stays readable
        assert seen.vcpus[0].id == 0
    assert kvmfs("show", name).returncode == 1


def test_what_is_no_inspection_file_is_refused(tmp_path: Path) -> None:
    fd = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, inspection.SIZE)
    with pytest.raises(ValueError, match="not an inspection file"):
        Inspected(fd)  # it could shrink
