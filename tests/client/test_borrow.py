"""A thread of a client, borrowed to put a descriptor into its process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.device import Client, Device

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
