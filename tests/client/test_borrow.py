"""A thread of a client, borrowed to put a descriptor into its process."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmfs.client import borrow as borrow_module
from kvmfs.client import memory
from kvmfs.client.borrow import Borrow
from kvmfs.client.fds import status_of
from kvmfs.client.inject import Injection
from tests.client.device import Client, Device
from tests.client.expect import raises_errno
from tests.support.paths import ROOT

Compiled = Callable[..., Path]


@pytest.fixture
def hello() -> Iterator[int]:
    """A memfd that says hello."""
    fd = os.memfd_create("hello")
    os.write(fd, b"hello")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("variant", ["pie", "static"])
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("-", id="main"),
        pytest.param("t", id="thread"),
        pytest.param("tu", id="own-descriptor-table"),
        pytest.param("tx", id="leader-exited"),
        pytest.param("v", id="vforked"),
        pytest.param("s", id="seccomp"),
    ],
)
def test_installs_the_lowest_fd_and_leaves_no_trace(
    device: Device, compiled: Compiled, hello: int, flags: str, variant: str
) -> None:
    client = Client(device, compiled("install", variant), 10, flags)
    for _ in range(10):
        with device.next().stopped() as borrow:
            borrow.finish(borrow.install(hello))
    assert client.result() == (0, "done\n")


def test_in_a_pid_namespace_below_ours(device: Device, compiled: Compiled, hello: int) -> None:
    client = Client(device, compiled("install"), 2, "t", before=("unshare", "--pid", "--fork"))
    for _ in range(2):
        with device.next().stopped() as borrow:
            borrow.finish(borrow.install(hello))
    assert client.result() == (0, "done\n")


def test_signals_neither_interrupt_nor_get_lost(device: Device, compiled: Compiled, hello: int) -> None:
    rounds = 100
    client = Client(device, compiled("storm"), rounds)
    for _ in range(rounds):
        with device.next().stopped() as borrow:
            borrow.finish(borrow.install(hello))
    assert client.result() == (0, "0 interrupted\n")


@pytest.mark.parametrize("how", ["caught", "blocked"])
def test_a_memory_error_is_told_as_the_kernel_does(device: Device, compiled: Compiled, how: str) -> None:
    client = Client(device, compiled("poison"), how)
    with device.next().stopped() as borrow:
        borrow.poison(0x7F00_1234_5000)
        borrow.finish(-errno.EINTR)
    told = "code 4 address 0x7f0012345000 width 12"  # BUS_MCEERR_AR
    assert client.result() == (0, f"result {-errno.EINTR}\n{told}\n")


def test_result_is_what_finish_says(device: Device, compiled: Compiled) -> None:
    client = Client(device, compiled("once"), "-")
    with device.next().stopped() as borrow:
        borrow.finish(-errno.E2BIG)
    assert client.result() == (0, f"result {-errno.E2BIG}\n")


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4])
def test_emfile_just_where_the_client_would_have_it(device: Device, compiled: Compiled, hello: int, free: int) -> None:
    client = Client(device, compiled("once"), "limit", free)
    with device.next().stopped() as borrow:
        if free:
            borrow.finish(borrow.install(hello))
        else:
            with raises_errno(errno.EMFILE):
                borrow.install(hello)
            borrow.finish(-errno.EMFILE)
    status, text = client.result()
    _, result, _, lowest = text.split()
    assert (status, int(result)) == (0, int(lowest) if free else -errno.EMFILE)


def test_traced_client_is_busy(device: Device, compiled: Compiled) -> None:
    client = Client(device, compiled("once"), "traced")
    call = device.next()
    with raises_errno(errno.EBUSY):
        Borrow.seize(call.tid)
    call.answer(-errno.EBUSY)
    assert client.result() == (0, f"result {-errno.EBUSY}\n")


def test_i386_system_call_is_refused(device: Device, compiled: Compiled, hello: int) -> None:
    client = Client(device, compiled("once"), "i386")
    call = device.next()
    with Borrow.seize(call.tid) as borrow:
        with raises_errno(errno.ENOSYS):
            borrow.stop_after(lambda: call.answer(-errno.EIO))
        with raises_errno(errno.ENOSYS):
            borrow.install(hello)
        borrow.finish(-errno.ENOSYS)
    assert client.result() == (0, f"result {-errno.ENOSYS}\n")


def test_abandoned_before_the_answer(device: Device, compiled: Compiled) -> None:
    client = Client(device, compiled("once"), "-")
    call = device.next()
    for _ in range(20):  # each can seize it anew at once
        Borrow.seize(call.tid).abandon()
    call.answer(3)
    assert client.result() == (0, "result 3\n")


def test_abandoned_after_the_answer(device: Device, compiled: Compiled, hello: int) -> None:
    client = Client(device, compiled("once"), "-")
    borrow = device.next().stopped()
    borrow.abandon()
    borrow.abandon()
    with raises_errno(errno.ESRCH):
        borrow.install(hello)
    assert client.result() == (0, f"result {-errno.EIO}\n")


def test_failing_answer_leaves_the_client_waiting_for_a_better_one(device: Device, compiled: Compiled) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    client = Client(device, compiled("once"), "-")
    call = device.next()
    with Borrow.seize(call.tid) as borrow, pytest.raises(ZeroDivisionError):
        borrow.stop_after(fail)
    call.answer(4)
    assert client.result() == (0, "result 4\n")


def test_gives_up_on_a_client_that_does_not_stop(
    device: Device, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrow_module, "PATIENCE", 0.2)
    client = Client(device, compiled("once"), "-")
    call = device.next()
    with Borrow.seize(call.tid) as borrow, raises_errno(errno.EIO):
        borrow.stop_after(lambda: None)
    call.answer(5)  # it was not forgotten: it stops now, and is let go
    assert client.result() == (0, "result 5\n")


def test_client_that_nobody_finishes_is_let_go(
    device: Device, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrow_module, "LEASE", 0.1)
    client = Client(device, compiled("once"), "-")
    borrow = device.next().stopped()
    assert client.result() == (0, f"result {-errno.EIO}\n")
    with raises_errno(errno.ESRCH):
        borrow.finish(0)


def test_our_sudden_death_leaves_the_client_intact(device: Device, compiled: Compiled) -> None:
    client = Client(device, compiled("once"), "-")
    call = device.next()
    dying = """
        import os, sys
        from kvmfs.client.borrow import Borrow
        from kvmfs.wire import reply
        tid, fuse, unique = map(int, sys.argv[1:])
        borrow = Borrow.seize(tid)
        borrow.stop_after(lambda: os.write(fuse, reply.ioctl(unique, -5)))
        borrow.install(0)
        os._exit(0)
    """
    fuse = device.connection.fileno()
    words = [sys.executable, "-c", textwrap.dedent(dying), *map(str, (call.tid, fuse, call.unique))]
    subprocess.run(words, pass_fds=[fuse], cwd=ROOT, check=True, stdin=subprocess.DEVNULL, timeout=20)
    assert client.result() == (0, f"result {-errno.EIO}\n")


def test_group_stop_is_kept(device: Device, compiled: Compiled, hello: int) -> None:
    client = Client(device, compiled("install"), 1, "-")
    call = device.next()
    with call.stopped() as borrow:
        os.kill(call.tid, signal.SIGSTOP)
        number = borrow.install(hello)
        borrow.finish(number)
    while not status_of(call.tid)["State"].startswith("T"):  # nobody but its parent could wait for that
        os.sched_yield()
    os.kill(call.tid, signal.SIGCONT)
    assert client.result() == (0, "done\n")


@pytest.mark.parametrize(("filters", "may"), [("S", True), ("Ss", False)])
def test_from_under_a_seccomp_filter(device: Device, compiled: Compiled, hello: int, filters: str, may: bool) -> None:
    """None can be lifted then: who has no more filters than we have, as in a container, is borrowed all the same."""
    client = Client(device, compiled("install"), 1, filters)
    call = device.next()
    confined = """
        import ctypes, os, struct, sys
        from kvmfs.client.borrow import Borrow
        from kvmfs.wire import reply
        tid, fuse, unique, hello = map(int, sys.argv[1:])
        allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
        program = ctypes.create_string_buffer(struct.pack("<H6xQ", 1, ctypes.addressof(allow)))
        assert not ctypes.CDLL(None).prctl(22, 2, program)
        with Borrow.seize(tid) as borrow:
            borrow.stop_after(lambda: os.write(fuse, reply.ioctl(unique, -5)))
            borrow.finish(borrow.install(hello))
    """
    fuse = device.connection.fileno()
    words = [sys.executable, "-c", textwrap.dedent(confined), *map(str, (call.tid, fuse, call.unique, hello))]
    done = subprocess.run(
        words, pass_fds=[fuse, hello], cwd=ROOT, stdin=subprocess.DEVNULL, timeout=20, capture_output=True, text=True
    )
    if may:
        assert done.returncode == 0, done.stderr
        assert client.result() == (0, "done\n")
    else:
        assert "seccomp filter" in done.stderr.splitlines()[-1]
        call.answer(-errno.EPERM)
        assert client.result()[0] == 1


GETPID = 39
SYSTEM_CALLS_OF_INSTALL = 5
STEPS = ["waiting", "seized", "stopped", *range(SYSTEM_CALLS_OF_INSTALL), "installed"]


@pytest.mark.parametrize("how", ["alone", "with a thread that cannot die yet"])
@pytest.mark.parametrize("step", STEPS)
def test_client_killed_at_any_step(
    device: Device, compiled: Compiled, hello: int, step: str | int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(device, compiled("once"), "-" if how == "alone" else "wait")
    call, waiting = device.next_of(1 if how == "alone" else 2)
    numbers: list[int] = []
    original = Injection.syscall

    def syscall(injection: Injection, number: int, *args: int) -> int:
        if len(numbers) == step:
            os.kill(call.tid, signal.SIGKILL)
        numbers.append(number)
        return original(injection, number, *args)

    def at(name: str) -> None:
        if name == step:
            os.kill(call.tid, signal.SIGKILL)

    monkeypatch.setattr(Injection, "syscall", syscall)
    at("waiting")
    with raises_errno(errno.ESRCH), Borrow.seize(call.tid) as borrow:
        at("seized")
        borrow.stop_after(lambda: call.answer(-errno.EIO))
        at("stopped")
        borrow.install(hello)
        assert len(numbers) == SYSTEM_CALLS_OF_INSTALL
        at("installed")
        borrow.finish(0)
    if waiting:
        waiting.answer(0)
    assert client.result()[0] == 128 + signal.SIGKILL  # its parent has learnt of its death


@pytest.mark.parametrize("how", ["exec by another thread", "Exec by the leader"])
def test_client_becomes_another_program(device: Device, compiled: Compiled, how: str) -> None:
    client = Client(device, compiled("once"), how)
    call = device.next()
    with raises_errno(errno.ESRCH), call.stopped() as borrow:
        memory.write(call.tid, call.argument, struct.pack("<q", 1))
        while True:  # the program takes a moment to be loaded
            borrow.syscall(GETPID)
    assert client.result() == (0, "executed\n")


def test_borrow_of_nobody() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with raises_errno(errno.ESRCH):
        Borrow.seize(process.pid)


def test_other_threads_are_not_disturbed(device: Device, compiled: Compiled, hello: int) -> None:
    client = Client(device, compiled("once"), "wait")
    call, waiting = device.next_of(2)
    assert waiting is not None
    with call.stopped() as borrow:
        borrow.finish(borrow.install(hello))
    waiting.answer(0)
    assert client.result()[0] == 0
    assert waiting.unique not in device.interruptions
