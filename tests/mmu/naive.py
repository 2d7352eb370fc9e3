"""The MMU in plain Python, from the SDM (vol. 3, ch. 4) and KVM's source, to compare the compiled one with.

Memory is bytearrays, attributes a dict by gfn; nothing is cached. Whatever an access comes to is a tuple, see Outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from errno import EFAULT

PAGE = 4096
PRIVATE = 8

# ("host", slot, side, offset) | ("mmio", gpa) | ("remote", slot, offset) | ("memory_fault", gpa, flags)
# | ("efault", errno) | ("exception", vector, error code, linear address)
Outcome = tuple


class Left(Exception):
    """The instruction cannot go on."""

    def __init__(self, *outcome) -> None:
        self.outcome: Outcome = outcome


@dataclass
class Slot:
    base: int
    npages: int
    shared: bytearray
    private: bytearray | None = None
    readonly: bool = False
    remote: bool = False
    missing: set[int] = field(default_factory=set)  # pages that the client does not have
    unwritable: set[int] = field(default_factory=set)  # pages that the client may only read
    dirty: set[int] = field(default_factory=set)
    anonymous: bool = False  # pages may be had ahead


@dataclass
class Memory:
    slots: list[Slot]
    attributes: dict[int, int] = field(default_factory=dict)
    rule: str = "attribute"  # who says that an access is private: "never", "attribute", "private bit", "shared bit"
    bit: int = 0

    def resolve(self, gpa: int, write: bool) -> Outcome:
        """Where a guest-physical address leads: host, mmio, remote; raises Left for the rest."""
        marked, gpa = bool(gpa & self.bit), gpa & ~self.bit
        gfn = gpa // PAGE
        wants = bool(self.attributes.get(gfn, 0) & PRIVATE) and self.rule != "never"
        private = {"never": False, "attribute": wants, "private bit": marked, "shared bit": not marked}[self.rule]
        fault = Left("memory_fault", gfn * PAGE, PRIVATE if private else 0)
        if private != wants:
            raise fault
        found = [(n, slot) for n, slot in enumerate(self.slots) if slot.base <= gfn < slot.base + slot.npages]
        if not found:
            if private:
                raise fault
            return ("mmio", gpa)
        number, slot = found[0]
        page, offset = gfn - slot.base, gpa - slot.base * PAGE
        if private:
            if slot.private is None:
                raise fault
        elif write and slot.readonly:
            return ("mmio", gpa)
        elif not slot.remote and (page in slot.missing or (write and page in slot.unwritable)):
            raise Left("efault", EFAULT)
        if write:
            slot.dirty.add(page)
        if slot.remote and not private:
            return ("remote", number, offset)
        return ("host", number, "private" if private else "shared", offset)

    def load(self, place: Outcome, size: int) -> int:
        data, offset = self._bytes(place, False)
        return int.from_bytes(data[offset : offset + size], "little")

    def store(self, place: Outcome, size: int, value: int) -> None:
        data, offset = self._bytes(place, True)
        data[offset : offset + size] = value.to_bytes(size, "little")

    def _bytes(self, place: Outcome, write: bool) -> tuple[bytearray, int]:
        slot, offset = self.slots[place[1]], place[-1]
        if place[0] == "remote":
            if offset // PAGE in slot.missing or (write and offset // PAGE in slot.unwritable):
                raise Left("efault", EFAULT)
            return slot.shared, offset
        data = slot.private if place[2] == "private" else slot.shared
        assert data is not None
        return data, offset


@dataclass
class Cpu:
    paging: bool = True
    wp: bool = True
    pae: bool = True
    long: bool = True
    la57: bool = False
    pse: bool = True
    pge: bool = True
    smep: bool = False
    smap: bool = False
    pke: bool = False
    nxe: bool = True
    ac: bool = False
    cpl: int = 0
    cr3: int = 0
    pkru: int = 0
    maxphyaddr: int = 46
    pdpte: tuple[int, ...] = (0, 0, 0, 0)


@dataclass
class Access:
    write: bool = False
    fetch: bool = False
    implicit: bool = False  # supervisor access to a system structure
    stack: bool = False


def translate(cpu: Cpu, memory: Memory, la: int, access: Access) -> Outcome:
    """What becomes of one access within a page; accessed, dirty bits and the dirty log are updated in `memory`."""
    try:
        if cpu.long:
            width = 57 if cpu.la57 else 48
            if la >> (width - 1) not in (0, (1 << (65 - width)) - 1):
                raise Left("exception", 12 if access.stack else 13, 0, 0)
        else:
            la &= 0xFFFF_FFFF
        return memory.resolve(_walk(cpu, memory, la, access), access.write)
    except Left as left:
        return left.outcome


def _walk(cpu: Cpu, memory: Memory, la: int, access: Access) -> int:
    forced = memory.bit if memory.rule == "private bit" else 0  # SEV: without paging, and for paging structures
    if not cpu.paging:
        return la | forced
    user = cpu.cpl == 3 and not access.implicit
    code = (2 if access.write else 0) | (4 if user else 0)
    if access.fetch and ((cpu.pae and cpu.nxe) or cpu.smep):
        code |= 16

    def fault(more: int = 0) -> Left:
        return Left("exception", 14, code | more, la)

    levels = _levels(cpu, memory)
    table = cpu.cr3 & levels[0].cr3_mask
    if cpu.pae and not cpu.long:
        pdpte = cpu.pdpte[la >> 30 & 3]
        if not pdpte & 1:
            raise fault()
        table = pdpte & 0xF_FFFF_FFFF_F000
    used = []
    for level in levels:
        index = la >> level.shift & (2**level.index_bits - 1)
        gpa = table + index * level.entry_size
        place = memory.resolve(gpa | forced, False)
        if place[0] == "mmio":
            raise fault()
        pte = memory.load(place, level.entry_size)
        if not pte & 1:
            raise fault()
        leaf = level.shift == 12 or (level.can_map and bool(pte & 128))
        if pte & (level.leaf_reserved if leaf else level.table_reserved):
            raise fault(1 | 8)
        used.append((gpa | forced, pte, level))
        table = pte & 0xF_FFFF_FFFF_F000
        if leaf:
            break
    writable = all(pte & 2 for _, pte, _ in used)
    user_page = all(pte & 4 for _, pte, _ in used)
    executable = not (cpu.pae and any(pte >> 63 for _, pte, _ in used))
    problem = _forbidden(cpu, access, user, writable, user_page, executable, pte >> 59 & 15)
    if problem:
        raise fault(problem)

    for gpa, pte, level in used:
        wanted = pte | 32 | (64 if access.write and level is used[-1][2] else 0)
        if wanted != pte:
            place = memory.resolve(gpa, True)
            if place[0] != "mmio":  # a read-only slot keeps its bits
                memory.store(place, level.entry_size, wanted)
    inside = (1 << level.shift) - 1
    page = pte & 0xF_FFFF_FFFF_F000 & ~inside
    if not cpu.pae:
        page = pte & 0xFFFF_F000 & ~inside
        if level.shift == 22:
            page |= (pte >> 13 & 0xFF) << 32
    return page | (la & inside) | (forced if access.fetch or not cpu.pae else 0)


def _forbidden(
    cpu: Cpu, access: Access, user: bool, writable: bool, user_page: bool, executable: bool, key: int
) -> int:
    """SDM 4.6.1 and 4.6.2: the P and PK bits of the fault, or 0."""
    if user:
        allowed = user_page
    elif user_page and access.fetch:
        allowed = not cpu.smep
    elif user_page:
        allowed = not cpu.smap or (cpu.ac and not access.implicit)
    else:
        allowed = True
    if access.write and not writable and (user or cpu.wp):
        allowed = False
    if access.fetch and not executable:
        allowed = False
    key_fault = False
    if cpu.long and cpu.pke and user_page and not access.fetch:
        disable_access, disable_write = cpu.pkru >> 2 * key & 1, cpu.pkru >> 2 * key & 2
        key_fault = bool(disable_access) or bool(access.write and disable_write and (user or cpu.wp))
    return (1 | (32 if key_fault else 0)) if key_fault or not allowed else 0


@dataclass
class _Level:
    shift: int
    index_bits: int
    entry_size: int
    can_map: bool  # bit 7 makes the entry map a page
    table_reserved: int
    leaf_reserved: int
    cr3_mask: int = 0xF_FFFF_FFFF_F000


def _span(low: int, high: int) -> int:
    """Bits low to high, inclusive."""
    return sum(1 << n for n in range(low, high + 1))


def _levels(cpu: Cpu, memory: Memory) -> list[_Level]:
    if not cpu.pae:
        large = _span(13 + max(0, min(40, cpu.maxphyaddr) - 32), 21)
        return [
            _Level(22, 10, 4, cpu.pse, 0, large if cpu.pse else 0, 0xFFFF_F000),
            _Level(12, 10, 4, False, 0, 0),
        ]
    high = _span(cpu.maxphyaddr, 51 if cpu.long else 62) & ~memory.bit
    if not cpu.nxe:
        high |= 1 << 63
    low = [_Level(21, 9, 8, True, high, high | _span(13, 20)), _Level(12, 9, 8, False, high, high)]
    if not cpu.long:
        return low
    top = [_Level(39, 9, 8, False, high | 128, 0), _Level(30, 9, 8, True, high, high | _span(13, 29))]
    if cpu.la57:
        top.insert(0, _Level(48, 9, 8, False, high | 128, 0))
    return top + low
