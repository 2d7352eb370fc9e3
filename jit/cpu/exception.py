"""Delivering exceptions and interrupts through the IDT, and what happens when that fails (SDM vol. 3, ch. 6).

64-bit mode here; a delivery in another mode reports itself as not implemented.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load64, lshr, memset, shl, store64
from .debug import apply_payload, begin_handler
from .flags import rflags
from .supervisor import derive_mode, load_hidden, nullify, raise_at, read_descriptor, read_system, write_system

group = Group("exception", __name__)

FAILED, DELIVERED = 0, 1
EXTERNAL, EXCEPTION, SOFTWARE = 0, 1, 2  # what is delivered: decides the EXT bit, gate privilege, RF


@compiled
def contributory(vector):
    """The class that makes a double fault (SDM vol. 3, table 6-4)."""
    return vector == S.DE or (vector >= S.TS and vector <= S.GP)


@compiled
def selector_error(selector, kind):
    """A selector's error code with the EXT bit."""
    return selector & 0xFFFC | (0 if kind == SOFTWARE else 1)


@compiled
def stack_in_tss(s, offset):
    """RSPn or ISTn from the 64-bit TSS into T3: 1 or 0."""
    if offset + 7 > load64(s + S.TR + S.LIMIT):
        return raise_at(s, S.TS, load64(s + S.TR + S.SEL) & 0xFFFC, 1)
    return read_system(s, load64(s + S.TR + S.BASE) + offset, 8, s + S.T3)


@compiled
def deliver64(s, vector, error, has_error, kind):
    """Through a 64-bit gate: DELIVERED, or FAILED with the next exception or exit in LEAVE."""
    entry = vector * 16
    idt_error = vector * 8 + 2 + (0 if kind == SOFTWARE else 1)
    if entry + 15 > load64(s + S.IDTR_LIMIT):
        return raise_at(s, S.GP, idt_error, 1)
    if read_system(s, load64(s + S.IDTR_BASE) + entry, 16, s + S.T0) == 0:
        return FAILED
    low, high = load64(s + S.T0), load64(s + S.T0 + 8)
    attributes, selector = lshr(low, 40), lshr(low, 16) & 0xFFFF
    gate = attributes & 0x1F
    target = low & 0xFFFF | lshr(low, 32) & 0xFFFF0000 | shl(high, 32)
    cpl = load64(s + S.CPL)
    if (gate != 14 and gate != 15) or (kind == SOFTWARE and (attributes >> 5 & 3) < cpl):
        return raise_at(s, S.GP, idt_error, 1)
    if attributes >> 7 & 1 == 0:
        return raise_at(s, S.NP, idt_error, 1)
    if selector & 0xFFFC == 0:
        return raise_at(s, S.GP, 0 if kind == SOFTWARE else 1, 1)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return FAILED
    code = load64(s + S.T1)
    code_attr = lshr(code, 40)
    dpl = code_attr >> 5 & 3
    if found == 2 or code_attr & 0x18 != 0x18 or dpl > cpl or code_attr >> 13 & 3 != 1:
        return raise_at(s, S.GP, selector_error(selector, kind), 1)
    if code_attr >> 7 & 1 == 0:
        return raise_at(s, S.NP, selector_error(selector, kind), 1)
    new_cpl = cpl if code_attr & 4 else dpl
    ist = high_ist(low)
    stack = load64(s + S.RSP)
    if ist != 0:
        if stack_in_tss(s, 28 + 8 * ist) == 0:
            return FAILED
        stack = load64(s + S.T3)
    elif new_cpl < cpl:
        if stack_in_tss(s, 4 + 8 * new_cpl) == 0:
            return FAILED
        stack = load64(s + S.T3)
    stack &= -16
    old_flags = rflags(s)
    if kind == EXCEPTION and vector != S.DB and vector != S.BP and vector != S.OF_TRAP:
        old_flags |= S.RF  # faults are resumed with RF set (SDM vol. 3, 17.3.1.1)
    size = 48 if has_error else 40
    at = s + S.T2
    if has_error:
        store64(at, error)
        at += 8
    store64(at, load64(s + S.RIP))
    store64(at + 8, load64(s + S.CS + S.SEL))
    store64(at + 16, old_flags)
    store64(at + 24, load64(s + S.RSP))
    store64(at + 32, load64(s + S.SS + S.SEL))
    # The frame is written with the privilege of the handler; SS limits do not matter in 64-bit mode.
    if write_system(s, stack - size, size, s + S.T2) == 0:
        return FAILED
    store64(s + S.RSP, stack - size)
    store64(s + S.RIP, target)
    load_hidden(s, s + S.CS, selector & 0xFFFC | new_cpl, code)
    if new_cpl < cpl:
        nullify(s, s + S.SS, new_cpl)
        store64(s + S.SS + S.ATTR, 1 << 16 | new_cpl << 5)
    clear = S.TF | S.NT | S.RF | S.VM86 | (S.IF if gate == 14 else 0)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~clear)
    derive_mode(s)
    return DELIVERED


@compiled
def high_ist(low):
    """The IST field of a gate."""
    return lshr(low, 32) & 7


@group.add
def deliver(s, vector, error, kind):
    """Deliver one event; error is -1 for none. DELIVERED, or FAILED: LEAVE tells the next exception, or an exit.

    A nested exception is combined by the caller (raise_pending).
    """
    if load64(s + S.HFLAGS) & S.MODE_LONG == 0:
        memset(s + S.INSN_BYTES, 0, 16)
        store64(s + S.INSN_LENGTH, 0)
        store64(s + S.EXIT, S.EXIT_UNIMPLEMENTED)
        store64(s + S.LEAVE, S.LEAVE_EXIT)
        return FAILED
    store64(s + S.STEP_TRAP, 0)  # a handler begins without the trap of the instruction that called it
    return deliver64(s, vector, 0 if error == -1 else error, error != -1, kind)


@group.add
def deliver_exception(s):
    """Deliver the pending exception, with double and triple faults: DELIVERED, or FAILED with an exit in LEAVE."""
    store64(s + S.EXCEPTIONS_TAKEN, load64(s + S.EXCEPTIONS_TAKEN) + 1)
    while True:
        vector = load64(s + S.EXC_VECTOR)
        error = load64(s + S.EXC_ERROR) if load64(s + S.EXC_HAS_ERROR) else -1
        store64(s + S.EXC_PENDING, 0)
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        if load64(s + S.EXC_PAYLOAD_USE) != S.PAYLOAD_DONE:
            apply_payload(s, vector)
        store64(s + S.EXC_PAYLOAD_USE, S.PAYLOAD_BY_VECTOR)
        if vector == S.DB:
            begin_handler(s)
        rip, software = load64(s + S.RIP), vector == S.BP or vector == S.OF_TRAP
        if software:  # the embedder's: INT3 and INTO deliver theirs themselves
            store64(s + S.RIP, rip + 1)
        if deliver(s, vector, error, SOFTWARE if software else EXCEPTION) == DELIVERED:
            return DELIVERED
        store64(s + S.RIP, rip)
        leave = load64(s + S.LEAVE)
        if leave != S.LEAVE_EXCEPTION:
            # An exit or a retry while delivering: the event stays to be delivered.
            store64(s + S.EXC_VECTOR, vector)
            store64(s + S.EXC_ERROR, 0 if error == -1 else error)
            store64(s + S.EXC_HAS_ERROR, error != -1)
            store64(s + S.EXC_PAYLOAD_USE, S.PAYLOAD_DONE)
            store64(s + S.EXC_PENDING, 1)
            return FAILED
        if vector == S.DF_FAULT:
            store64(s + S.EXC_PENDING, 0)
            store64(s + S.EXIT, S.EXIT_SHUTDOWN)
            store64(s + S.LEAVE, S.LEAVE_EXIT)
            return FAILED
        second = load64(s + S.EXC_VECTOR)
        if (contributory(vector) and contributory(second)) or (
            vector == S.PF_FAULT and (contributory(second) or second == S.PF_FAULT)
        ):
            store64(s + S.EXC_VECTOR, S.DF_FAULT)
            store64(s + S.EXC_ERROR, 0)
            store64(s + S.EXC_HAS_ERROR, 1)


@group.add
def derive(s):
    """Recompute what follows from the architectural state, after the embedder has changed it."""
    return derive_mode(s)


@group.add
def software_interrupt(s, vector):
    """INT n with RIP already past it: 1, or 0 with LEAVE set."""
    return deliver(s, vector, -1, SOFTWARE)
