"""Far CALL, JMP and RET, IRET, call gates (SDM vol. 2; vol. 3, 5.8).

A transfer is worked out in NEW_CS, NEW_RIP, NEW_SS and NEW_RSP (gate.py); it has happened when all checks are done.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import call4, load8, load64, lshr, store64
from .access import peek_value, push_value, read_pointer, truncate
from .descriptor import (
    attributes,
    copy_segment,
    load_real,
    load_segment,
    mixed,
    read_descriptor,
    selector_fault,
)
from .far_return import far_return, iret_real, pop_frame, refused_in_v86, return_real, return_to_v86
from .gate import (
    commit,
    current_stack,
    gate_code,
    gate_offset,
    inner_stack,
    leads_outside,
    level_of,
    push_frame,
    put,
)
from .operand import dst, fault, leave_to, rip_here, rip_next
from .record import IMM, OSIZE
from .supervisor import derive_mode
from .task import BY_CALL, BY_IRET, BY_JMP, TASK_SWITCH, read_link

group = Group("far", __name__)

CALL_GATE16, TASK_GATE, CALL_GATE32 = 4, 5, 12
TSS16, TSS32 = 1, 9


@compiled
def switch_task(s, r, selector, how):
    """To another task; it is to come back to the next instruction."""
    store64(s + S.RIP, rip_next(s, r))
    function = load64(load64(s + S.FUNCTIONS) + 8 * TASK_SWITCH)
    if call4(function, s, selector, how, -1) == 0:
        store64(s + S.RIP, rip_here(s, r))
    return 0


# CALL and JMP


@compiled
def push_return(s, r):
    """CS and the next instruction's address, for a CALL: 1, or 0 with RSP unchanged."""
    size, old = load8(r + OSIZE), load64(s + S.RSP)
    if push_value(s, r, load64(s + S.CS + S.SEL), size) == 0:
        return 0
    if push_value(s, r, rip_next(s, r), size) == 0:
        store64(s + S.RSP, old)
        return 0
    return 1


@compiled
def arrive(s, r, call):
    """To NEW_CS:NEW_RIP on the same stack: 0, as a handler returns."""
    old = load64(s + S.RSP)
    if call and push_return(s, r) == 0:
        return 0
    if leads_outside(s):
        store64(s + S.RSP, old)
        return fault(s, r, S.GP, 0, 1)
    copy_segment(s + S.CS, s + S.NEW_CS)
    derive_mode(s)
    return leave_to(s, load64(s + S.NEW_RIP))


@compiled
def to_code(s, r, selector, call):
    """A code segment, by its own descriptor in T1."""
    attr, cpl = attributes(load64(s + S.T1)), load64(s + S.CPL)
    dpl, rpl = attr >> 5 & 3, selector & 3
    denied = dpl > cpl if attr & 4 else rpl > cpl or dpl != cpl
    if attr & 8 == 0 or denied or mixed(s, attr):
        return selector_fault(s, S.GP, selector, 0)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.NP, selector, 0)
    if load_segment(s, s + S.NEW_CS, selector & 0xFFFC | cpl, load64(s + S.T1)) == 0:
        return 0
    return arrive(s, r, call)


@compiled
def gate_frame(s, r, size, count):
    """What CALL through a gate pushes: FRAME's end, or 0 to leave. `count`: parameters from the outer stack, or -1."""
    at = put(s + S.FRAME, size, rip_next(s, r))
    at = put(at, size, load64(s + S.CS + S.SEL))
    if count < 0:
        return at
    for number in range(count):
        if peek_value(s, r, number * size, size) == 0:
            return 0
        at = put(at, size, load64(s + S.T3))
    at = put(at, size, load64(s + S.RSP))
    return put(at, size, load64(s + S.SS + S.SEL))


@compiled
def to_call_gate(s, r, selector, kind, call):
    """Through the call gate in T1; its descriptor has 16 bytes in long mode, without a type in the upper half."""
    low, high, size = load64(s + S.T1), 0, 4 if kind == CALL_GATE32 else 2
    if load64(s + S.HFLAGS) & S.MODE_LONG:
        found = read_descriptor(s, selector + 8, s + S.T2)
        if found == 0:
            return 0
        high, size = load64(s + S.T2), 8
        if found == 2 or attributes(high) & 0x1F:
            return selector_fault(s, S.GP, selector, 0)
    target, cpl = lshr(low, 16) & 0xFFFF, load64(s + S.CPL)
    if gate_code(s, target, 0) == 0:
        return 0
    store64(s + S.NEW_RIP, gate_offset(low, high, size))
    level = level_of(s)
    if call == 0 and level != cpl:
        return selector_fault(s, S.GP, target, 0)
    inner = level < cpl
    if (inner_stack(s, level, 0) if inner else current_stack(s)) == 0:
        return 0
    if call:
        parameters = 0 if size == 8 else lshr(low, 32) & 31
        end = gate_frame(s, r, size, parameters if inner else -1)
        error = load64(s + S.NEW_SS + S.SEL) & 0xFFFC if inner else 0
        if end == 0 or push_frame(s, end, size, level, error) == 0:
            return 0
    if leads_outside(s):
        return fault(s, r, S.GP, 0, 1)
    commit(s, level)
    return 0


@compiled
def to_system(s, r, selector, call):
    """A gate or a task, by its descriptor in T1."""
    attr, long = attributes(load64(s + S.T1)), load64(s + S.HFLAGS) & S.MODE_LONG
    kind, dpl = attr & 15, attr >> 5 & 3
    known = kind == CALL_GATE32
    if long == 0:
        known = known or kind in (CALL_GATE16, TASK_GATE, TSS16, TSS32)
    if not known or dpl < load64(s + S.CPL) or dpl < selector & 3:
        return selector_fault(s, S.GP, selector, 0)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.NP, selector, 0)
    if kind in (CALL_GATE16, CALL_GATE32):
        return to_call_gate(s, r, selector, kind, call)
    if kind == TASK_GATE:
        selector = lshr(load64(s + S.T1), 16) & 0xFFFF
    return switch_task(s, r, selector, BY_CALL if call else BY_JMP)


@group.add
def far_branch(s, r, call):
    """To the selector in NEW_CS and the offset in NEW_RIP."""
    store64(s + S.RIP, rip_here(s, r))
    selector = load64(s + S.NEW_CS + S.SEL)
    if load64(s + S.HFLAGS) & S.MODE_PROTECTED == 0:
        copy_segment(s + S.NEW_CS, s + S.CS)
        load_real(s, s + S.NEW_CS, selector)
        return arrive(s, r, call)
    if selector & 0xFFFC == 0:
        return fault(s, r, S.GP, 0, 1)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    if found == 2:
        return selector_fault(s, S.GP, selector, 0)
    if attributes(load64(s + S.T1)) & 0x10:
        return to_code(s, r, selector, call)
    return to_system(s, r, selector, call)


def _direct(call):
    """ptr16:16, ptr16:32: the offset is in IMM, the selector in DST."""

    def handler(s, r):
        store64(s + S.NEW_CS + S.SEL, dst(r) & 0xFFFF)
        store64(s + S.NEW_RIP, truncate(load64(r + IMM), load8(r + OSIZE)))
        return far_branch(s, r, call)

    return handler


def _indirect(call):
    """m16:16, m16:32, m16:64."""

    def handler(s, r):
        if read_pointer(s, r, load8(r + OSIZE), s + S.NEW_RIP, s + S.T2) == 0:
            return 0
        store64(s + S.NEW_CS + S.SEL, load64(s + S.T2) & 0xFFFF)
        return far_branch(s, r, call)

    return handler


for _name, _call in (("jmp_far", 0), ("call_far", 1)):
    group.add(_direct(_call), _name)
    group.add(_indirect(_call), f"{_name}_mem")


# RET and IRET


@compiled
def ret_far_any(s, r, release):
    size = load8(r + OSIZE)
    if pop_frame(s, r, size, 0) == 0:
        return 0
    if load64(s + S.HFLAGS) & S.MODE_PROTECTED:
        return far_return(s, r, size, release, 0)
    return_real(s, r, size, 2 * size + release)
    return 0


@group.add
def ret_far_imm(s, r):
    return ret_far_any(s, r, load64(r + IMM) & 0xFFFF)


@group.add
def ret_far(s, r):
    """RETF: its IMM is 0."""
    return ret_far_any(s, r, 0)


@group.add
def iret(s, r):
    size, hflags = load8(r + OSIZE), load64(s + S.HFLAGS)
    store64(s + S.RIP, rip_here(s, r))
    if hflags & S.MODE_PROTECTED and load64(s + S.RFLAGS) & S.NT:
        if hflags & S.MODE_LONG:
            return fault(s, r, S.GP, 0, 1)
        if read_link(s) == 0:
            return 0
        return switch_task(s, r, load64(s + S.T3) & 0xFFFF, BY_IRET)
    if refused_in_v86(s, size):
        return fault(s, r, S.GP, 0, 1)
    if pop_frame(s, r, size, 1) == 0:
        return 0
    if hflags & S.MODE_PROTECTED == 0:
        return iret_real(s, r, size)
    to_v86 = hflags & S.MODE_LONG == 0 and size == 4 and load64(s + S.T0) & S.VM86
    if to_v86 and load64(s + S.CPL) == 0:
        return return_to_v86(s, r)
    return far_return(s, r, size, 0, 1)
