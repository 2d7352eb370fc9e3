"""Memslots: KVM_SET_USER_MEMORY_REGION and its successor, with KVM's checks in KVM's order (virt/kvm/kvm_main.c).

A memslot becomes one record for fault resolution, or several when its client memory is of several kinds
(kvmfs.kvm.regions). All of this happens under the VM's slots lock.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.limits import KVM_MEM_MAX_NR_PAGES, KVM_MEM_SLOTS_NUM, KVM_USER_MEM_SLOTS
from kvmfs.abi.memory import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    UserspaceMemoryRegion,
    UserspaceMemoryRegion2,
)
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.guest_memfd import GuestMemfd
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.mapping import Mapping
from kvmfs.kvm.publish import Publisher, Record
from kvmfs.kvm.regions import Piece, Regions, release

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

ADDRESS_SPACES: Final = 1  # the second is SMM's
TASK_SIZE_MAX: Final = (1 << 47) - PAGE_SIZE
WRAP: Final = 1 << 64
V1_FLAGS: Final = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
SMALL: Final = 1 << 16


class Bits:
    """Zeroed memory for a bitmap: from the heap when small, of its own and touched as needed when large."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory: Any
        if size > SMALL:
            self._memory = Block(size)
            self.address: int = self._memory.address
        else:
            self._memory = (ctypes.c_uint64 * (size // 8))()
            self.address = ctypes.addressof(self._memory)

    def bytes(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def fill(self, count: int) -> None:
        """Set the first `count` bits."""
        ctypes.memset(self.address, 0xFF, count // 8)
        if count % 8:
            ctypes.c_uint8.from_address(self.address + count // 8).value = (1 << count % 8) - 1


class MemorySlot:
    """One memslot. Immutable but for what `publish` hangs on it."""

    def __init__(self, slot_id: int, base_gfn: int, npages: int, flags: int, userspace_addr: int) -> None:
        self.id, self.base_gfn, self.npages = slot_id, base_gfn, npages
        self.flags, self.userspace_addr = flags, userspace_addr
        self.pieces: list[Piece] = []
        self.gmem: GuestMemfd | None = None
        self.private: Mapping | None = None
        self.touched: list[Bits] = []
        self.dirty: Bits | None = None
        self.records: list[Record] = []

    @property
    def end_gfn(self) -> int:
        return self.base_gfn + self.npages

    def build_records(self, publisher: Publisher) -> None:
        """What fault resolution is to see of the slot as it is now."""
        flags = (
            (mmu.SLOT_READONLY if self.flags & KVM_MEM_READONLY else 0)
            | (mmu.SLOT_HAS_GMEM if self.flags & KVM_MEM_GUEST_MEMFD else 0)
            | (mmu.SLOT_LOG_DIRTY if self.flags & KVM_MEM_LOG_DIRTY_PAGES else 0)
        )
        pages = [piece.length // PAGE_SIZE for piece in self.pieces]
        if not self.touched:
            self.touched = [Bits(publisher.touched_bytes(count)) for count in pages]
        self.records = []
        for piece, touched in zip(self.pieces, self.touched, strict=True):
            page = (piece.address - self.userspace_addr) // PAGE_SIZE
            record = publisher.record(
                self.base_gfn + page,
                piece.length // PAGE_SIZE,
                host=piece.host,
                client=piece.address,
                private=self.private.address + page * PAGE_SIZE if self.private else 0,
                flags=flags | (mmu.SLOT_ANONYMOUS if piece.anonymous else 0),
                slot_id=self.id,
                touched=touched.address if piece.host else 0,
                dirty=self.dirty.address if self.dirty else 0,
                first=page,
            )
            self.records.append(record)

    def free(self) -> None:
        """After the slot is out of the table: its memory is ours no more."""
        release(self.pieces)
        if self.private:
            self.private.close()
        if self.gmem:
            self.gmem.unbind(self)


class Memory:
    """A VM's memslots."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._regions = Regions(vm.maps)
        self._by_id: dict[int, MemorySlot] = {}
        self._by_gfn: list[MemorySlot] = []  # sorted, disjoint

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[MemorySlot]:
        return iter(self._by_id.values())

    @property
    def all(self) -> list[MemorySlot]:
        """By guest address; a copy."""
        return list(self._by_gfn)

    def get(self, slot_id: int) -> MemorySlot | None:
        return self._by_id.get(slot_id)

    def client_address(self, gpa: int) -> int | None:
        """gfn_to_hva: where the client has the memory at `gpa`; None: nowhere."""
        gfn = gpa // PAGE_SIZE
        for slot in list(self):
            if slot.base_gfn <= gfn < slot.end_gfn:
                return slot.userspace_addr + (gfn - slot.base_gfn) * PAGE_SIZE
        return None

    def overlaps(self, slot_id: int, start: int, end: int) -> bool:
        """Whether another slot has any of the gfns start to end - 1 (kvm_check_memslot_overlap)."""
        at = bisect.bisect_right(self._by_gfn, start, key=lambda slot: slot.end_gfn)
        while at < len(self._by_gfn) and self._by_gfn[at].base_gfn < end:
            if self._by_gfn[at].id != slot_id:
                return True
            at += 1
        return False

    def _insert(self, slot: MemorySlot) -> None:
        self._by_id[slot.id] = slot
        bisect.insort(self._by_gfn, slot, key=lambda other: other.base_gfn)

    def _remove(self, slot: MemorySlot) -> None:
        del self._by_id[slot.id]
        at = bisect.bisect_left(self._by_gfn, slot.base_gfn, key=lambda other: other.base_gfn)
        del self._by_gfn[at]

    def count_touched(self) -> int:
        """How many pages of the client's memory have been faulted in for the guest."""
        return sum(_count_pairs(bits.bytes()) for slot in self for bits in slot.touched)

    # Changes -----

    def create(self, caller: Caller, slot: MemorySlot, gmem: GuestMemfd | None, offset: int) -> None:
        """A new memslot. OSError(EINVAL) when the file cannot be bound."""
        publisher = self._vm.publisher
        if gmem:
            slot.private = gmem.bind(slot, offset)
            slot.gmem = gmem
        try:
            if slot.end_gfn - 1 > host_cpu().max_gfn:
                fail(errno.EINVAL)
            readonly = bool(slot.flags & KVM_MEM_READONLY)
            slot.pieces = self._regions.reach(caller, slot.userspace_addr, slot.npages * PAGE_SIZE, readonly=readonly)
            self._log_dirty(slot)
            slot.build_records(publisher)
        except BaseException:
            self._vm.dirty.forget(slot)
            slot.free()
            raise
        self._insert(slot)
        publisher.change_slots([], slot.records)
        self._vm.changes.watch()

    def delete(self, slot: MemorySlot) -> None:
        self._remove(slot)
        self._vm.publisher.change_slots(slot.records, [])
        self._vm.dirty.forget(slot)
        slot.free()
        self._vm.changes.watch()

    def move(self, slot: MemorySlot, base_gfn: int, flags: int) -> None:
        """The same memory elsewhere; touched pages stay so."""
        if base_gfn + slot.npages - 1 > host_cpu().max_gfn:
            fail(errno.EINVAL)
        self._remove(slot)
        slot.base_gfn = base_gfn
        self._insert(slot)
        self.change_flags(slot, flags)

    def change_flags(self, slot: MemorySlot, flags: int) -> None:
        """Dirty logging on or off."""
        slot.flags = flags
        before = slot.dirty
        self._log_dirty(slot)
        self._republish(slot)
        del before  # vCPUs may have written there until now

    def _log_dirty(self, slot: MemorySlot) -> None:
        """Have the bitmap that the slot's flags ask for (kvm_prepare_memory_region)."""
        if not slot.flags & KVM_MEM_LOG_DIRTY_PAGES:
            slot.dirty = None
        elif slot.dirty is None:
            slot.dirty = Bits(self._vm.publisher.dirty_bytes(slot.npages))
            if self._vm.dirty.initially_set:
                slot.dirty.fill(slot.npages)
        self._vm.dirty.note(slot)

    def _republish(self, slot: MemorySlot) -> None:
        """Replace the slot's records by new ones."""
        old = slot.records  # to be kept as long as a vCPU may look at them
        slot.build_records(self._vm.publisher)
        self._vm.publisher.change_slots(old, slot.records)

    def replace_pieces(self, slot: MemorySlot, pieces: list[Piece]) -> None:
        """The slot's client memory is reached otherwise now; all of its pages are to be faulted in again."""
        before = slot.touched, slot.pieces  # vCPUs may look there until the new ones are published
        slot.touched, slot.pieces = [], pieces
        self._republish(slot)
        del before

    def lose_gmem(self, slots: list[MemorySlot]) -> None:
        """The file behind these slots' private side has been closed."""
        for slot in slots:
            private, slot.private, slot.gmem = slot.private, None, None
            self._republish(slot)
            if private:
                private.close()


def _count_pairs(bitmap: bytes) -> int:
    """How many aligned pairs of bits are not 0."""
    bits = int.from_bytes(bitmap, "little")
    return ((bits | bits >> 1) & int.from_bytes(b"\x55" * len(bitmap), "little")).bit_count()


def _check_flags(vm: Vm, flags: int) -> None:
    """check_memory_region_flags. OSError(EINVAL)."""
    valid = KVM_MEM_LOG_DIRTY_PAGES
    if vm.has_private_mem:
        valid |= KVM_MEM_GUEST_MEMFD
    if flags & KVM_MEM_GUEST_MEMFD:
        valid &= ~KVM_MEM_LOG_DIRTY_PAGES
    else:
        valid |= KVM_MEM_READONLY
    if flags & ~valid:
        fail(errno.EINVAL)


def _check_region(vm: Vm, mem: UserspaceMemoryRegion2) -> None:
    """The sanity checks of __kvm_set_memory_region. OSError(EINVAL)."""
    _check_flags(vm, mem.flags)
    size, gpa, address = mem.memory_size, mem.guest_phys_addr, mem.userspace_addr
    if size % PAGE_SIZE or gpa % PAGE_SIZE:
        fail(errno.EINVAL)
    if address % PAGE_SIZE or address + size > TASK_SIZE_MAX:
        fail(errno.EINVAL)
    if mem.flags & KVM_MEM_GUEST_MEMFD:
        offset = mem.guest_memfd_offset
        if offset % PAGE_SIZE or offset + size >= WRAP:
            fail(errno.EINVAL)
    if mem.slot >> 16 >= ADDRESS_SPACES or mem.slot & 0xFFFF >= KVM_MEM_SLOTS_NUM:
        fail(errno.EINVAL)
    if gpa + size >= WRAP or size // PAGE_SIZE > KVM_MEM_MAX_NR_PAGES:
        fail(errno.EINVAL)


def set_memory_region(vm: Vm, caller: Caller, mem: UserspaceMemoryRegion2) -> None:
    """__kvm_set_memory_region. OSError."""
    _check_region(vm, mem)
    slot_id, flags = mem.slot & 0xFFFF, mem.flags
    memory = vm.memory
    old = memory.get(slot_id)
    if not mem.memory_size:
        if old is None:
            fail(errno.EINVAL)
        memory.delete(old)
        return
    base_gfn, npages = mem.guest_phys_addr // PAGE_SIZE, mem.memory_size // PAGE_SIZE
    if old is not None:
        if flags & KVM_MEM_GUEST_MEMFD:  # those can only be deleted
            fail(errno.EINVAL)
        changed_kind = (flags ^ old.flags) & (KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD)
        if mem.userspace_addr != old.userspace_addr or npages != old.npages or changed_kind:
            fail(errno.EINVAL)
        if base_gfn != old.base_gfn:
            if memory.overlaps(slot_id, base_gfn, base_gfn + npages):
                fail(errno.EEXIST)
            memory.move(old, base_gfn, flags)
        elif flags != old.flags:
            memory.change_flags(old, flags)
        return
    if memory.overlaps(slot_id, base_gfn, base_gfn + npages):
        fail(errno.EEXIST)
    slot = MemorySlot(slot_id, base_gfn, npages, flags, mem.userspace_addr)
    gmem = None
    if flags & KVM_MEM_GUEST_MEMFD:
        node = caller.node_of(mem.guest_memfd)
        if not isinstance(node, GuestMemfd) or node.vm is not vm:
            fail(errno.EINVAL)
        gmem = node
    memory.create(caller, slot, gmem, mem.guest_memfd_offset)


@table.ioctl(ioctls.KVM_SET_USER_MEMORY_REGION2)
def set_user_memory_region2(vm: Vm, caller: Caller, arg: UserspaceMemoryRegion2) -> None:
    if arg.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
        fail(errno.EINVAL)
    with vm.slots_lock:
        set_memory_region(vm, caller, arg)
    details = {"slot": arg.slot, "gpa": arg.guest_phys_addr, "size": arg.memory_size, "flags": arg.flags}
    vm.log.write("set_user_memory_region", **details)


@table.ioctl(ioctls.KVM_SET_USER_MEMORY_REGION)
def set_user_memory_region(vm: Vm, caller: Caller, arg: UserspaceMemoryRegion) -> None:
    if arg.flags & ~V1_FLAGS:
        fail(errno.EINVAL)
    set_user_memory_region2(
        vm,
        caller,
        UserspaceMemoryRegion2(
            slot=arg.slot,
            flags=arg.flags,
            guest_phys_addr=arg.guest_phys_addr,
            memory_size=arg.memory_size,
            userspace_addr=arg.userspace_addr,
        ),
    )
