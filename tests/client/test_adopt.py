"""Private memory of a client becomes shared while the client uses it."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmfs.client import adopt, memory
from kvmfs.client.maps import Kind, backing
from tests.client.device import CALL, WAIT, Call, Client, Device

Compiled = Callable[..., Path]


def next_calls(device: Device) -> tuple[Call, Call]:
    """The call that asks for adoption and the one that waits, in whatever order they come."""
    calls = {call.command: call for call in (device.calls.get(timeout=20), device.calls.get(timeout=20))}
    return calls[CALL], calls[WAIT]


@pytest.mark.parametrize("variant", ["pie", "static"])
@pytest.mark.parametrize("userfault", [True, False], ids=["userfaultfd", "stopped"])
def test_loses_nothing_while_threads_write(device: Device, compiled: Compiled, variant: str, userfault: bool) -> None:
    length = 8 << 20
    client = Client(device, compiled("adopt", variant), length)
    call, waiting = next_calls(device)
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
