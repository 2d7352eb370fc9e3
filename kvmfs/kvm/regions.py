"""A memslot's client memory, made reachable from here.

Shared file mappings are mapped again; private anonymous memory is adopted (it becomes a shared mapping of a memfd, in
the client as here) and is from then on a shared mapping like any other, whichever slot it is used for next. What can be
neither is left to be copied page by page, and so is what the client has not mapped yet: it may come later.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from kvmfs.kvm.caller import Backing, Caller, Kind
from kvmfs.kvm.mapping import Mapping


@dataclass(slots=True)
class Piece:
    """`length` bytes of the client at `address`; `mapping` is None when they are remote."""

    address: int
    length: int
    mapping: Mapping | None

    @property
    def host(self) -> int:
        return self.mapping.address if self.mapping else 0


def reach(caller: Caller, address: int, length: int, *, readonly: bool = False) -> list[Piece]:
    """The pieces of a range, in order and without gaps; neighbours that are both remote are one.

    What the client itself may only read is mapped for a read-only slot; for any other it is remote, so that a write
    finds out.
    """
    pieces: list[Piece] = []
    try:
        for backing in caller.backing(address, length):
            mapping = _map(caller, backing, readonly)
            if mapping is None and pieces and pieces[-1].mapping is None:
                pieces[-1].length += backing.length
            else:
                pieces.append(Piece(backing.address, backing.length, mapping))
    except BaseException:
        release(pieces)
        raise
    return pieces


def release(pieces: list[Piece]) -> None:
    for piece in pieces:
        if piece.mapping:
            piece.mapping.close()


def _map(caller: Caller, backing: Backing, readonly: bool) -> Mapping | None:
    if backing.kind is Kind.SHARED:
        try:
            if not backing.writable and not readonly:
                return None
            return Mapping(backing.fd, backing.offset, backing.length, writable=backing.writable)
        except OSError:
            return None  # such as a device that maps for the client alone
        finally:
            os.close(backing.fd)
    if backing.kind is Kind.ANONYMOUS:
        try:
            memfd = caller.adopt(backing.address, backing.length)
        except OSError:
            return None  # the thread cannot be borrowed: slow, but right
        try:
            return Mapping(memfd, 0, backing.length)
        finally:
            os.close(memfd)
    return None
