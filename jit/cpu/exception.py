"""Delivering exceptions and interrupts through the IDT, and what happens when that fails (SDM vol. 3, ch. 6)."""

from .. import state as S
from ..build import Group, compiled
from ..raw import call4, load16, load64, lshr, store64
from .access import set_rsp
from .debug import apply_payload, begin_handler
from .descriptor import load_real, nullify, nullify_stack, selector_fault
from .flags import rflags
from .gate import (
    commit,
    current_stack,
    gate_code,
    gate_offset,
    inner_stack,
    ist_stack,
    leads_outside,
    level_of,
    push_frame,
    put,
)
from .supervisor import derive_mode, raise_at, read_system
from .task import BY_GATE, FROM_EVENT, FROM_FAULT, TASK_SWITCH

group = Group("exception", __name__)

FAILED, DELIVERED = 0, 1
EXTERNAL, EXCEPTION, SOFTWARE = 0, 1, 2  # what is delivered: decides the EXT bit, gate privilege, RF
TASK_GATE, INTERRUPT16, TRAP16, INTERRUPT, TRAP = 5, 6, 7, 14, 15  # gate types; TRAP has the bit that keeps IF


@compiled
def contributory(vector):
    """The class that makes a double fault (SDM vol. 3, table 6-4)."""
    return vector == S.DE or (vector >= S.TS and vector <= S.GP)


@compiled
def is_fault(vector, kind):
    """Faults are resumed with RF set (SDM vol. 3, 17.3.1.1)."""
    return kind == EXCEPTION and vector != S.DB and vector != S.BP and vector != S.OF_TRAP


@compiled
def deliver_real(s, vector):
    """Through the interrupt vector table: a frame of three words, no error code, no change of stack."""
    if vector * 4 + 3 > load64(s + S.IDTR_LIMIT):
        return raise_at(s, S.GP, 0, 1)
    if read_system(s, load64(s + S.IDTR_BASE) + vector * 4, 4, s + S.T0) == 0:
        return FAILED
    at = put(s + S.FRAME, 2, load64(s + S.RIP))
    at = put(at, 2, load64(s + S.CS + S.SEL))
    at = put(at, 2, rflags(s))
    current_stack(s)
    if push_frame(s, at, 2, 0, 0) == 0:
        return FAILED
    set_rsp(s, load64(s + S.NEW_RSP))
    load_real(s, s + S.CS, load16(s + S.T0 + 2))
    store64(s + S.RIP, load16(s + S.T0))
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~(S.IF | S.TF | S.AC | S.RF))
    derive_mode(s)
    return DELIVERED


@compiled
def find_gate(s, vector, kind):
    """T0 <- the vector's IDT entry, good to be used: 1, or 0 to leave."""
    long = load64(s + S.HFLAGS) & S.MODE_LONG
    size = 16 if long else 8
    error = vector * 8 + 2 + (0 if kind == SOFTWARE else 1)
    if (vector + 1) * size - 1 > load64(s + S.IDTR_LIMIT):
        return raise_at(s, S.GP, error, 1)
    if read_system(s, load64(s + S.IDTR_BASE) + vector * size, size, s + S.T0) == 0:
        return 0
    attr = lshr(load64(s + S.T0), 40)
    gate = attr & 0x1F
    known = gate in (INTERRUPT, TRAP)
    if long == 0:
        known = known or gate in (INTERRUPT16, TRAP16, TASK_GATE)
    if not known or (kind == SOFTWARE and (attr >> 5 & 3) < load64(s + S.CPL)):
        return raise_at(s, S.GP, error, 1)
    return 1 if attr >> 7 & 1 else raise_at(s, S.NP, error, 1)


@compiled
def interrupt_stack(s, ist, level, ext):
    """NEW_SS:NEW_RSP <- the handler's stack: 1, or 0 to leave."""
    if ist == 0 and level < load64(s + S.CPL):
        return inner_stack(s, level, ext)
    current_stack(s)
    if level < load64(s + S.CPL):
        nullify_stack(s, s + S.NEW_SS, level, level)
    return ist_stack(s, ist, ext) if ist != 0 else 1


@compiled
def interrupt_frame(s, size, error, has_error, flags, whole):
    """FRAME's end. `whole`: with the stack pointer, and out of virtual-8086 mode the data segments."""
    at = s + S.FRAME
    if has_error:
        at = put(at, size, error)
    at = put(at, size, load64(s + S.RIP))
    at = put(at, size, load64(s + S.CS + S.SEL))
    at = put(at, size, flags)
    if whole:
        at = put(at, size, load64(s + S.RSP))
        at = put(at, size, load64(s + S.SS + S.SEL))
    if load64(s + S.HFLAGS) & S.MODE_V86:
        at = put(at, size, load64(s + S.ES + S.SEL))
        at = put(at, size, load64(s + S.DS + S.SEL))
        at = put(at, size, load64(s + S.FS + S.SEL))
        at = put(at, size, load64(s + S.GS + S.SEL))
    return at


@compiled
def deliver_by_gate(s, vector, error, has_error, kind):
    """Through an interrupt or trap gate of 16, 32 or 64 bits, or to a task."""
    if find_gate(s, vector, kind) == 0:
        return FAILED
    long, v86 = load64(s + S.HFLAGS) & S.MODE_LONG, load64(s + S.HFLAGS) & S.MODE_V86
    cpl, ext, fault = load64(s + S.CPL), 0 if kind == SOFTWARE else 1, is_fault(vector, kind)
    low, high = load64(s + S.T0), load64(s + S.T0 + 8)
    gate, selector = lshr(low, 40) & 0x1F, lshr(low, 16) & 0xFFFF
    if gate == TASK_GATE:
        how = BY_GATE | (FROM_EVENT if ext else 0) | (FROM_FAULT if fault else 0)
        function = load64(load64(s + S.FUNCTIONS) + 8 * TASK_SWITCH)
        return call4(function, s, selector, how, error if has_error else -1)
    if gate_code(s, selector, ext) == 0:
        return FAILED
    level = level_of(s)
    if v86 and level != 0:
        return selector_fault(s, S.GP, selector, ext)
    size = 8 if long else 4 if gate & 8 else 2
    if interrupt_stack(s, lshr(low, 32) & 7 if long else 0, level, ext) == 0:
        return FAILED
    store64(s + S.NEW_RIP, gate_offset(low, high, size))
    flags = rflags(s) | (S.RF if fault else 0)
    end = interrupt_frame(s, size, error, has_error, flags, long or level < cpl)
    if long:
        store64(s + S.NEW_RSP, load64(s + S.NEW_RSP) & -16)
    stack_error = ext | (load64(s + S.NEW_SS + S.SEL) & 0xFFFC if level < cpl else 0)
    if push_frame(s, end, size, level, stack_error) == 0:
        return FAILED
    if leads_outside(s):
        return raise_at(s, S.GP, ext, 1)
    clear = S.TF | S.NT | S.RF | S.VM86 | (0 if gate & 1 else S.IF)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~clear)
    commit(s, level)
    if v86:
        for number in (0, 3, 4, 5):
            nullify(s, s + S.SEGMENTS + S.SEGMENT_SIZE * number, 0)
    return DELIVERED


@group.add
def deliver(s, vector, error, kind):
    """Deliver one event; error is -1 for none. DELIVERED, or FAILED: LEAVE tells the next exception, or an exit.

    A nested exception is combined by the caller (deliver_exception). A task that is entered may begin with one of its
    own: DELIVERED with it pending.
    """
    store64(s + S.STEP_TRAP, 0)  # a handler begins without the trap of the instruction that called it
    if load64(s + S.CR0) & S.CR0_PE == 0:
        return deliver_real(s, vector)
    return deliver_by_gate(s, vector, 0 if error == -1 else error, error != -1, kind)


@group.add
def deliver_exception(s):
    """Deliver the pending exception, with double and triple faults: DELIVERED, or FAILED with an exit in LEAVE."""
    store64(s + S.EXCEPTIONS_TAKEN, load64(s + S.EXCEPTIONS_TAKEN) + 1)
    while True:
        vector = load64(s + S.EXC_VECTOR)
        # In real mode there are no error codes (kvm_inject_exception).
        error = load64(s + S.EXC_ERROR) if load64(s + S.EXC_HAS_ERROR) and load64(s + S.CR0) & S.CR0_PE else -1
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
            if load64(s + S.EXC_PENDING) == 0:
                return DELIVERED
            continue
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
