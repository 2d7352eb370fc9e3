"""Tests of a VMM in Python: as a program, and from inside. Copy this folder, and put your VMM in the place of vmm.py.

pip install kvmfs pytest && python3 -m pytest
"""

import errno
import sys
from pathlib import Path

import pytest
from vmm import HELLO, Machine

VMM = Path(__file__).with_name("vmm.py")


def test_as_a_program(kvmfs_run):
    result = kvmfs_run(sys.executable, VMM)
    assert result.status == 0, result
    assert result.stdout == "hello\n"
    assert [event["name"] for event in result.exits] == ["KVM_EXIT_IO"] * 6 + ["KVM_EXIT_HLT"]
    assert bytes.fromhex("".join(event["details"]["data"] for event in result.exits[:-1])) == b"hello\n"


@pytest.mark.kvmfs_fail("KVM_CREATE_VCPU=ENOMEM")
def test_no_vcpu_is_an_error_that_is_told(kvmfs_run):
    result = kvmfs_run(sys.executable, VMM)
    assert result.status == 1
    assert f"[Errno {errno.ENOMEM}]" in result.stderr


def test_from_inside(kvmfs_device):
    machine = Machine(kvmfs_device, HELLO)
    try:
        assert machine.run() == "hello\n"
    finally:
        machine.close()
