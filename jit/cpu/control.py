"""Control and debug registers, descriptor-table registers, TLB invalidation (SDM vol. 3, 2.5; vol. 2, MOV CRn)."""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import LOAD_PDPTES, TLB_FLUSH, TLB_FLUSH_PAGE
from ..raw import call2, load8, load64, lshr, shl, store64, zext32
from .access import effective, offset, outside, read_mem, segment_fault, truncate, write_mem
from .canonical import keepable
from .debug import arm_breakpoints, general_detect
from .descriptor import UNUSABLE
from .operand import done, dst, fault, leave_next, rip_here, src
from .record import ASIZE, AUX, OSIZE, SEG_PTR
from .segment import put_selector, umip_forbids
from .supervisor import call_member, derive_mode, linear, raise_at

group = Group("control", __name__)

CR0_FLUSHES = S.CR0_PG | S.CR0_WP
CR4_FLUSHES = S.CR4_PSE | S.CR4_PAE | S.CR4_PGE | S.CR4_PCIDE | S.CR4_SMEP | S.CR4_SMAP | S.CR4_PKE | S.CR4_LA57
CR0_DEFINED = (
    S.CR0_PE | S.CR0_MP | S.CR0_EM | S.CR0_TS | S.CR0_ET | S.CR0_NE | S.CR0_WP | S.CR0_AM
    | S.CR0_NW | S.CR0_CD | S.CR0_PG
)  # fmt: skip


@compiled
def flush_tlb(s, keep_global):
    return call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH), s, keep_global)


@compiled
def pdptes_wanted(s):
    """PAE paging without long mode keeps its four top entries in registers."""
    paging = load64(s + S.CR0) & S.CR0_PG and load64(s + S.CR4) & S.CR4_PAE
    return 1 if paging and load64(s + S.EFER) & S.EFER_LMA == 0 else 0


@compiled
def load_pdptes(s):
    """1, or 0 with #GP raised."""
    if call_member(s, LOAD_PDPTES) != 0:
        return 1
    return raise_at(s, S.GP, 0, 1) if load64(s + S.LEAVE) == 0 else 0


@compiled
def write_cr0(s, value):
    """1, or 0 with #GP raised; as kvm_set_cr0."""
    old, efer = load64(s + S.CR0), load64(s + S.EFER)
    uncached = value & S.CR0_NW and value & S.CR0_CD == 0
    if lshr(value, 32) != 0 or uncached or (value & S.CR0_PG and value & S.CR0_PE == 0):
        return raise_at(s, S.GP, 0, 1)
    value = value & CR0_DEFINED | S.CR0_ET
    if value & S.CR0_PG and old & S.CR0_PG == 0 and efer & S.EFER_LME:
        if load64(s + S.CR4) & S.CR4_PAE == 0 or load64(s + S.CS + S.ATTR) >> 13 & 1:
            return raise_at(s, S.GP, 0, 1)
        store64(s + S.EFER, efer | S.EFER_LMA)
    if value & S.CR0_PG == 0 and old & S.CR0_PG:
        if load64(s + S.HFLAGS) & S.MODE_CODE64 or load64(s + S.CR4) & S.CR4_PCIDE:
            return raise_at(s, S.GP, 0, 1)
        store64(s + S.EFER, efer & ~S.EFER_LMA)
    store64(s + S.CR0, value)
    if pdptes_wanted(s) and (old ^ value) & S.CR0_PG and load_pdptes(s) == 0:
        store64(s + S.CR0, old)
        store64(s + S.EFER, efer)
        return 0
    if (old ^ value) & CR0_FLUSHES:
        flush_tlb(s, 0)
    return 1


@compiled
def write_cr3(s, value):
    """1, or 0 with #GP raised; as kvm_set_cr3."""
    old, keep = load64(s + S.CR3), 0
    if load64(s + S.CR4) & S.CR4_PCIDE:
        keep = lshr(value, 63)
        value &= ~shl(1, 63)
    if load64(s + S.EFER) & S.EFER_LMA and lshr(value, load64(s + S.MAXPHYADDR)) != 0:
        return raise_at(s, S.GP, 0, 1)
    store64(s + S.CR3, value)
    if pdptes_wanted(s) and load_pdptes(s) == 0:
        store64(s + S.CR3, old)
        return 0
    if keep == 0 or value != old:  # the TLB knows no PCIDs: what it has is of the old one
        flush_tlb(s, 1)
    return 1


@compiled
def write_cr4(s, value):
    """1, or 0 with #GP raised; as kvm_set_cr4."""
    old, long_mode = load64(s + S.CR4), load64(s + S.EFER) & S.EFER_LMA
    if value & load64(s + S.CR4_RESERVED):
        return raise_at(s, S.GP, 0, 1)
    if long_mode and (value & S.CR4_PAE == 0 or (value ^ old) & S.CR4_LA57):
        return raise_at(s, S.GP, 0, 1)
    if value & S.CR4_PCIDE and old & S.CR4_PCIDE == 0 and (long_mode == 0 or load64(s + S.CR3) & 0xFFF):
        return raise_at(s, S.GP, 0, 1)
    store64(s + S.CR4, value)
    watched = S.CR4_PGE | S.CR4_PSE | S.CR4_PAE | S.CR4_SMEP
    if pdptes_wanted(s) and (old ^ value) & watched and load_pdptes(s) == 0:
        store64(s + S.CR4, old)
        return 0
    if (old ^ value) & CR4_FLUSHES:
        flush_tlb(s, 0)
    return 1


@compiled
def changed(s, r, success):
    """After a write: what follows is decoded and translated anew."""
    if success == 0:
        return 0
    derive_mode(s)
    return leave_next(s, r)


@group.add
def mov_to_cr(s, r):
    """MOV CRn, r64; AUX is n."""
    store64(s + S.RIP, rip_here(s, r))
    number, value = load8(r + AUX), load64(src(r))
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        value = zext32(value)
    if number == 0:
        return changed(s, r, write_cr0(s, value))
    if number == 2:
        store64(s + S.CR2, value)
        return leave_next(s, r)
    if number == 3:
        return changed(s, r, write_cr3(s, value))
    if number == 4:
        return changed(s, r, write_cr4(s, value))
    if number != 8:
        return fault(s, r, S.UD, 0, 0)
    if value & ~0xF:
        return fault(s, r, S.GP, 0, 1)
    old = load64(s + S.CR8)
    store64(s + S.CR8, value)
    leave_next(s, r)
    if value < old:  # the task priority fell: an interrupt may have become deliverable
        store64(s + S.EXIT, S.EXIT_CR8)
        store64(s + S.EXIT_ARGS, value)
        store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@group.add
def mov_from_cr(s, r):
    number = load8(r + AUX)
    if number == 0:
        value = load64(s + S.CR0)
    elif number == 2:
        value = load64(s + S.CR2)
    elif number == 3:
        value = load64(s + S.CR3)
    elif number == 4:
        value = load64(s + S.CR4)
    elif number == 8:
        value = load64(s + S.CR8)
    else:
        return fault(s, r, S.UD, 0, 0)
    store64(dst(r), value if load64(s + S.HFLAGS) & S.MODE_CODE64 else zext32(value))
    return leave_next(s, r)


@compiled
def debug_register(s, r):
    """The register meant by AUX, or -1 with a fault raised (SDM vol. 3, 17.2)."""
    number = load8(r + AUX)
    if number > 7 or ((number == 4 or number == 5) and load64(s + S.CR4) & S.CR4_DE):
        fault(s, r, S.UD, 0, 0)
        return -1
    store64(s + S.RIP, rip_here(s, r))
    if general_detect(s):
        return -1
    return number + 2 if number == 4 or number == 5 else number


@group.add
def mov_to_dr(s, r):
    number, value = debug_register(s, r), load64(src(r))
    if number < 0:
        return 0
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        value = zext32(value)
    if number < 4:
        store64(s + S.DR + 8 * number, value)
        arm_breakpoints(s)
        return leave_next(s, r)
    if lshr(value, 32) != 0:
        return fault(s, r, S.GP, 0, 1)
    if number == 6:
        store64(s + S.DR6, value & 0xE00F | 0xFFFF0FF0)
    else:
        store64(s + S.DR7, value & 0xFFFF2BFF | 0x400)
        arm_breakpoints(s)
    return leave_next(s, r)


@group.add
def mov_from_dr(s, r):
    number = debug_register(s, r)
    if number < 0:
        return 0
    value = load64(s + S.DR6) if number == 6 else load64(s + S.DR7)
    store64(dst(r), load64(s + S.DR + 8 * number) if number < 4 else value)
    return leave_next(s, r)


@group.add
def clts(s, r):
    store64(s + S.CR0, load64(s + S.CR0) & ~S.CR0_TS)
    return changed(s, r, 1)


@group.add
def smsw(s, r):
    """A register gets CR0 at the operand size, memory 16 bits."""
    if umip_forbids(s):
        return fault(s, r, S.GP, 0, 1)
    value = load64(s + S.CR0)
    return put_selector(s, r, value if load8(r + OSIZE) == 8 else zext32(value))


@group.add
def lmsw(s, r):
    """Loads PE MP EM TS, and cannot clear PE."""
    store64(s + S.RIP, rip_here(s, r))
    old = load64(s + S.CR0)
    return changed(s, r, write_cr0(s, old & ~0xE | load64(src(r)) & 0xF))


def _store_table(base, limit):
    """SGDT, SIDT: 10 bytes in 64-bit mode, 6 elsewhere."""

    def handler(s, r):
        if umip_forbids(s):
            return fault(s, r, S.GP, 0, 1)
        size = 8 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 4
        la = effective(s, r, size + 2, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        value = load64(s + base)
        store64(s + S.T0, load64(s + limit) & 0xFFFF | value << 16)
        store64(s + S.T0 + 8, lshr(value, 48))
        return leave_next(s, r) if write_mem(s, r, la, size + 2, s + S.T0) else 0

    return handler


def _load_table(base, limit):
    """LGDT, LIDT."""

    def handler(s, r):
        size = 8 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 4
        la = effective(s, r, size + 2, 0)
        store64(s + S.T0, 0)
        store64(s + S.T1, 0)
        if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 2, s + S.T0) == 0:
            return 0
        if read_mem(s, r, la + 2, size, s + S.T1) == 0:
            return 0
        value = load64(s + S.T1)
        if keepable(value) == 0:
            return fault(s, r, S.GP, 0, 1)
        store64(s + base, value & 0xFFFFFF if load8(r + OSIZE) == 2 and size == 4 else value)
        store64(s + limit, load64(s + S.T0) & 0xFFFF)
        return leave_next(s, r)

    return handler


group.add(_store_table(S.GDTR_BASE, S.GDTR_LIMIT), "sgdt")
group.add(_store_table(S.IDTR_BASE, S.IDTR_LIMIT), "sidt")
group.add(_load_table(S.GDTR_BASE, S.GDTR_LIMIT), "lgdt")
group.add(_load_table(S.IDTR_BASE, S.IDTR_LIMIT), "lidt")


@group.add
def invlpg(s, r):
    """The operand is not accessed: no fault for a limit or an address that is not canonical (SDM vol. 2)."""
    la, seg = truncate(offset(s, r), load8(r + ASIZE)), load64(r + SEG_PTR)
    if seg != 0:
        la = linear(s, la + load64(seg + S.BASE))
    call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH_PAGE), s, la)
    return leave_next(s, r)


@group.add
def invpcid(s, r):
    """Types 0 to 3; without tagged entries each drops at least what it must."""
    la = effective(s, r, 16, 0)
    kind = load64(dst(r))
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 8, s + S.T0) == 0 or read_mem(s, r, la + 8, 8, s + S.T1) == 0:
        return 0
    pcid, address = load64(s + S.T0), load64(s + S.T1)
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        kind = zext32(kind)
    if lshr(kind, 2) != 0 or (kind < 2 and (lshr(pcid, 12) != 0 or (kind == 0 and keepable(address) == 0))):
        return fault(s, r, S.GP, 0, 1)
    if kind < 2 and pcid != 0 and load64(s + S.CR4) & S.CR4_PCIDE == 0:
        return fault(s, r, S.GP, 0, 1)
    flush_tlb(s, 0 if kind == 2 else 1)
    return leave_next(s, r)


@compiled
def is_execute_only(s, seg):
    if seg == 0 or load64(s + S.HFLAGS) & (S.MODE_CODE64 | S.MODE_PROTECTED) != S.MODE_PROTECTED:
        return 0
    return 1 if load64(seg + S.ATTR) & (UNUSABLE | 0xA) == 8 else 0


@group.add
def clflush(s, r):
    """Caches are coherent; the line must be readable as for a load, but for code that is execute-only (SDM vol. 2)."""
    seg = load64(r + SEG_PTR)
    if is_execute_only(s, seg):
        address = truncate(offset(s, r), load8(r + ASIZE))
        if outside(load64(seg + S.ATTR), load64(seg + S.LIMIT), address, 1):
            return segment_fault(s, r, seg)
        la = zext32(load64(seg + S.BASE) + address)
    else:
        la = effective(s, r, 1, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 1, s + S.T0) == 0:
        return 0
    return done(r)
