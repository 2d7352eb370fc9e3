"""KVM_SET_USER_MEMORY_REGION(2): which errno, and in which order of checks; what fault resolution then sees."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

import pytest
from kvmfs.jit.mmu import layout as mmu
from kvmfs.jit.mmu import tables

from kvmfs.abi import ioctls
from kvmfs.abi.memory import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    CreateGuestMemfd,
    DirtyLog,
    UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
)
from kvmfs.kvm.caller import Backing, Kind
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import BASE, PAGE, FakeClient, FakeNative, find_slot

HVA = 0x5000_0000_0000
GMEM, DIRTY, READONLY = KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
REGION, REGION2 = ioctls.KVM_SET_USER_MEMORY_REGION, ioctls.KVM_SET_USER_MEMORY_REGION2


def region(
    slot: int = 0, flags: int = 0, gpa: int = 0, size: int = 4 * PAGE, hva: int = HVA, **more: int
) -> UserspaceMemoryRegion2:
    return UserspaceMemoryRegion2(
        slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva, **more
    )


def region1(slot: int = 0, flags: int = 0, gpa: int = 0, size: int = 4 * PAGE, hva: int = HVA) -> Any:
    return UserspaceMemoryRegion(slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=hva)


def gmem(client: FakeClient, vm: Vm, size: int = 64 * PAGE) -> int:
    return client.call(vm, ioctls.KVM_CREATE_GUEST_MEMFD, CreateGuestMemfd(size=size))


TOP = (host_cpu().max_gfn + 1) * PAGE

REFUSED = {
    "unknown flag": region(flags=1 << 3),
    "every unknown flag": region(flags=0xFFFF_FFF8),
    "dirty log of private memory": region(flags=GMEM | DIRTY),
    "read-only private memory": region(flags=GMEM | READONLY),
    "size not of pages": region(size=PAGE + 1),
    "gpa not of a page": region(gpa=1),
    "address not of a page": region(hva=HVA + 1),
    "address in the kernel's half": region(hva=0xFFFF_8000_0000_0000),
    "range up to the last user page": region(hva=(1 << 47) - PAGE, size=PAGE),
    "range wraps": region(hva=HVA, size=(1 << 64) - PAGE),
    "gmem offset not of a page": region(flags=GMEM, guest_memfd_offset=1),
    "gmem offset wraps": region(flags=GMEM, guest_memfd_offset=(1 << 64) - PAGE),
    "second address space": region(slot=1 << 16),
    "slot id beyond the user's": region(slot=32764),
    "gpa wraps": region(gpa=(1 << 64) - PAGE, size=2 * PAGE),
    "too many pages": region(size=(1 << 31) * PAGE),
    "beyond the guest's addresses": region(gpa=TOP),
    "ends beyond the guest's addresses": region(gpa=TOP - PAGE, size=2 * PAGE),
    "deletion of nothing": region(size=0),
    "gmem that is no file of the client": region(flags=GMEM, guest_memfd=999),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(protected: Vm, client: FakeClient, what: str) -> None:
    error = errno.EBADF if "no file" in what else errno.EINVAL
    assert client.fails(protected, REGION2, REFUSED[what]) == error
    assert len(tables.slots(protected.publisher.slots)) == 0


def test_flags_are_checked_before_all_else(protected: Vm, client: FakeClient) -> None:
    client.call(protected, REGION2, region())
    assert client.fails(protected, REGION2, region(slot=1, flags=1 << 5)) == errno.EINVAL  # not EEXIST
    assert client.fails(protected, REGION2, region(slot=1)) == errno.EEXIST


@pytest.mark.parametrize("flags", [GMEM, 1 << 3, 1 << 31])
def test_the_first_ioctl_knows_two_flags(protected: Vm, client: FakeClient, flags: int) -> None:
    assert client.fails(protected, REGION, region1(flags=flags)) == errno.EINVAL
    assert client.call(protected, REGION, region1(flags=READONLY | DIRTY)) == 0


def test_a_default_vm_has_no_private_slots(vm: Vm, client: FakeClient) -> None:
    number = gmem(client, vm)
    assert client.fails(vm, REGION2, region(flags=GMEM, guest_memfd=number)) == errno.EINVAL


def test_only_the_process_that_made_the_vm_may_use_it(vm: Vm, client: FakeClient) -> None:
    client.tgid = 1
    assert client.fails(vm, REGION2, region()) == errno.EIO


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (region(slot=1, gpa=0), errno.EEXIST),
        (region(slot=1, gpa=3 * PAGE, size=PAGE), errno.EEXIST),
        (region(slot=1, gpa=4 * PAGE), 0),
        (region(slot=0, hva=HVA + PAGE), errno.EINVAL),  # an existing slot keeps its memory,
        (region(slot=0, size=8 * PAGE), errno.EINVAL),  # its size,
        (region(slot=0, flags=READONLY), errno.EINVAL),  # and its kind
        (region(slot=0, flags=GMEM), errno.EINVAL),
        (region(slot=0), 0),  # nothing to change
        (region(slot=0, flags=DIRTY), 0),
        (region(slot=0, gpa=8 * PAGE), 0),
    ],
)
def test_next_to_a_slot(protected: Vm, client: FakeClient, other: Any, error: int) -> None:
    client.call(protected, REGION2, region())
    assert client.fails(protected, REGION2, other) == error


def test_move_keeps_what_it_must_not_overlap(vm: Vm, client: FakeClient) -> None:
    client.call(vm, REGION, region1(slot=0, gpa=0))
    client.call(vm, REGION, region1(slot=1, gpa=8 * PAGE))
    assert client.fails(vm, REGION, region1(slot=0, gpa=6 * PAGE)) == errno.EEXIST
    assert client.call(vm, REGION, region1(slot=0, gpa=2 * PAGE)) == 0  # over its old place
    assert find_slot(vm, 0) is None
    assert find_slot(vm, 5)


def test_every_change_flushes_before_it_returns(vm: Vm, client: FakeClient, native: FakeNative) -> None:
    changes = [region1(), region1(flags=DIRTY), region1(gpa=16 * PAGE), region1(size=0)]
    for count, change in enumerate(changes, 1):
        client.call(vm, REGION, change)
        assert native.flushes == count
    client.call(vm, REGION, region1())
    client.call(vm, REGION, region1())  # the same again is no change
    assert native.flushes == len(changes) + 1


def test_deleted_and_recreated(vm: Vm, client: FakeClient) -> None:
    client.call(vm, REGION, region1())
    client.call(vm, REGION, region1(size=0))
    assert find_slot(vm, 0) is None
    assert client.call(vm, REGION, region1(size=2 * PAGE, hva=HVA + 16 * PAGE)) == 0
    assert client.fails(vm, REGION, region1(slot=0x8000, size=0)) == errno.EINVAL


def test_all_of_the_slots(vm: Vm, client: FakeClient) -> None:
    for slot in range(0, 32764, 997):
        assert client.call(vm, REGION, region1(slot=slot, gpa=slot * 8 * PAGE)) == 0
    assert client.call(vm, REGION, region1(slot=32763, gpa=32763 * 8 * PAGE)) == 0


# What fault resolution sees


def test_unmapped_client_memory_is_remote(vm: Vm, client: FakeClient) -> None:
    client.call(vm, REGION, region1(gpa=PAGE))
    slot = find_slot(vm, 1)
    assert slot
    assert (slot["host"], slot["client"], slot["touched"]) == (0, HVA, 0)
    assert find_slot(vm, 0) is None
    assert find_slot(vm, 5) is None


def shared(length: int, address: int = HVA, *, writable: bool = True) -> Backing:
    fd = os.memfd_create("shared")
    os.ftruncate(fd, length)
    return Backing(address, length, Kind.SHARED, fd, 0, writable)


def test_slot_of_several_kinds_of_memory(vm: Vm, client: FakeClient) -> None:
    client.kinds = [
        shared(PAGE),
        Backing(HVA + PAGE, PAGE, Kind.OTHER),
        Backing(HVA + 2 * PAGE, PAGE, Kind.HOLE),
        Backing(HVA + 3 * PAGE, PAGE, Kind.ANONYMOUS),
    ]
    client.call(vm, REGION, region1())
    slots = [find_slot(vm, gfn) for gfn in range(4)]
    assert all(slots)
    assert [bool(slot["host"]) for slot in slots if slot] == [True, False, False, True]
    assert slots[1] == slots[2]  # remote neighbours are one
    assert client.adopted == [(HVA + 3 * PAGE, PAGE)]


def test_memory_that_the_client_may_only_read(vm: Vm, client: FakeClient) -> None:
    client.kinds = [shared(4 * PAGE, writable=False)]
    client.call(vm, REGION, region1())
    slot = find_slot(vm, 0)
    assert slot
    assert not slot["host"]  # a write has to fail, and only the client's page tables know
    client.kinds = [shared(4 * PAGE, writable=False)]
    client.call(vm, REGION, region1(slot=1, gpa=8 * PAGE, flags=READONLY))
    slot = find_slot(vm, 8)
    assert slot
    assert slot["host"]
    assert slot["flags"] & mmu.SLOT_READONLY


def test_a_thread_that_cannot_be_borrowed_costs_speed_only(
    vm: Vm, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: int, length: int) -> int:
        raise OSError(errno.EBUSY, "")

    monkeypatch.setattr(client, "adopt", refuse)
    client.kinds = [Backing(HVA, 4 * PAGE, Kind.ANONYMOUS)]
    assert client.call(vm, REGION, region1()) == 0
    slot = find_slot(vm, 0)
    assert slot
    assert not slot["host"]


# The dirty log


def test_dirty_log(vm: Vm, client: FakeClient) -> None:
    client.call(vm, REGION, region1(size=100 * PAGE, flags=DIRTY))
    slot = find_slot(vm, 0)
    assert slot
    ctypes.c_uint64.from_address(slot["dirty"] + 8).value = 1 << 5  # page 69
    at = BASE + 4096
    client.call(vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=0, dirty_bitmap=at))
    assert client.read(at, 16) == (1 << 69).to_bytes(16, "little")
    client.call(vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=0, dirty_bitmap=at))
    assert client.read(at, 16) == bytes(16)


@pytest.mark.parametrize(
    ("slot", "error"), [(1, errno.ENOENT), (2, errno.ENOENT), (32764, errno.EINVAL), (1 << 16, errno.EINVAL)]
)
def test_dirty_log_refused(vm: Vm, client: FakeClient, slot: int, error: int) -> None:
    client.call(vm, REGION, region1(slot=1))  # not logged
    assert client.fails(vm, ioctls.KVM_GET_DIRTY_LOG, DirtyLog(slot=slot, dirty_bitmap=BASE)) == error
