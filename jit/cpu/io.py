"""Port I/O: IN OUT INS OUTS, and its completion.

As in KVM, IN and OUT leave with RIP at the instruction; `complete_pio` writes the accumulator and steps over it
when the embedder comes back. INS asks for as many elements as fit before the page ends and in the buffer, and is run
again with the data there. OUTS hands over one element an exit with its registers already advanced.
"""

from .. import state as S
from ..breakpoint import note, watch_port
from ..build import Group, compiled
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load8, load16, load32, load64, store8, store16, store64, ult, zext32
from .access import call_slow, segmented, truncate
from .debug import group as debug_group
from .operand import fault, leave_next, rip_here, rip_next, src
from .record import ASIZE, FLAGS, NEXT, OFFSET, OSIZE, RECORD_REP, RECORD_REPNE, SEG_PTR
from .supervisor import call_member, read_system

group = Group("io", __name__)

RETIRE_PIO = debug_group.slot("retire_pio")
INS_BUFFER = 1024  # bytes that KVM's emulator reads ahead


@compiled
def allowed(s, port, size):
    """IOPL, else the TSS's I/O permission bitmap (SDM vol. 1, 19.5): 1, 0 forbidden; LEAVE is set if it faults."""
    hflags = load64(s + S.HFLAGS)
    if hflags & (S.MODE_PROTECTED | S.MODE_V86) == 0:
        return 1
    if hflags & S.MODE_PROTECTED and load64(s + S.CPL) <= (load64(s + S.RFLAGS) >> 12 & 3):
        return 1
    base, limit = load64(s + S.TR + S.BASE), load64(s + S.TR + S.LIMIT)
    if load64(s + S.TR + S.ATTR) >> 16 & 1 or load64(s + S.TR + S.ATTR) & 8 == 0 or limit < 103:
        return 0  # a 16-bit TSS has no bitmap
    store64(s + S.T3, 0)
    if read_system(s, base + 102, 2, s + S.T3) == 0:
        return 0
    at = (load64(s + S.T3) & 0xFFFF) + (port >> 3)
    if at + 1 > limit:
        return 0
    store64(s + S.T3, 0)
    if read_system(s, base + at, 2, s + S.T3) == 0:
        return 0
    return 1 if (load64(s + S.T3) >> (port & 7)) & ((1 << size) - 1) == 0 else 0


@compiled
def refuse(s, r, port, size):
    """1 when the access must not happen; LEAVE is set then."""
    store64(s + S.RIP, rip_here(s, r))
    if allowed(s, port, size):
        return 0
    if load64(s + S.LEAVE) == 0:
        fault(s, r, S.GP, 0, 1)
    return 1


@compiled
def leave_pio(s, r, port, size, count, into):
    """Leave for the embedder; RIP has been set."""
    store64(s + S.PIO_PORT, port)
    store64(s + S.PIO_SIZE, size)
    store64(s + S.PIO_COUNT, count)
    store64(s + S.PIO_IN, into)
    store64(s + S.INSN_LENGTH, load8(r + NEXT) - load8(r + OFFSET))
    store64(s + S.EXIT, S.EXIT_PIO)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@compiled
def wide(r):
    """Element size of the word forms: never 8 bytes."""
    return 2 if load8(r + OSIZE) == 2 else 4


@compiled
def leave_pending(s, r, port, size, into):
    """Leave with the instruction to be completed by complete_pio."""
    store64(s + S.PIO_STATE, S.IO_PENDING)
    store64(s + S.PIO_STRING, 0)
    store64(s + S.PIO_RIP, load64(s + S.RIP))
    return leave_pio(s, r, port, size, 1, into)


@compiled
def port_in(s, r, size):
    port = load64(src(r)) & (0xFFFF if src(r) == s + S.RDX else 0xFF)
    if refuse(s, r, port, size):
        return 0
    return leave_pending(s, r, port, size, 1)


@compiled
def port_out(s, r, size):
    port = load64(src(r)) & (0xFFFF if src(r) == s + S.RDX else 0xFF)
    if refuse(s, r, port, size):
        return 0
    store64(s + S.PIO_DATA, load64(s + S.RAX))
    return leave_pending(s, r, port, size, 0)


@group.add
def in8(s, r):
    return port_in(s, r, 1)


@group.add
def in_imm(s, r):
    return port_in(s, r, wide(r))


@group.add
def out8(s, r):
    return port_out(s, r, 1)


@group.add
def out_imm(s, r):
    return port_out(s, r, wide(r))


@group.add
def complete_pio(s):
    """The embedder is back from an EXIT_PIO and has put IN's data into PIO_DATA. Harmless when none is pending."""
    if load64(s + S.PIO_STATE) != S.IO_PENDING:
        return 0
    if load64(s + S.PIO_STRING) != 0:
        store64(s + S.PIO_STATE, S.IO_DONE)
        return 0
    store64(s + S.PIO_STATE, S.IO_NONE)
    if load64(s + S.RIP) != load64(s + S.PIO_RIP):
        return 0  # the embedder moved on (kvm_is_linear_rip in complete_fast_pio_out)
    if load64(s + S.PIO_IN) != 0:
        size = load64(s + S.PIO_SIZE)
        if size == 1:
            store8(s + S.RAX, load8(s + S.PIO_DATA))
        elif size == 2:
            store16(s + S.RAX, load16(s + S.PIO_DATA))
        else:
            store64(s + S.RAX, load32(s + S.PIO_DATA))
    return call_member(s, RETIRE_PIO)


# INS and OUTS


@compiled
def count_left(s, r):
    """Iterations left: rCX at the address size, or 1 without REP."""
    if load16(r + FLAGS) & (RECORD_REP | RECORD_REPNE) == 0:
        return 1
    return truncate(load64(s + S.RCX), load8(r + ASIZE))


@compiled
def set_register(r, address, value):
    """A register written at the address size."""
    asize = load8(r + ASIZE)
    if asize == 8:
        store64(address, value)
    elif asize == 4:
        store64(address, zext32(value))
    else:
        store16(address, value)


@compiled
def advance(s, r, register, size, count):
    """Move rSI or rDI on and count rCX down."""
    step = -size if load64(s + S.RFLAGS) & S.DF else size
    set_register(r, register, load64(register) + step * count)
    if load16(r + FLAGS) & (RECORD_REP | RECORD_REPNE):
        set_register(r, s + S.RCX, load64(s + S.RCX) - count)


@compiled
def string_linear(s, r, seg, register, size, write):
    """Linear address of a string operand; check LEAVE."""
    address = truncate(load64(register), load8(r + ASIZE))
    if load64(s + S.HFLAGS) & S.MODE_CODE64 and seg < s + S.FS:
        return address
    return segmented(s, r, seg, address, size, write)


@compiled
def finish(s, r):
    """RIP after an iteration: past the instruction, or at it while rCX is not 0."""
    again = load16(r + FLAGS) & (RECORD_REP | RECORD_REPNE) != 0 and count_left(s, r) != 0
    store64(s + S.RIP, rip_here(s, r) if again else rip_next(s, r))


@compiled
def batch(s, size, count):
    """How many of `count` elements INS takes at once, as KVM's pio_in_emulated: at most the bytes left on the page (not
    the elements), the buffer's room, at least one."""
    within = load64(s + S.RDI) & 4095
    room = within if load64(s + S.RFLAGS) & S.DF else 4096 - within
    room = room if room < INS_BUFFER // size else INS_BUFFER // size
    if ult(room, count):
        count = room
    return count if count > 0 else 1


@compiled
def string_in(s, r, size):
    port, count = load64(s + S.RDX) & 0xFFFF, count_left(s, r)
    if load64(s + S.PIO_STATE) != S.IO_DONE and refuse(s, r, port, size):
        return 0
    if count == 0:
        store64(s + S.PIO_STATE, S.IO_NONE)
        return leave_next(s, r)
    count = batch(s, size, count)
    if load64(s + S.PIO_STATE) == S.IO_DONE:
        # As many as rCX asks for now: the embedder may have changed it, and KVM leaves that to it.
        for i in range(count):
            la = string_linear(s, r, s + S.ES, s + S.RDI, size, 1)
            if load64(s + S.LEAVE) != 0 or call_slow(s, r, WRITE_SLOW, la, size, s + S.PIO_DATA + i * size) == 0:
                store64(s + S.PIO_STATE, S.IO_NONE)
                return 0
            advance(s, r, s + S.RDI, size, 1)
        store64(s + S.PIO_STATE, S.IO_NONE)
        finish(s, r)
        note(s, watch_port(s, port, size))
        return 0
    store64(s + S.PIO_STATE, S.IO_PENDING)
    store64(s + S.PIO_STRING, 1)
    return leave_pio(s, r, port, size, count, 1)


@compiled
def string_out(s, r, size):
    port = load64(s + S.RDX) & 0xFFFF
    if refuse(s, r, port, size):
        return 0
    if count_left(s, r) == 0:
        return leave_next(s, r)
    seg = load64(r + SEG_PTR)
    la = string_linear(s, r, seg if seg != 0 else s + S.DS, s + S.RSI, size, 0)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, size, s + S.PIO_DATA) == 0:
        return 0
    advance(s, r, s + S.RSI, size, 1)
    finish(s, r)
    note(s, watch_port(s, port, size))
    return leave_pio(s, r, port, size, 1, 0)


@group.add
def insb(s, r):
    return string_in(s, r, 1)


@group.add
def ins(s, r):
    return string_in(s, r, wide(r))


@group.add
def outsb(s, r):
    return string_out(s, r, 1)


@group.add
def outs(s, r):
    return string_out(s, r, wide(r))
