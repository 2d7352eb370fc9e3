"""Changing what vCPUs translate by, while they run (the protocol is in jit/mmu/layout.py).

A new table's address is stored in the VM block, every vCPU is made to drop its translations, and when none runs on old
ones any more, what the old table led to may go. All changes of one VM are made under its slots lock, as in KVM.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.block import Block
from kvmfs.kvm.native import Native


@dataclass(frozen=True, slots=True)
class Record:
    """What fault resolution sees of a memslot, or of a piece of it; to be kept while a vCPU may look at it."""

    gfn: int
    pages: int
    memory: Any

    @property
    def address(self) -> int:
        return ctypes.addressof(self.memory)


class Publisher:
    """Of one VM. Holds the tables that vCPUs may be looking at."""

    def __init__(self, block: Block, native: Native) -> None:
        from kvmfs.jit.mmu import tables  # needs numpy, which the broker has no use for

        self._tables = tables
        self._block, self._native = block, native
        self.slots = tables.table()
        self.attributes = tables.table()
        self._store(mmu.SLOTS, self.slots)
        self._store(mmu.ATTRIBUTES, self.attributes)

    @staticmethod
    def preload() -> None:
        """Import what the constructor will."""
        import kvmfs.jit.mmu.tables

        assert kvmfs.jit.mmu.tables

    def _store(self, at: int, table: Any) -> None:
        self._block[at] = self._tables.address(table)

    def flush(self) -> None:
        """Have all vCPUs drop their translations, and wait until they have."""
        self._block[mmu.GENERATION] += 1
        self._native.flush_translations(self._block.address)

    def _swap(self, at: int, old: Any, new: Any) -> None:
        self._store(at, new)
        self.flush()
        del old  # until here vCPUs may have looked at it

    def set_attributes(self, first: int, end: int, value: int) -> None:
        """The attributes of gfns first to end - 1."""
        old, self.attributes = self.attributes, self._tables.with_attributes(self.attributes, first, end, value)
        self._swap(mmu.ATTRIBUTES, old, self.attributes)

    def attributes_at(self, gfn: int) -> int:
        return int(self._tables.attributes_at(self.attributes, gfn))

    def attribute_ranges(self) -> list[tuple[int, int, int]]:
        """{first gfn, end gfn, attributes} where those are not 0, ascending."""
        return list(self._tables.attribute_ranges(self.attributes))

    def have_attributes(self, first: int, end: int, value: int) -> bool:
        """Whether all of the range has these attributes already (kvm_range_has_memory_attributes)."""
        return bool(self._tables.have_attributes(self.attributes, first, end, value))

    def change_slots(self, remove: Iterable[Record], add: Iterable[Record]) -> None:
        """Take records out of the table and put others in.

        vCPUs may see one of them before the other, and all of them when this returns.
        """
        added = {record.gfn for record in add}
        table = self.slots
        for record in remove:
            if record.gfn not in added:
                table = self._tables.without_slot(table, record.gfn)
        for record in add:
            table = self._tables.with_slot(table, record.gfn, record.pages, record.address)
        self.slots, old = table, self.slots
        self._swap(mmu.SLOTS, old, table)

    def record(self, base_gfn: int, npages: int, **fields: int) -> Record:
        """A memslot record (jit/mmu/tables.py: slot_record)."""
        return Record(base_gfn, npages, self._tables.slot_record(base_gfn, npages, **fields))

    def touched_bytes(self, npages: int) -> int:
        return int(self._tables.touched_bytes(npages))

    def dirty_bytes(self, npages: int) -> int:
        return int(self._tables.dirty_bytes(npages))
