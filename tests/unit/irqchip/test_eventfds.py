"""Irqfds, ioeventfds, resample eventfds."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from typing import Any

import pytest

from kvmfs.abi import ioctls, routing
from kvmfs.abi.exits import Exit
from kvmfs.abi.routing import Ioeventfd, Irqfd
from tests.unit.irqchip.machine import APIC, WAIT, Guest
from tests.unit.kvm.inprocess import MMIO

LEVEL, PIN = 1 << 15, 20
DEASSIGN, RESAMPLE = routing.KVM_IRQFD_FLAG_DEASSIGN, routing.KVM_IRQFD_FLAG_RESAMPLE
MATCH, PIO, REMOVE = (
    routing.KVM_IOEVENTFD_FLAG_DATAMATCH, routing.KVM_IOEVENTFD_FLAG_PIO, routing.KVM_IOEVENTFD_FLAG_DEASSIGN,
)  # fmt: skip


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def count(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def fails(guest: Guest, row: Any, argument: Any) -> int:
    try:
        guest.call(guest.vm, row, argument)
    except OSError as error:
        return error.errno or -1
    return 0


# irqfd


def test_irqfd_raises_a_message(eventfd: int) -> None:
    guest = Guest()
    guest.route_message(30, APIC, 0x61)
    guest.call(guest.vm, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=30))
    for _ in range(3):
        os.eventfd_write(eventfd, 1)
        assert guest.next_vector() == 0x61


def test_what_was_signalled_before_counts(eventfd: int) -> None:
    guest = Guest()
    guest.redirect(PIN, 0x41)
    os.eventfd_write(eventfd, 1)
    guest.call(guest.vm, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=PIN))
    assert guest.next_vector() == 0x41


def test_irqfd_that_is_gone_raises_nothing(eventfd: int) -> None:
    guest = Guest()
    guest.redirect(PIN, 0x41)
    guest.call(guest.vm, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=PIN))
    guest.call(guest.vm, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=PIN, flags=DEASSIGN))
    os.eventfd_write(eventfd, 1)
    assert count(eventfd) == 1
    assert guest.cpus[0].requested() == []


def test_resampling(eventfd: int) -> None:
    guest = Guest()
    resample = os.eventfd(0)
    guest.redirect(PIN, 0x41 | LEVEL)
    guest.call(guest.vm, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=PIN, flags=RESAMPLE, resamplefd=resample))
    for _ in range(2):
        os.eventfd_write(eventfd, 1)
        assert guest.next_vector() == 0x41
        assert not select.select([resample], [], [], 0)[0]  # the EOI is still to come
        guest.message(APIC, 0x30)
        assert guest.next_vector() == 0x30
        assert os.eventfd_read(resample) == 1
    os.close(resample)


def test_irqfd_errors(eventfd: int) -> None:
    guest = Guest()
    other = os.memfd_create("no eventfd")
    assert fails(guest, ioctls.KVM_IRQFD, Irqfd(fd=other, gsi=1)) == errno.EINVAL
    os.close(other)
    assert fails(guest, ioctls.KVM_IRQFD, Irqfd(fd=9999, gsi=1)) == errno.EBADF
    assert fails(guest, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=1, flags=4)) == errno.EINVAL
    assert fails(guest, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=1)) == 0
    assert fails(guest, ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=2)) == errno.EBUSY
    assert fails(Guest(split=24), ioctls.KVM_IRQFD, Irqfd(fd=eventfd, gsi=1, flags=RESAMPLE)) == errno.EINVAL


# ioeventfd


def test_port_write(eventfd: int) -> None:
    guest = Guest("mov dx, 0xc00\nmov eax, 5\nout dx, al\nout dx, al\nout dx, eax\nhlt")
    guest.call(guest.vm, ioctls.KVM_IOEVENTFD, Ioeventfd(addr=0xC00, len=1, fd=eventfd, flags=PIO))
    guest.run()
    assert (guest.page.exit_reason, guest.page.io.port, guest.page.io.size) == (Exit.IO, 0xC00, 4)
    assert count(eventfd) == 2


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"len": 4}, 3),
        ({"len": 4, "datamatch": 7, "flags": MATCH}, 1),
        ({"len": 2}, 0),
        ({"len": 0}, 3),
    ],
)
def test_mmio_write(eventfd: int, event: dict[str, int], expected: int) -> None:
    stores = "".join(f"mov dword ptr [rbx], {value}\n" for value in (5, 7, 9))
    guest = Guest(f"mov ebx, {MMIO}\n{stores}out 0x77, al")
    guest.call(guest.vm, ioctls.KVM_IOEVENTFD, Ioeventfd(addr=MMIO, fd=eventfd, **event))
    exits = 0
    while True:
        guest.run()
        if guest.page.exit_reason == Exit.IO:
            break
        exits += 1
    assert (count(eventfd), exits) == (expected, 3 - expected)


def test_ioeventfd_errors(eventfd: int) -> None:
    guest = Guest()
    row, event = ioctls.KVM_IOEVENTFD, {"addr": MMIO, "fd": eventfd}
    assert fails(guest, row, Ioeventfd(len=3, **event)) == errno.EINVAL
    assert fails(guest, row, Ioeventfd(addr=(1 << 64) - 1, len=4, fd=eventfd)) == errno.EINVAL
    assert fails(guest, row, Ioeventfd(len=4, flags=32, **event)) == errno.EINVAL
    assert fails(guest, row, Ioeventfd(len=0, flags=MATCH, **event)) == errno.EINVAL
    assert fails(guest, row, Ioeventfd(len=4, datamatch=1, flags=MATCH, **event)) == 0
    assert fails(guest, row, Ioeventfd(len=4, datamatch=2, flags=MATCH, **event)) == 0
    assert fails(guest, row, Ioeventfd(len=4, datamatch=2, flags=MATCH, **event)) == errno.EEXIST
    assert fails(guest, row, Ioeventfd(len=4, **event)) == errno.EEXIST
    assert fails(guest, row, Ioeventfd(len=4, datamatch=3, flags=MATCH | REMOVE, **event)) == errno.ENOENT
    assert fails(guest, row, Ioeventfd(len=4, datamatch=2, flags=MATCH | REMOVE, **event)) == 0


def test_a_removed_ioeventfd_lets_the_exit_through(eventfd: int) -> None:
    guest = Guest(f"mov ebx, {MMIO}\nmov [rbx], eax\n" + WAIT)
    guest.call(guest.vm, ioctls.KVM_IOEVENTFD, Ioeventfd(addr=MMIO, len=4, fd=eventfd))
    guest.call(guest.vm, ioctls.KVM_IOEVENTFD, Ioeventfd(addr=MMIO, len=4, fd=eventfd, flags=REMOVE))
    guest.run()
    assert guest.page.exit_reason == Exit.MMIO
    assert count(eventfd) == 0
