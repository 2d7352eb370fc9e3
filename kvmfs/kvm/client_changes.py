"""What the client does to its memory after it has become a memslot's: unmap, protect, replace, cut short.

Memory that is no longer what it was when the slot was made is reached through the client's page tables from then on, as
memory that cannot be mapped here: slow, right, and EFAULT where there is nothing. It stays so until the slot is made
anew. All of this happens under the VM's slots lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmfs.kvm.block import Block
from kvmfs.kvm.client_watch import MAX_WATCHES, WATCH, Watches
from kvmfs.kvm.regions import Piece, Shared
from kvmfs.kvm.words import Vm as Words

if TYPE_CHECKING:
    from kvmfs.kvm.slots import MemorySlot
    from kvmfs.kvm.vm import Vm

PAGE_MASK = 4095


class ClientChanges:
    """A VM's look at its client's mappings."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._watches = Block(Watches.SIZE)
        vm.block[Words.WATCHES] = self._watches.address

    def watch(self) -> None:
        """Have compiled code look at the mappings behind all slots; not at any when there are too many."""
        found = list(self._watched()) if len(self._vm.memory) <= MAX_WATCHES else []
        watches = self._watches
        watches[Watches.SEQUENCE] += 1
        watches[Watches.COUNT] = len(found) if len(found) <= MAX_WATCHES else 0
        for index, words in enumerate(found[:MAX_WATCHES]):
            for word, value in enumerate(words):
                watches[Watches.FIRST + WATCH * index + 8 * word] = value
        watches[Watches.SEQUENCE] += 1

    def _watched(self) -> Iterator[tuple[int, ...]]:
        """The watches: {start, end, offset, inode, device, flags}; what follows upon another in its file is one."""
        last: tuple[int, ...] = ()
        for piece in sorted((p for slot in self._vm.memory for p in slot.pieces if p.host), key=lambda p: p.address):
            if piece.vma is None:
                continue
            offset = _offset(piece, piece.address)
            device = os.major(piece.vma.device) << 32 | os.minor(piece.vma.device)
            identity = (piece.vma.inode, device, piece.vma.flags)
            if (
                last
                and piece.address <= last[1]
                and last[3:] == identity
                and offset - piece.address == last[2] - last[0]
            ):
                last = (last[0], max(last[1], piece.end), *last[2:])
                continue
            if last:
                yield last
            last = (piece.address, piece.end, offset, *identity)
        if last:
            yield last

    def revalidate(self) -> None:
        """Look at all mappings behind the slots; what has changed is remote from now on."""
        for slot in list(self._vm.memory):
            self._divide(slot, [(piece, self._good(piece)) for piece in slot.pieces])
        self.watch()

    def repair(self, host: int) -> None:
        """The file behind our address `host` is shorter than our mapping of it."""
        for slot in list(self._vm.memory):
            parts = []
            for piece in slot.pieces:
                good = [(piece.address, piece.end)]
                if piece.host and 0 <= host - piece.host < piece.length:
                    at = piece.address + (host - piece.host & ~PAGE_MASK)
                    good = [(piece.address, at)] if at > piece.address else []
                parts.append((piece, good))
            self._divide(slot, parts)
        self.watch()

    def _good(self, piece: Piece) -> list[tuple[int, int]]:
        """What of a piece the client still has mapped as it was: ranges {start, end}."""
        if not piece.host or piece.vma is None:
            return [(piece.address, piece.end)]
        good: list[tuple[int, int]] = []
        at = piece.address
        while at < piece.end and (vma := self._vm.maps.after(at)) and vma.start < piece.end:
            start, end = max(at, vma.start), min(vma.end, piece.end)
            same_file = (vma.device, vma.inode) == (piece.vma.device, piece.vma.inode)
            same_place = vma.offset + start - vma.start == _offset(piece, start)
            if same_file and same_place and vma.flags & piece.vma.flags == piece.vma.flags:
                if good and good[-1][1] == start:
                    start = good.pop()[0]
                good.append((start, end))
            at = end
        return good

    def _divide(self, slot: MemorySlot, parts: list[tuple[Piece, list[tuple[int, int]]]]) -> None:
        """Keep the good ranges of each piece; the rest becomes remote."""
        if all(good == [(piece.address, piece.end)] for piece, good in parts):
            return
        pieces: list[Piece] = []
        lost = []
        for piece, good in parts:
            if good == [(piece.address, piece.end)]:
                pieces.append(piece)
                continue
            assert piece.owner
            if not good:
                lost.append(piece.owner)
            owner = Shared(piece.owner, len(good))
            at = piece.address
            for start, end in good:
                if at < start:
                    pieces.append(Piece(at, start - at))
                pieces.append(piece.part(start, end, owner))
                at = end
            if at < piece.end:
                pieces.append(Piece(at, piece.end - at))
        self._vm.memory.replace_pieces(slot, pieces)
        for unused in lost:
            unused.close()


def _offset(piece: Piece, address: int) -> int:
    """Where in its file the client's byte at `address` was when the slot was made."""
    assert piece.vma
    return piece.vma.offset + address - piece.vma.start
