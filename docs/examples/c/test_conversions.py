"""Tests of a VMM in C. Copy this folder, put your VMM in the place of conversions.c, and say what it should do.

pip install kvmfs pytest && make check
"""

import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PRIVATE = 8  # KVM_MEMORY_EXIT_FLAG_PRIVATE and KVM_MEMORY_ATTRIBUTE_PRIVATE


@pytest.fixture(scope="module")
def vmm():
    subprocess.run(["make", "-s", "-C", HERE, "conversions"], check=True)
    return HERE / "conversions"


def test_the_guest_finishes(kvmfs_run, vmm):
    result = kvmfs_run(vmm)
    assert result.status == 0, result
    assert result.stdout.endswith("guest: done\n")


def test_memory_faults_are_where_they_should_be(kvmfs_run, vmm):
    faults = kvmfs_run(vmm).faults
    assert [fault["gpa"] for fault in faults] == [0x402000, 0x600000]
    assert all(fault["flags"] == PRIVATE for fault in faults)


def test_each_fault_is_answered_before_the_guest_goes_on(kvmfs_run, vmm):
    trace = kvmfs_run(vmm).trace
    for index, event in enumerate(trace):
        if event["name"] == "KVM_EXIT_MEMORY_FAULT":
            answers = []
            for later in trace[index + 1 :]:
                if later["kind"] == "exit":
                    break
                answers.append(later["name"])
            assert set(answers) & {"KVM_SET_MEMORY_ATTRIBUTES", "KVM_SET_USER_MEMORY_REGION2"}


def test_shared_again_means_that_private_pages_are_given_back(kvmfs_run, vmm):
    trace = kvmfs_run(vmm).trace
    (punched,) = (event["in"] for event in trace if event["kind"] == "fallocate")
    assert (punched["offset"], punched["len"]) == (0, 4 * 4096)


def test_the_exits_are_as_ever(kvmfs_run, kvmfs_golden, vmm):
    kvmfs_golden(kvmfs_run(vmm))  # golden/test_the_exits_are_as_ever.json; pytest --kvmfs-update records it anew


@pytest.mark.kvmfs_fail("KVM_SET_MEMORY_ATTRIBUTES=ENOMEM@3")
def test_a_conversion_that_fails_is_reported(kvmfs_run, vmm):
    result = kvmfs_run(vmm)
    assert result.status == 1
    assert "KVM_SET_MEMORY_ATTRIBUTES: Cannot allocate memory" in result.stderr


@pytest.mark.kvmfs_fail("FALLOCATE=ENOSPC")
def test_private_memory_that_cannot_be_given_back_is_reported(kvmfs_run, vmm):
    assert "fallocate: No space left on device" in kvmfs_run(vmm).stderr


# Faults on purpose (fault-injection.md): CONVERTED is at 0x200000, shared at first.


@pytest.mark.kvmfs_inject("memory-fault:gpa=0x200000,access=write")
def test_a_fault_for_nothing_ends_it(kvmfs_run, vmm):
    result = kvmfs_run(vmm)
    assert result.status == 1  # a better VMM would just go on
    assert result.stdout.endswith("memory fault: gpa 0x200000 size 0x1000 flags 0\n")
    (injected,) = result.injections
    assert (injected["rule"], injected["ordinal"], injected["rip"]) == (1, 1, 0x1000)


@pytest.mark.kvmfs_inject("memory-fault:memory=private,times=2")
def test_a_private_fault_for_nothing_is_taken_for_a_missing_slot(kvmfs_run, vmm):
    assert "nothing is there: a slot with private memory" in kvmfs_run(vmm).stdout


@pytest.mark.kvmfs_inject("other-kind:memory=private")
def test_the_guest_wants_the_other_kind(kvmfs_run, vmm):
    result = kvmfs_run(vmm)
    assert result.status == 1
    assert result.faults == [{"flags": 0, "gpa": 0x200000, "size": 4096}]


@pytest.mark.kvmfs_inject("hwpoison:memory=private")
def test_poisoned_private_memory_is_reported(kvmfs_run, vmm):
    result = kvmfs_run(vmm)
    assert (result.status, result.exits[-1]["errno"]) == (1, "EHWPOISON")
    assert "KVM_RUN: Memory page has hardware error" in result.stderr


@pytest.mark.kvmfs_inject("hwpoison:gpa=0x200000")
def test_poisoned_shared_memory_kills_who_has_no_handler(kvmfs_run, vmm):
    assert kvmfs_run(vmm).status == 128 + 7  # SIGBUS


@pytest.mark.kvmfs_inject("efault:gpa=0x402000,after=1")
def test_a_page_that_cannot_be_had_is_reported(kvmfs_run, vmm):
    assert "KVM_RUN: Bad address" in kvmfs_run(vmm).stderr


@pytest.mark.kvmfs_inject("slow.toml")
def test_slow_memory_changes_nothing_but_the_time(kvmfs_run, kvmfs_golden, vmm):
    result = kvmfs_run(vmm)
    assert len(result.injections) >= 2
    kvmfs_golden(result, "test_the_exits_are_as_ever")
