"""A memslot's client memory, made reachable from here.

Shared file mappings are mapped again; private memory is adopted (it becomes a shared mapping of a memfd, in
the client as here) and is from then on a shared mapping like any other, whichever slot it is used for next. What can be
neither is left to be copied page by page, and so is what the client has not mapped yet: it may come later.

A VMM may cut one large mapping into thousands of slots. Each adoption borrows a thread of the client, and leaves it a
mapping more to keep; so once a few neighbours have come one after the other, the rest of the mapping is adopted ahead,
as much as they were together. Slots in memory that is adopted already are found by asking what their address is mapped
to, here, without the broker.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final, Protocol

from kvmfs.kvm.caller import Backing, Caller, Kind
from kvmfs.kvm.client_maps import Vma
from kvmfs.kvm.mapping import Mapping

PATIENCE: Final = 8  # adoptions of neighbours before more than asked for is adopted


class Maps(Protocol):
    """kvmfs.kvm.client_maps.ClientMaps."""

    def at(self, address: int) -> Vma | None: ...


class Owner(Protocol):
    def close(self) -> None: ...


@dataclass(slots=True)
class Piece:
    """`length` bytes of the client at `address`, here at `host`; 0: they are remote. `owner` keeps them there.

    `anonymous`: they stand for anonymous memory. `vma`: what the client had mapped at `address`, if that is known.
    """

    address: int
    length: int
    host: int = 0
    owner: Owner | None = None
    anonymous: bool = False
    vma: Vma | None = None

    @property
    def end(self) -> int:
        return self.address + self.length

    def part(self, start: int, end: int, owner: Owner) -> Piece:
        """The client's bytes start to end - 1 of it, kept by `owner`."""
        return Piece(start, end - start, self.host + start - self.address, owner, self.anonymous, self.vma)


class Shared:
    """An owner with several pieces to keep."""

    def __init__(self, owner: Owner, users: int) -> None:
        self._owner, self._users = owner, users

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self._owner.close()


class Adopted:
    """An adopted memfd, mapped as a whole for as long as a piece of it is in use."""

    def __init__(self, regions: Regions, memfd: int, length: int) -> None:
        self._regions = regions
        self._users = 0
        status = os.fstat(memfd)
        self.key = (status.st_dev, status.st_ino)
        self.mapping = Mapping(memfd, 0, length)

    def piece(self, address: int, length: int, offset: int) -> Piece:
        self._users += 1
        return Piece(address, length, self.mapping.address + offset, self, anonymous=True)

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self._regions.forget(self)
            self.mapping.close()


class Regions:
    """One client's."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._adopted: dict[tuple[int, int], Adopted] = {}
        self._run_start = self._run_end = self._run_count = 0  # the last adoptions that were neighbours

    def reach(self, caller: Caller, address: int, length: int, *, readonly: bool = False) -> list[Piece]:
        """The pieces of a range, in order and without gaps; neighbours that are both remote are one.

        What the client itself may only read is mapped for a read-only slot; for any other it is remote, so that a
        write finds out.
        """
        pieces: list[Piece] = []
        end = address + length
        try:
            while address < end and (piece := self._known(address, end)):
                pieces.append(piece)
                address += piece.length
            for backing in caller.backing(address, end - address) if address < end else ():
                piece = self._map(caller, backing, readonly)
                if piece.host:
                    piece.vma = self._maps.at(piece.address)
                if not piece.host and pieces and not pieces[-1].host:
                    pieces[-1].length += piece.length
                else:
                    pieces.append(piece)
        except BaseException:
            release(pieces)
            raise
        return pieces

    def forget(self, adopted: Adopted) -> None:
        del self._adopted[adopted.key]

    def _known(self, address: int, end: int) -> Piece | None:
        """What of a range begins with memory that was adopted before."""
        if not self._adopted:
            return None
        vma = self._maps.at(address)
        adopted = self._adopted.get((vma.device, vma.inode)) if vma else None
        if vma is None or adopted is None:
            return None
        offset = vma.offset + address - vma.start
        piece = adopted.piece(address, min(end, vma.end) - address, offset)
        piece.vma = vma
        return piece

    def _map(self, caller: Caller, backing: Backing, readonly: bool) -> Piece:
        remote = Piece(backing.address, backing.length)
        if backing.kind is Kind.SHARED:
            try:
                if not backing.writable and not readonly:
                    return remote
                mapping = Mapping(backing.fd, backing.offset, backing.length, writable=backing.writable)
            except OSError:
                return remote  # such as a device that maps for the client alone
            finally:
                os.close(backing.fd)
            return Piece(backing.address, backing.length, mapping.address, mapping)
        if backing.kind in (Kind.ANONYMOUS, Kind.PRIVATE):
            return self._adopt(caller, backing.address, backing.length) or remote
        return remote

    def _adopt(self, caller: Caller, address: int, length: int) -> Piece | None:
        """Adopt a piece, and maybe what follows it; None when the thread cannot be borrowed: slow, but right."""
        total = length + self._ahead(address, length)
        try:
            memfd = caller.adopt(address, total)
        except OSError:
            return None
        try:
            adopted = Adopted(self, memfd, total)
        finally:
            os.close(memfd)
        self._adopted[adopted.key] = adopted
        if address != self._run_end:
            self._run_start, self._run_count = address, 0
        self._run_end = address + total
        self._run_count += 1
        return adopted.piece(address, length, 0)

    def _ahead(self, address: int, length: int) -> int:
        """How much more than asked for to adopt."""
        if address != self._run_end or self._run_count < PATIENCE:
            return 0
        vma: Vma | None = self._maps.at(address)
        if vma is None or vma.end <= address + length:
            return 0
        return min(vma.end - address - length, self._run_end - self._run_start)


def release(pieces: list[Piece]) -> None:
    for piece in pieces:
        if piece.owner:
            piece.owner.close()
