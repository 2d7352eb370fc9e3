"""Any of the three processes may die at any time; nobody hangs, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.run import Run
from tests.process import fakecore_commands as commands
from tests.process.harness import (
    Broker,
    Talk,
    client,
    create_vcpu,
    create_vm,
    errno_of,
    kvm_run,
    map_run,
    new_vcpu,
    open_kvm,
    run,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


def blocked_in_run(path: Path, talk: Talk) -> None:
    """A client that says "running" and goes into a KVM_RUN that does not end by itself; then it waits for a word."""
    kvm = open_kvm(path)
    vcpu = create_vcpu(create_vm(kvm))
    struct.pack_into("<Q", map_run(vcpu), Run.cr8.offset, commands.BLOCK)
    talk.say("running")
    talk.say(errno_of(kvm_run, vcpu))
    talk.hear()
    talk.say([errno_of(kvm_run, vcpu), errno_of(fcntl.ioctl, vcpu, ioctls.KVM_GET_REGS.number, bytearray(144))])
    assert kvm_run(create_vcpu(create_vm(kvm))) == 0
    talk.hear()
    os.close(vcpu)


def waits_in_ioctl(pid: int) -> bool:
    return Path(f"/proc/{pid}/syscall").read_text().startswith("16 ")


def kill_workers(broker: Broker) -> None:
    """Those that /proc shows: it may miss some while others come and go."""
    for worker in broker.workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_client_killed_in_a_run(broker: Broker) -> None:
    with client(broker.path, blocked_in_run) as process:
        process.hear()
        wait_until(lambda: waits_in_ioctl(process.pid), "the client runs its vCPU")
        process.kill()
        assert os.WTERMSIG(process.wait()) == signal.SIGKILL
    wait_until(lambda: not broker.workers, "the worker ends")


def test_client_killed_while_it_makes_vms(broker: Broker) -> None:
    """At any point: the kill comes at another one each time."""

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        talk.say("begins")
        while True:
            create_vcpu(create_vm(kvm))

    for _ in range(15):
        with client(broker.path, body) as process:
            process.hear()
            process.kill()
            process.wait()
    wait_until(lambda: not broker.workers, "all workers end")
    assert run(broker.path, lambda path, talk: kvm_run(new_vcpu(path))) == 0


def test_worker_killed_in_a_run(broker: Broker) -> None:
    with client(broker.path, blocked_in_run) as process:
        process.hear()
        wait_until(lambda: waits_in_ioctl(process.pid), "the client runs its vCPU")
        os.kill(broker.workers[0], signal.SIGKILL)
        assert process.hear() == errno.EIO
        process.talk.say("again")
        assert process.hear() == [errno.EIO] * 2
        process.talk.say("close")
        process.result()
    assert "died" in broker.log


def test_worker_that_crashes_leaves_a_trace_in_the_log(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        struct.pack_into("<Q", map_run(vcpu), Run.cr8.offset, commands.CRASH)
        assert errno_of(kvm_run, vcpu) == errno.EIO

    run(broker.path, body)
    wait_until(lambda: "Segmentation fault" in broker.log, "the log tells of the crash")


def test_workers_killed_while_they_make_vcpus(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> set[int]:
        kvm = open_kvm(path)
        codes = set()
        for _ in range(10):
            try:
                vm = create_vm(kvm)
            except OSError as error:
                codes.add(error.errno or 0)
                continue
            talk.say("made")
            while not (code := errno_of(lambda vm=vm: os.close(create_vcpu(vm)))):
                pass
            codes.add(code)
            os.close(vm)
        talk.say("done")
        return codes

    with client(broker.path, body) as process:
        while process.hear() == "made":
            wait_until(lambda: kill_workers(broker) or process.talk.has_word, "the client notices")
        assert process.result() == {errno.EIO}


@pytest.mark.parametrize("pages", ["passthrough", "cached"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_vms_outlive_the_broker(own_broker: Callable[..., Broker], number: int, pages: str) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vm = create_vm(kvm)
        vcpu = create_vcpu(vm)
        map_run(vcpu)
        talk.say("made")
        talk.hear()
        assert [kvm_run(vcpu) for _ in range(10)] == [0] * 10
        assert errno_of(create_vcpu, vm, 1) == errno.EIO
        assert errno_of(create_vm, kvm) in (errno.ENOTCONN, errno.ECONNABORTED)
        talk.say("still runs")
        talk.hear()

    broker = own_broker(pages=pages)
    with client(broker.path, body) as process:
        process.hear()
        (worker,) = wait_until(lambda: broker.workers, "there is a worker")
        broker.process.send_signal(number)
        broker.process.wait()
        process.talk.say("go on")
        process.hear()
        assert Path(f"/proc/{worker}").exists()
        process.talk.say("go on")
        process.result()


def test_broker_dies_while_clients_make_vms(own_broker: Callable[..., Broker]) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        talk.say("begins")
        while not (code := errno_of(lambda: os.close(create_vcpu(create_vm(kvm))))):
            pass
        assert (
            code
        )  # mostly EIO or ENOTCONN; a thread that the broker held when it died comes back with whatever it had

    for _ in range(3):
        broker = own_broker()
        with client(broker.path, body) as one, client(broker.path, body) as other:
            one.hear()
            other.hear()
            run(broker.path, lambda path, talk: kvm_run(new_vcpu(path)))
            broker.process.kill()
            broker.process.wait()
            one.result()
            other.result()


def test_zygote_dies(own_broker: Callable[..., Broker]) -> None:
    broker = own_broker()

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vm = create_vm(kvm)
        talk.say("made")
        talk.hear()
        assert errno_of(create_vm, kvm) == errno.EIO
        assert kvm_run(create_vcpu(vm)) == 0

    with client(broker.path, body) as process:
        process.hear()
        os.kill(broker.zygote or 0, signal.SIGKILL)
        wait_until(lambda: "no new VMs" in broker.log, "the broker has noticed")
        process.talk.say("go on")
        process.result()


def test_signal_while_the_vcpu_is_being_compiled(own_broker: Callable[..., Broker], tmp_path: Path) -> None:
    """KVM_CREATE_VM that waits for the code cache can be interrupted, and killed."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    os.environ["KVMFS_TEST_GATE"] = str(gate)
    try:
        broker = own_broker("tests.process.slowcore")
    finally:
        del os.environ["KVMFS_TEST_GATE"]

    def body(path: Path, talk: Talk) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        kvm = open_kvm(path)
        talk.say("begins")
        assert errno_of(create_vm, kvm) == errno.EINTR
        talk.say("interrupted")
        talk.say(errno_of(create_vm, kvm))

    with client(broker.path, body) as process:
        process.hear()
        wait_until(lambda: waits_in_ioctl(process.pid), "the client waits for its VM")
        process.kill(signal.SIGUSR1)
        assert process.hear() == "interrupted"
        wait_until(lambda: waits_in_ioctl(process.pid), "the client waits for its VM")
        process.kill()
        process.wait()
    assert "waits for the vCPU's code" in broker.log
    gate.write_text("go")
    assert run(broker.path, lambda path, talk: kvm_run(new_vcpu(path))) == 0
