"""What a VM says of itself when asked by name: what its inspection file (inspection.py) cannot show.

Asked from the thread that listens to the broker. No lock is taken, so nobody waits for an answer to be made: lists are
copied in one step, and what is copied is as it was at some moment.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.kvm.dispatch import fail

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm


def slots(vm: Vm) -> list[dict[str, Any]]:
    """Memslots by guest address."""
    return [
        {
            "slot": slot.id,
            "gpa": slot.base_gfn * PAGE_SIZE,
            "size": slot.npages * PAGE_SIZE,
            "userspace_addr": slot.userspace_addr,
            "flags": slot.flags,
            "guest_memfd": slot.gmem.name if slot.gmem else None,
            "remote": sum(piece.length for piece in slot.pieces if not piece.host),
        }
        for slot in vm.memory.all
    ]


def attributes(vm: Vm) -> list[dict[str, int]]:
    """Ranges whose attributes are not 0, ascending."""
    return [
        {"gpa": first * PAGE_SIZE, "size": (end - first) * PAGE_SIZE, "attributes": value}
        for first, end, value in vm.publisher.attribute_ranges()
    ]


def guest_memfd(vm: Vm) -> list[dict[str, Any]]:
    """guest_memfd files that exist, with what they hold."""
    found = []
    for file in list(vm.gmems):
        with suppress(OSError):  # closed meanwhile
            found.append({"name": file.name, "size": file.size, "allocated": file.allocated})
    return found


REPORTS: Final[dict[str, Callable[[Vm], object]]] = {
    "slots": slots,
    "attributes": attributes,
    "guest_memfd": guest_memfd,
}


def report(vm: Vm, what: str) -> object:
    """OSError(ENOENT)."""
    if what not in REPORTS:
        fail(errno.ENOENT)
    return REPORTS[what](vm)
