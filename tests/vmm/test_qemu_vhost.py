"""A network card whose queues the host's kernel serves: vhost-net has the guest's doorbells (ioeventfd) and gives it
interrupts (irqfd) by itself, and reads and writes guest memory through QEMU's address space."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vmm.conftest import Linux
from tests.vmm.qemu import EXIT_DEVICE, POWERED_OFF, Qemu
from tests.vmm.verdicts import passed

SECONDS = 300
ADDRESS, PORT = "10.0.0.1", 7  # as check_devices.c has them
DATA = bytes((at * 7 + (at >> 10)) & 0xFF for at in range(1 << 20))

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 2, 0x1000, 0x4000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
IFF_UP_RUNNING = 0x41

pytestmark = pytest.mark.timeout(2 * SECONDS)


@contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, in a network namespace with nothing in it. PermissionError: not as this user."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            yield
        finally:
            libc.setns(before, CLONE_NEWNET)
    finally:
        os.close(before)


@pytest.fixture
def tap() -> Iterator[str]:
    """An interface that QEMU can open, with ADDRESS, and a network for it alone."""
    name = "guest"
    try:
        with own_network():
            tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
            fcntl.ioctl(tun, TUNSETPERSIST, 1)
            os.close(tun)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                for request, address in ((SIOCSIFADDR, ADDRESS), (SIOCSIFNETMASK, "255.255.255.0")):
                    where = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
                    fcntl.ioctl(any_socket, request, struct.pack("16s16s8x", name.encode(), where))
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), IFF_UP_RUNNING))
            yield name  # the interface goes with its network
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"no TAP interface: {error}")


def exchange(listener: socket.socket) -> bytes:
    """What the guest sends back for DATA."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(SECONDS)
        connection.sendall(DATA)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    return received


def test_it_talks_to_the_host(start_qemu: Callable[..., Qemu], linux: Linux, tap: str) -> None:
    if not Path("/dev/vhost-net").exists():
        pytest.skip("this host has no /dev/vhost-net")
    with socket.create_server((ADDRESS, PORT)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(SECONDS)
        answer = thread.submit(exchange, listener)
        qemu = start_qemu(
            "on",
            *("-M", "q35", "-cpu", "host", "-m", "512", "-no-reboot", *EXIT_DEVICE),
            *("-netdev", f"tap,id=cable,ifname={tap},script=no,downscript=no,vhost=on,vhostforce=on"),
            *("-device", "virtio-net-pci,netdev=cable"),
            *linux.arguments("", cpus=1, net=2),
        )
        passed(qemu.wait(SECONDS), ["cpus", "net"], POWERED_OFF)
        assert answer.result(SECONDS) == DATA
