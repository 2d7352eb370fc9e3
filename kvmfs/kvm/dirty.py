"""Dirty tracking: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, the rings (virt/kvm/kvm_main.c, virt/kvm/dirty_ring.c).

What compiled code does for it is in dirty_pages.py.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.limits import (
    KVM_DIRTY_RING_MAX_ENTRIES,
    KVM_DIRTY_RING_RSVD_ENTRIES,
    KVM_MEM_SLOTS_NUM,
    KVM_USER_MEM_SLOTS,
)
from kvmfs.abi.memory import (
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_DIRTY_LOG_PAGE_OFFSET,
    ClearDirtyLog,
    DirtyGfn,
    DirtyLog,
)
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm import dirty_pages
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.slots import ADDRESS_SPACES, Bits, MemorySlot
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

MAX_RING_SIZE = KVM_DIRTY_RING_MAX_ENTRIES * ctypes.sizeof(DirtyGfn)
RING_OFFSET = KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE
LONG = 64  # bits


class DirtyTracking:
    """How a VM keeps track of dirty pages. Changed under the VM's lock, its bitmaps under the slots lock."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self.manual = 0  # KVM_DIRTY_LOG_*: what KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 was enabled with
        self.ring_size = 0  # bytes
        self._bitmaps: Block | None = None  # by slot id, for rings

    @property
    def initially_set(self) -> bool:
        both = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
        return self.manual & both == both and not self.ring_size

    # The rings -----

    def enable_ring(self, size: int) -> None:
        """kvm_vm_ioctl_enable_dirty_log_ring. OSError."""
        if not size or size & size - 1:
            fail(errno.EINVAL)
        if size < KVM_DIRTY_RING_RSVD_ENTRIES * ctypes.sizeof(DirtyGfn) or size < PAGE_SIZE:
            fail(errno.EINVAL)
        if size > MAX_RING_SIZE:
            fail(errno.E2BIG)
        if self.ring_size:
            fail(errno.EINVAL)
        with self._vm.lock:
            if self._vm.created_vcpus:
                fail(errno.EINVAL)
            self.ring_size = size
        with self._vm.slots_lock:
            self._bitmaps = Block(dirty_pages.BITMAP_ENTRY * KVM_MEM_SLOTS_NUM)
            for slot in self._vm.memory:
                self.note(slot)
            self._vm.block[mmu.MARK_DIRTY] = self._vm.native.address("mark_in_ring")

    def give_ring(self, vcpu: Vcpu) -> None:
        """Tell a vCPU that is being made where its ring is."""
        if self.ring_size:
            entries = self.ring_size // ctypes.sizeof(DirtyGfn)
            vcpu.state[Cpu.RING] = vcpu.page + RING_OFFSET
            vcpu.state[Cpu.RING_MASK] = entries - 1
            vcpu.state[Cpu.RING_SOFT] = entries - KVM_DIRTY_RING_RSVD_ENTRIES
            vcpu.state[Cpu.RING_STOP] = entries

    def note(self, slot: MemorySlot) -> None:
        """The slot has another bitmap, or none."""
        if self._bitmaps:
            at = dirty_pages.BITMAP_ENTRY * slot.id
            self._bitmaps[at + dirty_pages.BITMAP] = slot.dirty.address if slot.dirty else 0
            self._bitmaps[at + dirty_pages.PAGES] = slot.npages

    def forget(self, slot: MemorySlot) -> None:
        """The slot is no more."""
        if self._bitmaps:
            self._bitmaps[dirty_pages.BITMAP_ENTRY * slot.id + dirty_pages.BITMAP] = 0

    def reset_rings(self) -> int:
        """kvm_vm_ioctl_reset_dirty_pages: how many entries were taken back."""
        if not self._bitmaps:
            fail(errno.EINVAL)
        native, count = self._vm.native, 0
        for vcpu in list(self._vm.vcpus.values()):
            count += native.reset_ring(vcpu.context, self._bitmaps.address, KVM_USER_MEM_SLOTS)
        if count:
            self._vm.publisher.flush()
        return count

    # The log -----

    def logged_slot(self, slot_id: int, first_page: int = 0) -> tuple[MemorySlot, Bits]:
        """The slot of a KVM_*_DIRTY_LOG, and its bitmap. OSError."""
        if self.ring_size:
            fail(errno.ENXIO)
        if slot_id >> 16 >= ADDRESS_SPACES or slot_id & 0xFFFF >= KVM_USER_MEM_SLOTS:
            fail(errno.EINVAL)
        if first_page % LONG:
            fail(errno.EINVAL)
        slot = self._vm.memory.get(slot_id & 0xFFFF)
        if slot is None or slot.dirty is None:
            fail(errno.ENOENT)
        return slot, slot.dirty

    def take(self, bits: Bits) -> bytes:
        """A log as it is; logging starts anew, unless the client clears it itself (kvm_get_dirty_log_protect)."""
        log = ctypes.create_string_buffer(bits.size)
        if self.manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE:
            ctypes.memmove(log, bits.address, bits.size)
        elif self._vm.native.take_dirty(bits.address, bits.size // 8, ctypes.addressof(log)):
            self._vm.publisher.flush()
        return log.raw


@table.ioctl(ioctls.KVM_GET_DIRTY_LOG)
def get_dirty_log(vm: Vm, caller: Caller, arg: DirtyLog) -> None:
    with vm.slots_lock:
        _, bits = vm.dirty.logged_slot(arg.slot)
        caller.write(arg.dirty_bitmap, vm.dirty.take(bits))


@table.ioctl(ioctls.KVM_CLEAR_DIRTY_LOG)
def clear_dirty_log(vm: Vm, caller: Caller, arg: ClearDirtyLog) -> None:
    """kvm_clear_dirty_log_protect."""
    with vm.slots_lock:
        slot, bits = vm.dirty.logged_slot(arg.slot, arg.first_page)
        left = slot.npages - arg.first_page
        if left < 0 or arg.num_pages > left or (arg.num_pages < left and arg.num_pages % LONG):
            fail(errno.EINVAL)
        words = -(-arg.num_pages // LONG)
        mask = caller.read(arg.dirty_bitmap, 8 * words)
        at = bits.address + arg.first_page // 8
        buffer = ctypes.create_string_buffer(mask, 8 * words) if words else None
        if buffer and vm.native.clear_dirty(at, words, ctypes.addressof(buffer)):
            vm.publisher.flush()


@table.ioctl(ioctls.KVM_RESET_DIRTY_RINGS)
def reset_dirty_rings(vm: Vm, caller: Caller, arg: int) -> int:
    with vm.slots_lock:
        return vm.dirty.reset_rings()
