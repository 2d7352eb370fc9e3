"""Addresses and guest memory as instruction handlers see them: effective address, segment, TLB probe, slow path.

All helpers here return 0 when the instruction cannot go on; LEAVE then says why and RIP is the instruction's own.
"""

from .. import state as S
from ..build import compiled
from ..mmu import layout as M
from ..mmu.group import PROBE_WRITE, READ_SLOW, WRITE_SLOW
from ..mmu.tlb import checks_alignment
from ..raw import call3, call4, load8, load16, load32, load64, shl, store16, store32, store64, zext32
from .operand import fault, rip_here
from .record import ASIZE, BASE_PTR, FLAGS, IMM, INDEX_PTR, RECORD_NO_MMIO, RECORD_STACK, SCALE, SEG_PTR

FLAGS_SHIFT = M.ACCESS_SHIFT - 1  # from a record's flags to those of an access
assert (RECORD_STACK, RECORD_NO_MMIO) == (2 * M.STACK, 2 * M.NO_MMIO)

LOAD_BYTES = {1: load8, 2: load16, 4: load32, 8: load64}


@compiled
def offset(s, r):
    """The effective address before truncation to the address size."""
    index = shl(load64(load64(r + INDEX_PTR)), load8(r + SCALE))
    return load64(load64(r + BASE_PTR)) + index + load64(r + IMM)


@compiled
def truncate(address, asize):
    """An offset cut to the address size in bytes."""
    if asize == 8:
        return address
    return zext32(address) if asize == 4 else address & 0xFFFF


@compiled
def segment_fault(s, r, seg):
    """#SS for the stack segment, #GP for the others, error code 0."""
    return fault(s, r, S.SS_FAULT if seg == s + S.SS else S.GP, 0, 1)


@compiled
def outside(attr, limit, first, size):
    """Whether [first, first + size) is not within a segment of protected mode; data may expand down from its top."""
    last = first + size - 1
    if attr & 0xC == 4:
        return 1 if first <= limit or last > (0xFFFFFFFF if attr >> 14 & 1 else 0xFFFF) else 0
    return 1 if last > limit else 0


@compiled
def segmented(s, r, seg, address, size, write):
    """Offset `address` in the segment record `seg` -> linear address; checks LEAVE-style (SDM vol. 3, 5.3 to 5.5)."""
    base = load64(seg + S.BASE)
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        # Only FS and GS have a base in 64-bit mode; canonicality is checked where translation misses.
        return address + (base if seg >= s + S.FS else 0)
    attr, limit = load64(seg + S.ATTR), load64(seg + S.LIMIT)
    if load64(s + S.HFLAGS) & S.MODE_PROTECTED != 0:
        code, writable = attr >> 3 & 1, attr >> 1 & 1
        unreadable = code == 1 and writable == 0
        if attr >> 16 & 1 or (write != 0 and (code == 1 or writable == 0)) or (write == 0 and unreadable):
            return segment_fault(s, r, seg)
        if outside(attr, limit, address, size):
            return segment_fault(s, r, seg)
    elif address + size - 1 > limit:
        return segment_fault(s, r, seg)
    return zext32(base + address)


@compiled
def effective(s, r, size, write):
    """The linear address of the record's memory operand; check LEAVE when SEG_PTR is set."""
    address = offset(s, r)
    seg = load64(r + SEG_PTR)
    if seg == 0:
        return address
    return segmented(s, r, seg, truncate(address, load8(r + ASIZE)), size, write)


@compiled
def linear_rip(s, rip):
    """Linear address of an instruction pointer."""
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        return rip
    return zext32(load64(s + S.CS + S.BASE) + rip)


@compiled
def noncanonical(s, la, size):
    """Whether a 64-bit access touches an address that is not canonical (48 or 57 bits)."""
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        return 0
    up = 64 - (57 if load64(s + S.CR4) & S.CR4_LA57 else 48)
    last = la + size - 1
    return 1 if shl(la, up) >> up != la or shl(last, up) >> up != last else 0


@compiled
def probe(s, la, size, kind):
    """Host address of [la, la+size) if the TLB has it for this kind of access and it stays on one page, else 0."""
    entry = load64(s + S.TLB) + ((la >> 12) & (M.TLB_ENTRIES - 1)) * M.TLB_ENTRY
    if load64(entry + kind) == la & -4096 and (la & 4095) <= 4096 - size:
        return la + load64(entry + M.TLB_ADDEND)
    return 0


@compiled
def misaligned(la, size):
    """Whether an operand does not lie where one of its size should (SDM vol. 3, table 6-7)."""
    unit = 1
    if size & (size - 1) == 0 and size <= 32:
        unit = size if size < 32 else 16  # of 256-bit operands, as AMD's processors have it
    elif size == 10:  # an 80-bit number
        unit = 8
    elif size == 28 or size == 108:  # x87 environments and states
        unit = 4
    elif size == 14 or size == 94:
        unit = 2
    return la & (unit - 1)


@compiled
def alignment_fault(s, r, la, size):
    """1 with #AC raised, if misaligned accesses are checked. An address that is not canonical is another fault's."""
    if misaligned(la, size) and checks_alignment(s) and noncanonical(s, la, size) == 0:
        fault(s, r, S.AC_FAULT, 0, 1)
        return 1
    return 0


@compiled
def call_slow(s, r, slot, la, size, pointer):
    """An out-of-line access through the function table, with RIP precise for what it may raise."""
    return 0 if alignment_fault(s, r, la, size & 0xFFFF) else call_unaligned(s, r, slot, la, size, pointer)


@compiled
def call_unaligned(s, r, slot, la, size, pointer):
    """The same for instructions that never check alignment."""
    store64(s + S.RIP, rip_here(s, r))
    flags = (load16(r + FLAGS) & (RECORD_STACK | RECORD_NO_MMIO)) << FLAGS_SHIFT
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * slot), s, la, size | flags, pointer)


@compiled
def unwritable(s, r, la, size):
    """1 with a fault raised: an operand must be one that can be written, even when its store is not made."""
    if alignment_fault(s, r, la, size):
        return 1
    store64(s + S.RIP, rip_here(s, r))
    flags = (load16(r + FLAGS) & (RECORD_STACK | RECORD_NO_MMIO)) << FLAGS_SHIFT
    return call3(load64(load64(s + S.FUNCTIONS) + 8 * PROBE_WRITE), s, la, size | flags) == 0


@compiled
def read_mem(s, r, la, size, pointer):
    """Copy guest bytes at linear address `la` to host `pointer`: 1, or 0 to leave. size: 1, 2, 4, 8."""
    host = probe(s, la, size, M.TLB_READ)
    if host == 0:
        return call_slow(s, r, READ_SLOW, la, size, pointer)
    if size == 8:
        store64(pointer, load64(host))
    elif size == 4:
        store64(pointer, load32(host))
    elif size == 2:
        store64(pointer, load16(host))
    else:
        store64(pointer, load8(host))
    return 1


@compiled
def read_pointer(s, r, size, offset_to, selector_to):
    """A far pointer, whose offset has `size` bytes, in its two parts: 1, or 0 to leave."""
    store64(offset_to, 0)
    la = effective(s, r, size, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, size, offset_to) == 0:
        return 0
    effective(s, r, size + 2, 0)
    return 0 if load64(s + S.LEAVE) != 0 else read_mem(s, r, la + size, 2, selector_to)


@compiled
def on_running_code(s, host):
    """Whether a store at `host` may have changed the running block."""
    page = host & -4096
    return 1 if page == load64(s + S.CODE_PAGE) or page == load64(s + S.CODE_PAGE2) else 0


@compiled
def write_mem(s, r, la, size, pointer):
    """Copy host bytes at `pointer` to guest linear address `la`: 1, or 0 to leave. Any size up to 64.

    The caller ends its block afterwards (branches, string instructions, system instructions do anyway).
    """
    return call_slow(s, r, WRITE_SLOW, la, size, pointer)


# The stack


@compiled
def stack_mask(s):
    """Which bits of RSP the stack uses."""
    hflags = load64(s + S.HFLAGS)
    if hflags & S.MODE_CODE64 != 0:
        return -1
    return 0xFFFFFFFF if hflags & S.MODE_STACK32 != 0 else 0xFFFF


@compiled
def stack_linear(s, r, address, size, write):
    """Stack offset -> linear address; check LEAVE outside 64-bit mode."""
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        return address
    return segmented(s, r, s + S.SS, address, size, write)


@compiled
def set_rsp(s, value):
    """Write the stack pointer at the stack's size."""
    mask = stack_mask(s)
    if mask == 0xFFFF:
        store16(s + S.RSP, value)
    else:
        store64(s + S.RSP, value & mask)
    return 1


@compiled
def push_value(s, r, value, size):
    """Push `size` bytes of `value`: 1, or 0 to leave with RSP unchanged."""
    top = (load64(s + S.RSP) - size) & stack_mask(s)
    la = stack_linear(s, r, top, size, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    host = probe(s, la, size, M.TLB_WRITE)
    if host != 0 and size == 8:
        store64(host, value)
    elif host != 0 and size == 4:
        store32(host, value)
    elif host != 0:
        store16(host, value)
    else:
        store64(s + S.T3, value)
        if call_slow(s, r, WRITE_SLOW, la, size | M.STACK << M.ACCESS_SHIFT, s + S.T3) == 0:
            return 0
    return set_rsp(s, top)


@compiled
def peek_value(s, r, depth, size):
    """Read `size` bytes at RSP+depth into T3, zero-extended: 1, or 0 to leave."""
    la = stack_linear(s, r, (load64(s + S.RSP) + depth) & stack_mask(s), size, 0)
    if load64(s + S.LEAVE) != 0:
        return 0
    store64(s + S.T3, 0)
    host = probe(s, la, size, M.TLB_READ)
    if host != 0:
        store64(s + S.T3, load64(host) if size == 8 else load32(host) if size == 4 else load16(host))
        return 1
    return call_slow(s, r, READ_SLOW, la, size | M.STACK << M.ACCESS_SHIFT, s + S.T3)


@compiled
def pop_value(s, r, size):
    """Pop `size` bytes into T3, zero-extended: 1, or 0 to leave with RSP unchanged."""
    if peek_value(s, r, 0, size) == 0:
        return 0
    return set_rsp(s, load64(s + S.RSP) + size)
