"""What remains to a worker that has been taken over."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kvmfs.abi import ioctls
from tests.process import fakecore_commands as commands
from tests.process.harness import Broker, Talk, client, create_vcpu, create_vm, errno_of, kvm_run, new_vm, open_kvm, run

pytestmark = pytest.mark.usefixtures("no_leaks")

NEEDED = {"read the client": "EFAULT", "map memory": None, "make a memfd": None}


def ask(vm: int, command: int) -> dict[str, Any]:
    answers = bytearray(4096)
    length = fcntl.ioctl(vm, command | 3 << 30 | len(answers) << 16, answers)
    return dict(json.loads(answers[:length]))


def probe(path: Path, talk: Talk) -> dict[str, Any]:
    answers = ask(new_vm(path), commands.PROBE)
    talk.say("probed")
    talk.hear()
    return answers


def test_no_way_out(broker: Broker) -> None:
    with client(broker.path, probe) as process:
        process.hear()
        (worker,) = broker.workers
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert int(status["CapPrm"], 16) & ~(1 << 19) == 0  # CAP_SYS_PTRACE at most
        process.talk.say("go on")
        answers = process.result()
    for attempt, expected in NEEDED.items():
        assert answers.pop(attempt) == expected, attempt
    assert len(answers) > 15
    assert {attempt: got for attempt, got in answers.items() if got not in ("EPERM", "ENOENT", "ENOSYS")} == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_worker_is_its_client_s_user(broker: Broker) -> None:
    """And it reaches a client that is not dumpable, as one is that has changed its user."""
    nobody = 65534

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
        vcpu = create_vcpu(create_vm(kvm))
        talk.say("made")
        talk.hear()
        sent, got = bytes(range(144)), bytearray(144)
        fcntl.ioctl(vcpu, ioctls.KVM_SET_REGS.number, sent)
        fcntl.ioctl(vcpu, ioctls.KVM_GET_REGS.number, got)
        assert got == sent
        assert kvm_run(vcpu) == 0

    with client(broker.path, body) as process:
        process.hear()
        (worker,) = broker.workers
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines())
        assert status["Uid"].split() == status["Gid"].split() == [str(nobody)] * 4
        assert status["Groups"].split() == []
        process.talk.say("go on")
        process.result()


def test_the_broker_gives_a_worker_what_is_its_own_and_no_more(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> dict[str, Any]:
        kvm = open_kvm(path)
        vm = create_vm(kvm)
        answers = ask(vm, commands.LIE)
        assert kvm_run(create_vcpu(vm)) == 0
        assert kvm_run(create_vcpu(create_vm(kvm))) == 0
        return answers

    answers = run(broker.path, body)
    assert len(answers) == 17
    assert [question for question, answer in answers.items() if answer in (None, "a descriptor")] == []


def test_a_worker_that_talks_nonsense_dies_alone(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vm, other = create_vm(kvm), create_vm(kvm)
        assert errno_of(fcntl.ioctl, vm, commands.NONSENSE) in (errno.EDOM, errno.EIO)
        while errno_of(fcntl.ioctl, vm, 0xAEFF) == errno.ENOTTY:
            pass
        assert errno_of(fcntl.ioctl, vm, 0xAEFF) == errno.EIO
        assert kvm_run(create_vcpu(other)) == 0

    run(broker.path, body)
