"""The fault log from Python: read by the VM for its event log, and by those who look on (kvmfs.inspect); and written,
for ioctls that a rule was about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from kvmfs.jit.mmu.layout import ATTRIBUTE_PRIVATE
from kvmfs.kvm import inspection
from kvmfs.kvm.inspection import FAULT_ROOM, MEMORY_FAULTS, NOBODY, NOT_LINEAR, OUTCOMES, Fault, Header

if TYPE_CHECKING:
    from kvmfs.kvm.block import Block
    from kvmfs.kvm.inject.ioctls import Fired
    from kvmfs.kvm.native import Native

ACCESSES: Final = ("read", "write", "fetch")


class Words(Protocol):
    """An inspection file's words, by byte offset."""

    def __getitem__(self, offset: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Record:
    """`number`: of the VM's, from 1. `start`, `end`: host TSC. None: there is none, or it does not apply."""

    number: int
    start: int
    end: int
    vcpu: int | None
    gva: int | None
    gpa: int
    access: str
    private: bool
    slot: int | None
    outcome: str
    is_memory_fault: bool
    rip: int
    rule: int | None
    ordinal: int | None
    detail: int


def count(words: Words) -> int:
    """Records that were ever made."""
    return words[Header.FAULT_COUNT]


def read(words: Words, after: int = 0) -> Iterator[Record]:
    """Those with numbers above `after` that are still there, oldest first. What is missing was overwritten, or, at the
    end, is being written."""
    made = count(words)
    for number in range(max(after, made - FAULT_ROOM) + 1, made + 1):
        at = inspection.FAULTS + (number - 1) % FAULT_ROOM * Fault.SIZE
        vcpu, linear, slot, access = (words[at + f] for f in (Fault.VCPU, Fault.LINEAR, Fault.SLOT, Fault.ACCESS))
        outcome, rule = words[at + Fault.OUTCOME], words[at + Fault.RULE]
        record = Record(
            number,
            words[at + Fault.START],
            words[at + Fault.END],
            None if vcpu == NOBODY else vcpu,
            None if linear == NOT_LINEAR else linear,
            words[at + Fault.GPA],
            ACCESSES[min(access & 3, 2)],
            bool(access & ATTRIBUTE_PRIVATE),
            slot - 1 if slot else None,
            OUTCOMES.get(outcome, str(outcome)),
            outcome in MEMORY_FAULTS,
            words[at + Fault.RIP],
            rule or None,
            words[at + Fault.ORDINAL] if rule else None,
            words[at + Fault.DETAIL],
        )
        if words[at + Fault.COUNT] == number:  # else it is being written, or already another
            yield record


def note_ioctl(words: Block, native: Native, fired: Fired) -> None:
    """Write that a rule fired at an ioctl."""
    number = native.log_reserve(words.address)
    at = inspection.FAULTS + number % FAULT_ROOM * Fault.SIZE
    now = native.rdtsc()
    for offset, value in (
        (Fault.START, now),
        (Fault.END, now),
        (Fault.VCPU, NOBODY if fired.vcpu is None else fired.vcpu),
        (Fault.LINEAR, NOT_LINEAR),
        (Fault.GPA, 0),
        (Fault.ACCESS, 0),
        (Fault.SLOT, 0),
        (Fault.OUTCOME, inspection.IOCTL),
        (Fault.RIP, 0),
        (Fault.RULE, fired.number),
        (Fault.ORDINAL, fired.ordinal),
        (Fault.DETAIL, fired.cmd),
        (Fault.COUNT, number + 1),
    ):
        words[at + offset] = value
