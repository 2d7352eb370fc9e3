"""Private memory of a client becomes shared while the client uses it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmfs.client import adopt, maps, memory
from kvmfs.client.borrow import Borrow
from kvmfs.client.inject import Injection
from kvmfs.client.maps import Kind, backing
from kvmfs.client.userfault import Userfault
from tests.client.device import Call, Client, Device
from tests.client.expect import raises_errno

Compiled = Callable[..., Path]

both_ways = pytest.mark.parametrize("userfault", [True, False], ids=["userfaultfd", "stopped"])


@pytest.mark.parametrize("variant", ["pie", "static"])
@both_ways
def test_loses_nothing_while_threads_write(device: Device, compiled: Compiled, variant: str, userfault: bool) -> None:
    length = 8 << 20
    client = Client(device, compiled("adopt", variant), length)
    call, waiting = device.next_of(2)
    assert waiting
    address, asked = struct.unpack("<QQ", memory.read(call.tid, call.argument, 16))
    assert asked == length
    with call.stopped() as borrow:
        memfd = borrow.run(lambda injection: adopt.adopt(injection, address, length, userfault=userfault))
        pieces = backing(call.tid, address, length)
        borrow.finish(0)
    assert [(piece.length, piece.kind, piece.prot) for piece in pieces] == [
        (length - 8192, Kind.SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        (4096, Kind.SHARED, mmap.PROT_READ),
        (4096, Kind.SHARED, 0),
    ]
    assert [piece.offset for piece in pieces] == [0, length - 8192, length - 4096]
    window = mmap.mmap(memfd, length)
    for turn in range(100):
        call = device.next()
        assert call.argument == turn
        window[16:24] = struct.pack("<Q", struct.unpack_from("<Q", window, 8)[0] + 1)
        call.answer(0)
    assert waiting.unique not in device.interruptions
    waiting.answer(7)
    assert client.result() == (0, "done\n")
    written = length // 2 // (64 << 10) + 3 + 2
    assert os.fstat(memfd).st_blocks * 512 <= written * 4096  # nothing else was filled
    with pytest.raises(PermissionError):
        os.ftruncate(memfd, 0)
    assert fcntl.fcntl(memfd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    window.close()
    os.close(memfd)


REGION = 1 << 20


def test_a_private_mapping_of_a_file_keeps_what_the_client_reads(device: Device, compiled: Compiled) -> None:
    """Pages that were changed, and pages that were not even touched."""
    client = Client(device, compiled("region"), "f")
    call = device.next()
    with call.stopped() as borrow:
        os.close(borrow.adopt(call.argument, 2 * REGION))
        assert {piece.kind for piece in backing(call.tid, call.argument, 2 * REGION)} == {Kind.SHARED}
        borrow.finish(0)
    assert client.result() == (0, "result 0\n")


def test_what_a_file_has_is_copied_up_to_a_limit(
    device: Device, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "COPY_LIMIT", REGION - 1)
    client = Client(device, compiled("region"), "f")
    call = device.next()
    with call.stopped() as borrow:
        with raises_errno(errno.EFBIG):
            borrow.adopt(call.argument, 2 * REGION)
        borrow.finish(1)
    assert client.result() == (0, "result 1\n")


def test_holes_of_a_file_stay_holes(request: pytest.FixtureRequest) -> None:
    file = os.memfd_create("sparse")
    request.addfinalizer(lambda: os.close(file))
    os.ftruncate(file, 64 * mmap.PAGESIZE)
    os.pwrite(file, b"x", 3 * mmap.PAGESIZE + 5)
    os.pwrite(file, b"x", 8 * mmap.PAGESIZE - 1)
    pages = mmap.PAGESIZE
    assert list(adopt._extents(file, 0, 64 * pages)) == [(3 * pages, 4 * pages), (7 * pages, 8 * pages)]
    assert list(adopt._extents(file, 0, 7 * pages + 1)) == [(3 * pages, 4 * pages), (7 * pages, 8 * pages)]
    assert list(adopt._extents(file, 8 * pages, 64 * pages)) == []


@pytest.mark.parametrize("how", ["s", "u"])
def test_memory_that_cannot_be_adopted_is_left_alone(device: Device, compiled: Compiled, how: str) -> None:
    client = Client(device, compiled("region"), how)
    call = device.next()
    with call.stopped() as borrow:
        before = backing(call.tid, call.argument, 2 * REGION)
        with raises_errno(errno.EINVAL if how == "s" else errno.EBUSY):
            borrow.adopt(call.argument, 2 * REGION)
        assert backing(call.tid, call.argument, 2 * REGION) == before
        borrow.finish(1)
    assert client.result() == (0, "result 1\n")


def test_only_whole_pages(device: Device, compiled: Compiled) -> None:
    client = Client(device, compiled("region"), "-")
    call = device.next()
    with call.stopped() as borrow:
        for address, length in ((1, 4096), (0, 4095), (0, 0), (0, -4096), (-(1 << 50), 4096), (0, 1 << 60)):
            with raises_errno(errno.EINVAL):
                borrow.adopt(call.argument + address, length)
        borrow.finish(1)
    assert client.result() == (0, "result 1\n")


def adopted(call: Call, borrow: Borrow, userfault: bool) -> None:
    os.close(borrow.run(lambda injection: adopt.adopt(injection, call.argument, 2 * REGION, userfault=userfault)))


@both_ways
@pytest.mark.parametrize("step", ["copy 0", "copy 1", "map 0", "map 1"])
def test_failure_half_way_costs_the_client_nothing(
    device: Device, compiled: Compiled, userfault: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, number = step.split()
    left = int(number)
    name = f"_{what}"
    original = getattr(adopt._Transfer, name)

    def failing(transfer: adopt._Transfer, *args: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOMEM, "as you wish")
        original(transfer, *args)

    monkeypatch.setattr(adopt._Transfer, name, failing)
    client = Client(device, compiled("region"), "-")
    call = device.next()
    with call.stopped() as borrow:
        mappings = len(list(maps.mappings(call.tid)))
        with raises_errno(errno.ENOMEM):
            adopted(call, borrow, userfault)
        assert len(list(maps.mappings(call.tid))) == mappings
        borrow.finish(-errno.ENOMEM)
    assert client.result() == (0, f"result {-errno.ENOMEM}\n")


def test_without_userfaultfd_threads_are_stopped(
    device: Device, compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(injection: Injection) -> Userfault:
        raise OSError(errno.EPERM, "a container")

    monkeypatch.setattr(adopt, "Userfault", denied)
    client = Client(device, compiled("region"), "w")
    call, waiting = device.next_of(2)
    assert waiting
    with call.stopped() as borrow:
        os.close(borrow.adopt(call.argument, 2 * REGION))
        assert {piece.kind for piece in backing(call.tid, call.argument, 2 * REGION)} == {Kind.SHARED}
        borrow.finish(0)
    waiting.answer(7)
    assert client.result() == (0, "result 0\n")
    assert waiting.unique not in device.interruptions


def test_thread_that_does_not_stop(device: Device, compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "_STOP_PATIENCE", 0.1)
    client = Client(device, compiled("region"), "w")
    call, waiting = device.next_of(2)
    assert waiting
    with call.stopped() as borrow:
        with raises_errno(errno.EIO):
            borrow.run(
                lambda injection: adopt.adopt(
                    injection, call.argument, 2 * REGION, busy=lambda tid: False, userfault=False
                )
            )
        assert {piece.kind for piece in backing(call.tid, call.argument, 2 * REGION)} == {Kind.ANONYMOUS}
        borrow.finish(1)
    waiting.answer(7)
    assert client.result() == (0, "result 1\n")


@both_ways
def test_client_killed_at_any_system_call(
    device: Device, compiled: Compiled, userfault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Injection.syscall
    made = 0
    deadly = -1

    def syscall(injection: Injection, number: int, *args: int) -> int:
        nonlocal made
        if made == deadly:
            os.kill(injection.tracee.tid, signal.SIGKILL)
        made += 1
        return original(injection, number, *args)

    monkeypatch.setattr(Injection, "syscall", syscall)
    client = Client(device, compiled("region"), "-")
    call = device.next()
    with call.stopped() as borrow:
        adopted(call, borrow, userfault)
        borrow.finish(0)
    assert client.result()[0] == 0
    for deadly in range(made):  # noqa: B007
        made = 0
        client = Client(device, compiled("region"), "-")
        call = device.next()
        with raises_errno(errno.ESRCH), call.stopped() as borrow:
            adopted(call, borrow, userfault)
            borrow.finish(0)
        assert client.result()[0] == 128 + signal.SIGKILL
