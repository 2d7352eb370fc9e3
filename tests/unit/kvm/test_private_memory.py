"""guest_memfd and memory attributes."""

from __future__ import annotations

import ctypes
import errno
import json
from pathlib import Path

import pytest
from kvmfs.jit.mmu import tables

from kvmfs.abi import ioctls
from kvmfs.abi.memory import KVM_MEM_GUEST_MEMFD, CreateGuestMemfd, MemoryAttributes, UserspaceMemoryRegion2
from kvmfs.abi.vm import KVM_X86_SW_PROTECTED_VM
from kvmfs.kvm.eventlog import EventLog
from kvmfs.kvm.guest_memfd import GuestMemfd
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import CLIENT, PAGE, FakeClient, FakeNative, find_slot

CREATE = ioctls.KVM_CREATE_GUEST_MEMFD
ATTRIBUTES = ioctls.KVM_SET_MEMORY_ATTRIBUTES
KEEP_SIZE, PUNCH_HOLE = 1, 2
PRIVATE = 8


def bind(client: FakeClient, vm: Vm, fd: int, slot: int = 0, gpa: int = 0, pages: int = 4, offset: int = 0) -> int:
    return client.fails(
        vm,
        ioctls.KVM_SET_USER_MEMORY_REGION2,
        UserspaceMemoryRegion2(
            slot=slot,
            flags=KVM_MEM_GUEST_MEMFD,
            guest_phys_addr=gpa,
            memory_size=pages * PAGE,
            guest_memfd=fd,
            guest_memfd_offset=offset,
        ),
    )


def delete(client: FakeClient, vm: Vm, slot: int = 0) -> None:
    client.call(vm, ioctls.KVM_SET_USER_MEMORY_REGION2, UserspaceMemoryRegion2(slot=slot))


@pytest.fixture
def gmem(protected: Vm, client: FakeClient) -> int:
    return client.call(protected, CREATE, CreateGuestMemfd(size=8 * PAGE))


# Creation


@pytest.mark.parametrize(
    ("size", "flags", "error"),
    [
        (PAGE, 0, 0), (0, 0, errno.EINVAL), (1, 0, errno.EINVAL), (PAGE + 1, 0, errno.EINVAL),
        (1 << 63, 0, errno.EINVAL), (1 << 62, 0, 0), *((PAGE, 1 << bit, errno.EINVAL) for bit in range(64)),
    ],
)  # fmt: skip
def test_create(vm: Vm, client: FakeClient, size: int, flags: int, error: int) -> None:
    assert client.fails(vm, CREATE, CreateGuestMemfd(size=size, flags=flags)) == error


def test_files_have_names_and_sizes_of_their_own(vm: Vm, client: FakeClient) -> None:
    files = [client.fds[client.call(vm, CREATE, CreateGuestMemfd(size=pages * PAGE))] for pages in (1, 2)]
    assert [file.size for file in files if isinstance(file, GuestMemfd)] == [PAGE, 2 * PAGE]
    assert len({file.name for file in files if file}) == 2


# Binding


@pytest.mark.parametrize(
    ("pages", "offset", "error"),
    [(8, 0, 0), (4, 4 * PAGE, 0), (4, 5 * PAGE, errno.EINVAL), (9, 0, errno.EINVAL), (1, 8 * PAGE, errno.EINVAL)],
)
def test_bind(protected: Vm, client: FakeClient, gmem: int, pages: int, offset: int, error: int) -> None:
    assert bind(client, protected, gmem, pages=pages, offset=offset) == error


def test_files_that_are_no_guest_memfd_of_this_vm(
    protected: Vm, client: FakeClient, native: FakeNative, gmem: int
) -> None:
    other = Vm(native, KVM_X86_SW_PROTECTED_VM, CLIENT)
    foreign = client.call(other, CREATE, CreateGuestMemfd(size=8 * PAGE))
    client.fds[100], client.fds[101] = None, protected
    for fd in (foreign, 100, 101):
        assert bind(client, protected, fd) == errno.EINVAL
    assert bind(client, protected, 102) == errno.EBADF


def test_a_page_of_the_file_is_bound_once(protected: Vm, client: FakeClient, gmem: int) -> None:
    assert bind(client, protected, gmem, slot=0, pages=4, offset=2 * PAGE) == 0
    for offset in (0, 2 * PAGE, 4 * PAGE):
        assert bind(client, protected, gmem, slot=1, gpa=1 << 20, pages=3, offset=offset) == errno.EINVAL
    assert bind(client, protected, gmem, slot=1, gpa=1 << 20, pages=2, offset=6 * PAGE) == 0
    delete(client, protected, 0)
    assert bind(client, protected, gmem, slot=2, gpa=2 << 20, pages=6, offset=0) == 0


def test_a_private_slot_can_only_be_deleted(protected: Vm, client: FakeClient, gmem: int) -> None:
    assert bind(client, protected, gmem) == 0
    assert bind(client, protected, gmem, gpa=1 << 20) == errno.EINVAL
    delete(client, protected)
    assert find_slot(protected, 0) is None


def test_closing_the_file_takes_the_slots_pages(
    protected: Vm, client: FakeClient, native: FakeNative, gmem: int
) -> None:
    bind(client, protected, gmem, slot=0, pages=2)
    bind(client, protected, gmem, slot=1, gpa=1 << 20, pages=2, offset=2 * PAGE)
    before = native.flushes
    client.close(gmem)
    for gfn in (0, 256):
        slot = find_slot(protected, gfn)
        assert slot
        assert slot["private"] == 0
    assert native.flushes > before
    delete(client, protected, 0)


# File operations


@pytest.mark.parametrize(
    ("mode", "offset", "length", "error"),
    [
        (0, 0, PAGE, errno.EOPNOTSUPP),
        (PUNCH_HOLE, 0, PAGE, errno.EOPNOTSUPP),
        (KEEP_SIZE | 0x10, 0, PAGE, errno.EOPNOTSUPP),
        (KEEP_SIZE, 0, 8 * PAGE, 0),
        (KEEP_SIZE, 8 * PAGE, PAGE, errno.EINVAL),
        (KEEP_SIZE, 1, PAGE, errno.EINVAL),
        (KEEP_SIZE, 0, PAGE - 1, errno.EINVAL),
        (KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE, 0),
        (KEEP_SIZE | PUNCH_HOLE, 8 * PAGE, PAGE, 0),
        (KEEP_SIZE | PUNCH_HOLE, 100 * PAGE, PAGE, 0),
        (KEEP_SIZE | PUNCH_HOLE, 4 * PAGE, 100 * PAGE, 0),
        (KEEP_SIZE | PUNCH_HOLE, PAGE - 1, PAGE, errno.EINVAL),
        (KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE + 1, errno.EINVAL),
    ],
)
def test_fallocate(client: FakeClient, gmem: int, mode: int, offset: int, length: int, error: int) -> None:
    file = client.fds[gmem]
    assert isinstance(file, GuestMemfd)
    try:
        file.fallocate(client, mode, offset, length)
        result = 0
    except OSError as failure:
        result = failure.errno or -1
    assert result == error
    assert file.size == 8 * PAGE


def test_a_hole_reads_as_zero(protected: Vm, client: FakeClient, gmem: int) -> None:
    bind(client, protected, gmem)
    slot, file = find_slot(protected, 0), client.fds[gmem]
    assert slot
    assert isinstance(file, GuestMemfd)
    page = slot["private"]
    ctypes.memset(page, 0x55, 2 * PAGE)
    file.fallocate(client, KEEP_SIZE | PUNCH_HOLE, 0, PAGE)
    assert ctypes.string_at(page, 1) == b"\0"
    assert ctypes.string_at(page + PAGE, 1) == b"\x55"


def test_no_ioctls_on_the_file(client: FakeClient, gmem: int) -> None:
    file = client.fds[gmem]
    assert client.fails(file, ioctls.KVM_CHECK_EXTENSION) == errno.ENOTTY
    assert not hasattr(file, "read")
    assert not hasattr(file, "memfd")


# Attributes

WHOLE = (1 << 64) - PAGE


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"size": PAGE, "attributes": PRIVATE}, 0),
        ({"size": PAGE, "attributes": 0}, 0),
        ({"size": PAGE, "flags": 1}, errno.EINVAL),
        *(({"size": PAGE, "attributes": 1 << bit}, errno.EINVAL) for bit in range(64) if bit != 3),
        ({"size": 0}, errno.EINVAL),
        ({"size": PAGE + 1}, errno.EINVAL),
        ({"address": 1, "size": PAGE}, errno.EINVAL),
        ({"address": WHOLE, "size": PAGE}, errno.EINVAL),
        ({"address": WHOLE, "size": 2 * PAGE}, errno.EINVAL),
        ({"address": 0, "size": WHOLE, "attributes": PRIVATE}, 0),
    ],
)
def test_set_attributes(protected: Vm, client: FakeClient, arguments: dict[str, int], error: int) -> None:
    assert client.fails(protected, ATTRIBUTES, MemoryAttributes(**arguments)) == error


def test_a_default_vm_has_no_attributes(vm: Vm, client: FakeClient) -> None:
    assert client.fails(vm, ATTRIBUTES, MemoryAttributes(size=PAGE, attributes=PRIVATE)) == errno.EINVAL
    assert client.fails(vm, ATTRIBUTES, MemoryAttributes(size=PAGE)) == 0
    assert client.call(vm, ioctls.KVM_CHECK_EXTENSION, 233) == 0
    assert client.call(vm, ioctls.KVM_CHECK_EXTENSION, 234) == 0


def test_ranges_merge_and_split(protected: Vm, client: FakeClient, native: FakeNative) -> None:
    def set_attributes(first: int, pages: int, value: int) -> None:
        what = MemoryAttributes(address=first * PAGE, size=pages * PAGE, attributes=value)
        client.call(protected, ATTRIBUTES, what)

    set_attributes(10, 10, PRIVATE)
    set_attributes(20, 10, PRIVATE)
    set_attributes(15, 2, 0)
    flushes = native.flushes
    set_attributes(12, 3, PRIVATE)  # they are already
    assert native.flushes == flushes
    have = protected.publisher.attributes_at
    assert [have(gfn) for gfn in (9, 10, 14, 15, 16, 17, 29, 30)] == [0, 8, 8, 0, 0, 8, 8, 0]


def test_a_terabyte_costs_what_a_page_costs(protected: Vm, client: FakeClient) -> None:
    client.call(protected, ATTRIBUTES, MemoryAttributes(address=0, size=PAGE, attributes=PRIVATE))
    page = len(tables.entries(protected.publisher.attributes))
    client.call(protected, ATTRIBUTES, MemoryAttributes(address=0, size=1 << 40, attributes=PRIVATE))
    assert len(tables.entries(protected.publisher.attributes)) == page


# The event log


def test_event_log(protected: Vm, client: FakeClient, gmem: int, tmp_path: Path) -> None:
    path = tmp_path / "events"
    protected.log = EventLog("7-0", str(path))
    client.call(protected, ATTRIBUTES, MemoryAttributes(address=PAGE, size=PAGE, attributes=PRIVATE))
    file = client.fds[gmem]
    assert isinstance(file, GuestMemfd)
    file.fallocate(client, KEEP_SIZE | PUNCH_HOLE, PAGE, PAGE)
    file.fallocate(client, KEEP_SIZE, 0, PAGE)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(event.pop("t") for event in events)
    assert events == [
        {"vm": "7-0", "event": "set_memory_attributes", "gpa": PAGE, "size": PAGE, "attributes": 8},
        {"vm": "7-0", "event": "punch_hole", "offset": PAGE, "length": PAGE},
        {"vm": "7-0", "event": "fallocate", "offset": 0, "length": PAGE},
    ]
