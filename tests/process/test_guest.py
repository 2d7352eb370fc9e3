"""The processes with the real core between them: guests that write to a port, guests that never stop."""

from __future__ import annotations

import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from kvmfs.abi.exits import Exit
from kvmfs.abi.run import KVM_EXIT_IO_OUT
from tests.process.guests import LOAD, Guest
from tests.process.harness import (
    Broker,
    Talk,
    client,
    errno_of,
    kvm_run,
    open_kvm,
    run,
    wait_until,
)

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(900)]

OUT_LOOP = bytes.fromhex("b0 2a e6 10 fe c0 eb fa")  # mov al,42; again: out 16,al; inc al; jmp again
SPIN = bytes.fromhex("eb fe")  # jmp .


def test_port_writes(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), OUT_LOOP)
        for value in range(42, 142):
            assert kvm_run(guest.vcpu) == 0
            assert guest.run.exit_reason == Exit.IO
            assert (guest.run.io.direction, guest.run.io.port) == (KVM_EXIT_IO_OUT, 16)
            assert guest.page[guest.run.io.data_offset] == value

    run(real.path, body)


def test_the_guest_sees_what_the_client_writes(real: Broker) -> None:
    """Its memory was anonymous and private; from KVM_SET_USER_MEMORY_REGION on both have the same pages."""

    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), OUT_LOOP)
        assert kvm_run(guest.vcpu) == 0
        guest.memory[LOAD + 3] = 0x77  # another port
        assert kvm_run(guest.vcpu) == 0
        assert guest.run.io.port == 0x77

    run(real.path, body)


def test_a_signal_ends_a_guest_that_does_not(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), SPIN)
        signal.signal(signal.SIGALRM, lambda *_: None)
        for _ in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            code = errno_of(kvm_run, guest.vcpu)
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert code == errno.EINTR
            assert guest.run.exit_reason == Exit.INTR
        assert guest.rip == LOAD

    run(real.path, body)


def test_immediate_exit(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), SPIN)
        guest.run.immediate_exit = 1
        assert errno_of(kvm_run, guest.vcpu) == errno.EINTR
        assert guest.rip == LOAD

    run(real.path, body)


def test_guests_side_by_side(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        guests = [Guest(kvm, OUT_LOOP) for _ in range(6)]
        seen: list[list[int]] = [[] for _ in guests]

        def go(guest: Guest, values: list[int]) -> None:
            for _ in range(100):
                assert kvm_run(guest.vcpu) == 0
                values.append(guest.page[guest.run.io.data_offset])

        threads = [threading.Thread(target=go, args=pair) for pair in zip(guests, seen, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [list(range(42, 142))] * len(guests)

    run(real.path, body)


@pytest.mark.parametrize("victim", ["client", "worker"])
def test_killed_in_a_guest_that_does_not_stop(real: Broker, victim: str) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), SPIN)
        talk.say("runs")
        talk.say(errno_of(kvm_run, guest.vcpu))

    with client(real.path, body) as process:
        process.hear()
        wait_until(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("16 "), "the guest runs")
        if victim == "client":
            process.kill()
            assert os.WTERMSIG(process.wait()) == signal.SIGKILL
        else:
            os.kill(real.workers[0], signal.SIGKILL)
            assert process.hear() == errno.EIO
            process.result()
    wait_until(lambda: not real.workers, "the worker ends")
