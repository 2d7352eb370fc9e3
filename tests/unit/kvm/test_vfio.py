"""The VFIO pseudo-device: what KVM answers on a host without vfio."""

from __future__ import annotations

import errno

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.layout import s32
from kvmfs.abi.vm import CreateDevice as Create
from kvmfs.abi.vm import DeviceAttr
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import BAD, BASE, FakeClient

VFIO, TEST = 4, 1
FILE, ADD, DEL = 1, 1, 2


@pytest.mark.parametrize("kind", range(14))
def test_vfio_is_the_only_device_there_is(vm: Vm, client: FakeClient, kind: int) -> None:
    expected = 0 if kind == VFIO else errno.ENODEV
    assert client.fails(vm, ioctls.KVM_CREATE_DEVICE, Create(type=kind, flags=TEST)) == expected
    assert client.fds == {}


def test_one_at_a_time(vm: Vm, client: FakeClient) -> None:
    made = Create(type=VFIO)
    client.call(vm, ioctls.KVM_CREATE_DEVICE, made)
    assert made.fd in client.fds
    assert client.fails(vm, ioctls.KVM_CREATE_DEVICE, Create(type=VFIO)) == errno.EBUSY
    assert client.fails(vm, ioctls.KVM_CREATE_DEVICE, Create(type=VFIO, flags=TEST)) == 0
    client.close(made.fd)
    assert client.fails(vm, ioctls.KVM_CREATE_DEVICE, Create(type=VFIO)) == 0


@pytest.mark.parametrize(
    ("attr", "error"),
    [
        (DeviceAttr(group=FILE, attr=ADD, addr=BASE + 256), errno.EINVAL),  # no file of vfio's
        (DeviceAttr(group=FILE, attr=DEL, addr=BASE + 256), errno.ENOENT),
        (DeviceAttr(group=FILE, attr=ADD, addr=BASE + 264), errno.EBADF),
        (DeviceAttr(group=FILE, attr=DEL, addr=BASE + 264), errno.EBADF),
        (DeviceAttr(group=FILE, attr=ADD, addr=BAD), errno.EFAULT),
        (DeviceAttr(group=FILE, attr=3, addr=BASE + 256), errno.ENXIO),
        (DeviceAttr(group=2, attr=ADD, addr=BASE + 256), errno.ENXIO),
    ],
)
def test_attributes(vm: Vm, client: FakeClient, attr: DeviceAttr, error: int) -> None:
    made = Create(type=VFIO)
    client.call(vm, ioctls.KVM_CREATE_DEVICE, made)
    device = client.fds[made.fd]
    assert device
    client.write(BASE + 256, bytes(s32(made.fd)))
    client.write(BASE + 264, bytes(s32(-1)))
    assert client.fails(device, ioctls.KVM_SET_DEVICE_ATTR, attr) == error
    exists = error not in (errno.ENXIO,)
    assert client.fails(device, ioctls.KVM_HAS_DEVICE_ATTR, attr) == (0 if exists else errno.ENXIO)
    assert client.fails(device, ioctls.KVM_GET_DEVICE_ATTR, attr) == errno.EPERM
    assert client.fails(device, ioctls.KVM_RUN) == errno.ENOTTY
