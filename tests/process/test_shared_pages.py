"""What the client shares with its VM beside the run page: the dirty ring, the coalesced MMIO ring; and statistics."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import (
    KVM_DIRTY_GFN_F_DIRTY,
    KVM_DIRTY_GFN_F_RESET,
    KVM_DIRTY_LOG_PAGE_OFFSET,
    KVM_MEM_LOG_DIRTY_PAGES,
    CoalescedMmioZone,
    DirtyGfn,
)
from kvmfs.abi.run import KVM_COALESCED_MMIO_PAGE_OFFSET
from kvmfs.abi.stats import StatsHeader
from tests.process.guests import Guest
from tests.process.harness import Broker, Talk, create_vm, errno_of, kvm_run, open_kvm, run

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(900)]

PAGE = 4096
STORE_LOOP = bytes.fromhex("a2 00 20 e6 10 eb f9")  # again: mov [0x2000],al; out 16,al; jmp again
MMIO_LOOP = bytes.fromhex("66 a3 00 00 e6 20 e6 10 eb f6")  # again: mov [0],eax; out 32,al; out 16,al; jmp again
BEYOND = 0x10000  # the first gpa after the guest's memory


def has(kvm: int, cap: Cap) -> int:
    return fcntl.ioctl(kvm, ioctls.KVM_CHECK_EXTENSION.number, cap)


def test_dirty_ring(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), STORE_LOOP, slot_flags=KVM_MEM_LOG_DIRTY_PAGES, ring=PAGE)
        pages = mmap.mmap(guest.vcpu, PAGE, offset=KVM_DIRTY_LOG_PAGE_OFFSET * PAGE)
        ring = (DirtyGfn * (PAGE // ctypes.sizeof(DirtyGfn))).from_buffer(pages)
        for at in range(3):
            assert kvm_run(guest.vcpu) == 0
            assert (ring[at].flags, ring[at].slot, ring[at].offset) == (KVM_DIRTY_GFN_F_DIRTY, 0, 2)
            assert kvm_run(guest.vcpu) == 0
            assert ring[at + 1].flags == 0
            ring[at].flags |= KVM_DIRTY_GFN_F_RESET
            assert fcntl.ioctl(guest.vm, ioctls.KVM_RESET_DIRTY_RINGS.number, 0) == 1
            assert ring[at].flags == 0

    if real.pages == "passthrough":
        run(real.path, body)


def test_coalesced_writes(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), MMIO_LOOP)
        guest.set_data_base(BEYOND)
        ring = KVM_COALESCED_MMIO_PAGE_OFFSET * PAGE
        assert kvm_run(guest.vcpu) == 0
        assert guest.run.exit_reason == Exit.MMIO
        for pio, address in ((0, BEYOND), (1, 32)):
            zone = CoalescedMmioZone(addr=address, size=4, pio=pio)
            fcntl.ioctl(guest.vm, ioctls.KVM_REGISTER_COALESCED_MMIO.number, bytes(zone))
        assert struct.unpack_from("<II", guest.page, ring) == (0, 0)
        assert kvm_run(guest.vcpu) == 0  # the port of the first round
        assert (guest.run.exit_reason, guest.run.io.port) == (Exit.IO, 16)
        assert kvm_run(guest.vcpu) == 0
        assert (guest.run.exit_reason, guest.run.io.port) == (Exit.IO, 16)
        first, last = struct.unpack_from("<II", guest.page, ring)
        found = [struct.unpack_from("<QII", guest.page, ring + 8 + 24 * at) for at in range(first, last)]
        assert found == [(32, 1, 1), (BEYOND, 4, 0), (32, 1, 1)]

    if real.pages == "passthrough":
        run(real.path, body)


def test_rings_are_not_offered_where_pages_are_not_really_shared(real: Broker) -> None:
    offered = real.pages != "cached"

    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        vm = create_vm(kvm)
        for cap in (Cap.DIRTY_LOG_RING, Cap.DIRTY_LOG_RING_ACQ_REL, Cap.COALESCED_MMIO, Cap.COALESCED_PIO):
            assert bool(has(kvm, cap)) == bool(has(vm, cap)) == offered
        zone = CoalescedMmioZone(addr=0, size=4)
        failure = errno_of(fcntl.ioctl, vm, ioctls.KVM_REGISTER_COALESCED_MMIO.number, bytes(zone))
        assert failure == (0 if offered else errno.ENOTTY)

    run(real.path, body)


def test_file_cut_short_under_the_guest(real: Broker) -> None:
    """The page is there, is not there, is there again."""

    def body(path: Path, talk: Talk) -> None:
        guest = Guest(open_kvm(path), bytes.fromhex("b0 2a a2 00 00 e6 10 eb f9"))  # al = 42; [0] = al; out; again
        guest.set_data_base(BEYOND)
        fd = os.memfd_create("memory")
        os.ftruncate(fd, 4 * PAGE)
        memory = mmap.mmap(fd, 4 * PAGE)
        guest.set_slot(1, 0, BEYOND, len(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory)))
        assert kvm_run(guest.vcpu) == 0
        assert os.pread(fd, 1, 0) == b"*"
        os.ftruncate(fd, 0)
        assert errno_of(kvm_run, guest.vcpu) == errno.EFAULT
        assert kvm_run(guest.vcpu) == 0  # the port write after it
        assert errno_of(kvm_run, guest.vcpu) == errno.EFAULT
        os.ftruncate(fd, 4 * PAGE)
        assert kvm_run(guest.vcpu) == 0
        assert kvm_run(guest.vcpu) == 0
        assert os.pread(fd, 1, 0) == b"*"

    run(real.path, body)


def test_statistics(real: Broker) -> None:
    def body(path: Path, talk: Talk) -> None:
        kvm = open_kvm(path)
        guest = Guest(kvm, STORE_LOOP)
        readable = real.pages != "seccomp"
        assert bool(has(kvm, Cap.BINARY_STATS_FD)) == bool(has(guest.vm, Cap.BINARY_STATS_FD)) == readable
        if not readable:
            assert errno_of(fcntl.ioctl, guest.vcpu, ioctls.KVM_GET_STATS_FD.number, 0) == errno.ENOTTY
            return
        stats = fcntl.ioctl(guest.vcpu, ioctls.KVM_GET_STATS_FD.number, 0)

        def io_exits() -> int:
            header = StatsHeader.from_buffer_copy(os.pread(stats, 24, 0))
            step = 16 + header.name_size
            for at in range(header.desc_offset, header.data_offset, step):
                entry = os.pread(stats, step, at)
                if entry[16:].rstrip(b"\0") == b"io_exits":
                    offset = header.data_offset + int.from_bytes(entry[8:12], "little")
                    return int.from_bytes(os.pread(stats, 8, offset), "little")
            raise AssertionError("no io_exits")

        assert os.pread(stats, 3, 24) == b"kvm"
        assert io_exits() == 0
        for count in range(1, 4):
            kvm_run(guest.vcpu)
            assert io_exits() == count
        os.close(guest.vm)
        os.close(guest.vcpu)
        assert io_exits() == 3
        assert errno_of(os.write, stats, b"x") in (errno.EBADF, errno.EINVAL)

    run(real.path, body)
