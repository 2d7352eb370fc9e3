"""Signals, interrupts and the vCPU mutex: who waits for whom, and who is let go."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.run import Run
from kvmfs.client.ptrace import Tracee
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
    new_vm,
    open_kvm,
    run,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("no_leaks")


def command(page: mmap.mmap, number: int) -> None:
    struct.pack_into("<Q", page, Run.cr8.offset, number)


def exit_reason(page: mmap.mmap) -> int:
    return int(struct.unpack_from("<I", page, Run.exit_reason.offset)[0])


class Runner:
    """A thread of a client in KVM_RUN."""

    def __init__(self, vcpu: int) -> None:
        self.errno = -1
        self.tid = 0
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(vcpu,))
        self._thread.start()
        self._begun.wait()

    def _run(self, vcpu: int) -> None:
        self.tid = threading.get_native_id()
        self._begun.set()
        self.errno = errno_of(kvm_run, vcpu)

    @property
    def in_ioctl(self) -> bool:
        """The kernel has it waiting in ioctl(2)."""
        try:
            return Path(f"/proc/self/task/{self.tid}/syscall").read_text().startswith("16 ")
        except (FileNotFoundError, ProcessLookupError):
            return False

    def interrupt(self) -> None:
        """A signal once it waits in the ioctl: later ones don't come before the first is handled."""
        wait_until(lambda: self.in_ioctl or not self._thread.is_alive(), "the thread is in its ioctl")
        if self._thread.is_alive():
            signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR1)

    def join(self) -> int:
        self._thread.join()
        return self.errno


@contextmanager
def handled(number: int) -> Iterator[None]:
    before = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(number, before)


def test_signal_interrupts_a_run(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        page = map_run(vcpu)
        reasons = set()
        with handled(signal.SIGUSR1):
            for _ in range(50):
                command(page, commands.BLOCK)
                runner = Runner(vcpu)
                runner.interrupt()
                assert runner.join() == errno.EINTR
                reasons.add(exit_reason(page))
                command(page, commands.RETURN)
                assert kvm_run(vcpu) == 0  # the interrupt is not left over
                reasons.discard(exit_reason(page))
        # A notification that nobody has received yet is interrupted before there is a run.
        assert reasons == {Exit.INTR} or (broker.pages == "seccomp" and not reasons)

    run(broker.path, body)


def test_ioctls_wait_for_a_run(broker: Broker) -> None:
    """vcpu->mutex: KVM_GET_REGS and a second KVM_RUN get their turn when the first KVM_RUN returns."""

    def body(path: Path, talk: Talk) -> None:
        vcpu = new_vcpu(path)
        page = map_run(vcpu)
        sent = array.array("B", bytes(range(144)))
        fcntl.ioctl(vcpu, ioctls.KVM_SET_REGS.number, sent)
        command(page, commands.BLOCK)
        with handled(signal.SIGUSR1):
            first = Runner(vcpu)
            wait_until(lambda: first.in_ioctl, "the first run waits")
            second = Runner(vcpu)
            got = array.array("B", bytes(144))
            reading = threading.Thread(target=fcntl.ioctl, args=(vcpu, ioctls.KVM_GET_REGS.number, got))
            reading.start()
            wait_until(lambda: second.in_ioctl, "the second run waits")
            second.interrupt()  # it waits for its turn first, as for a mutex
            first.interrupt()
            assert first.join() == second.join() == errno.EINTR
            reading.join()
        assert got == sent

    run(broker.path, body)


def test_more_runs_than_anybody_has_made_room_for(broker: Broker) -> None:
    """Every vCPU of a VM can be in KVM_RUN while other ioctls are served, and more vCPUs made."""

    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        with handled(signal.SIGUSR1):
            runners = []
            for number in range(12):
                vcpu = create_vcpu(vm, number)
                command(map_run(vcpu), commands.BLOCK)
                runners.append(Runner(vcpu))
                wait_until(lambda: runners[-1].in_ioctl, "the run waits")
            for runner in runners:
                runner.interrupt()
            assert {runner.join() for runner in runners} == {errno.EINTR}

    run(broker.path, body)


def test_threads_that_make_vcpus_together(broker: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        fds: list[int] = []
        threads = [threading.Thread(target=lambda n=n: fds.append(create_vcpu(vm, n))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(fds)) == 8
        assert [kvm_run(fd) for fd in fds] == [0] * 8

    run(broker.path, body)


def test_storm_of_signals(broker: Broker) -> None:
    """Descriptors are installed, and runs come back, whatever else happens to the thread."""

    def body(path: Path, talk: Talk) -> int:
        kvm = open_kvm(path)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        with handled(signal.SIGALRM):
            if broker.pages == "seccomp":  # kvmfs.notify.listener: EINTR without it
                signal.siginterrupt(signal.SIGALRM, False)
            try:
                vms = [create_vm(kvm) for _ in range(5)]
                vcpus = [create_vcpu(vm) for vm in vms for _ in range(4)]
                assert len(set(vms + vcpus)) == 25
                for vcpu in vcpus:
                    page = map_run(vcpu)
                    command(page, commands.BLOCK)
                    assert errno_of(kvm_run, vcpu) == errno.EINTR
                    command(page, commands.RETURN)
                    while errno_of(kvm_run, vcpu):
                        pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        return len(vcpus)

    assert run(broker.path, body) == 20


def test_traced_client_is_told_so(broker: Broker) -> None:
    if broker.pages == "seccomp":
        pytest.skip("it is given descriptors all the same")

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        talk.say(os.getpid())
        talk.hear()
        assert errno_of(create_vm, kvm) == errno.EBUSY
        talk.say("refused")
        talk.hear()
        create_vm(kvm)

    with client(broker.path, body) as process:
        tracee = Tracee(process.hear())
        process.talk.say("go on")
        assert process.hear() == "refused"
        assert "is traced by" in broker.log
        tracee.interrupt()
        tracee.detach(tracee.wait())
        process.talk.say("go on")
        process.result()


def test_signals_of_a_client_that_cannot_be_made_to_tell(own_broker: Callable[..., Broker]) -> None:
    """Its descriptors come without borrowing its threads; that a run has a signal is found by looking."""
    broker = own_broker(pages="seccomp")

    def body(path: Path, talk: Talk) -> None:
        vm = new_vm(path)
        talk.say(os.getpid())
        talk.hear()
        vcpu = create_vcpu(vm)
        talk.say("made")
        talk.hear()
        command(map_run(vcpu), commands.BLOCK)
        with handled(signal.SIGUSR1):
            runner = Runner(vcpu)
            runner.interrupt()
            assert runner.join() == errno.EINTR

    with client(broker.path, body) as process:
        tracee = Tracee(process.hear(), calls=False)
        process.talk.say("go on")
        assert process.hear() == "made"
        assert "every millisecond" in broker.log
        tracee.interrupt()
        tracee.detach(tracee.wait())
        process.talk.say("go on")
        process.result()
