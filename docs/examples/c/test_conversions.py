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
