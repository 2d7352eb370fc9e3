"""Debug exceptions: breakpoints, single step, general detect, and the embedder as the debugger (SDM vol. 3, ch. 18).

Conditions are DR6 bits. A trap comes after its instruction, with RIP past it: the guest's becomes a pending #DB, the
debugger's an EXIT_DEBUG that is due. A fault (a breakpoint on code, general detect) comes before.
"""

from .. import state as S
from ..breakpoint import EXECUTION, derive_breakpoints, is_armed, met_on_page, watch_port
from ..build import Group, compiled
from ..mmu.group import TLB_FLUSH
from ..raw import call2, load64, shl, store64, zext32
from .supervisor import derive_mode, raise_at

group = Group("debug", __name__)


# Who gets it


@compiled
def is_debuggers(s):
    """Whether the embedder takes every #DB."""
    return 1 if load64(s + S.SINGLE_STEP) or load64(s + S.DEBUGGER) & S.DEBUG_HARDWARE else 0


@compiled
def leave_debug(s, vector, conditions):
    """EXIT_DEBUG, with what DR6 would be."""
    store64(s + S.EXIT_ARGS, vector)
    store64(s + S.EXIT_ARGS + 8, conditions | S.DR6_ACTIVE_LOW)
    store64(s + S.EXIT_ARGS + 16, load64(s + S.BREAK_CONTROL))
    store64(s + S.EXIT, S.EXIT_DEBUG)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@compiled
def raise_debug(s, conditions):
    """#DB with RIP as it is, for whom it is."""
    if is_debuggers(s):
        return leave_debug(s, S.DB, conditions)
    store64(s + S.EXC_PAYLOAD, conditions)
    return raise_at(s, S.DB, 0, 0)


@compiled
def trap(s, conditions):
    """An instruction is done that met `conditions`: LEAVE stays as it is."""
    if is_debuggers(s):
        store64(s + S.DEBUG_DUE, load64(s + S.DEBUG_DUE) | conditions)
        return 0
    leave = load64(s + S.LEAVE)
    raise_debug(s, conditions)
    store64(s + S.LEAVE, leave)
    return 0


@compiled
def leave_if_due(s):
    """1: EXIT_DEBUG is due, and LEAVE says so now."""
    due = load64(s + S.DEBUG_DUE)
    if due == 0:
        return 0
    store64(s + S.DEBUG_DUE, 0)
    leave_debug(s, S.DB, due)
    return 1


@compiled
def apply_payload(s, vector):
    """What an exception brings into CR2 or DR6 when it is delivered (kvm_deliver_exception_payload)."""
    payload = load64(s + S.EXC_PAYLOAD)
    if vector == S.PF_FAULT:
        store64(s + S.CR2, payload)
    elif vector == S.DB:
        dr6 = load64(s + S.DR6) & ~S.DR6_TRAPS | S.DR6_RTM
        dr6 = dr6 & ~(payload & S.DR6_ACTIVE_LOW) | payload & ~S.DR6_ACTIVE_LOW
        store64(s + S.DR6, dr6 & ~(1 << 12) | S.DR6_FIXED_1)
    return 0


@compiled
def begin_handler(s):
    """#DB is about to be delivered: the handler may touch the debug registers."""
    store64(s + S.DR7, load64(s + S.DR7) & ~S.DR7_GD)
    if load64(s + S.DEBUGGER) & S.DEBUG_HARDWARE == 0:
        store64(s + S.BREAK_CONTROL, load64(s + S.DR7))
    return 0


# Before an instruction


@compiled
def breakpoint_here(s, la):
    """Whether a breakpoint on code is met at linear RIP `la`: 1 with LEAVE set."""
    # Intel's processors hold it off behind a MOV SS, AMD's do not.
    held = load64(s + S.INTR_SHADOW) & 2 and load64(s + S.IS_AMD) == 0
    if load64(s + S.RFLAGS) & S.RF or held:
        return 0
    hits = 0
    for number in range(4):
        if is_armed(s, number, EXECUTION) and load64(s + S.BREAK_ADDRESS + 8 * number) == la:
            hits |= shl(1, number)
    if hits != 0:
        raise_debug(s, hits)
    return 1 if hits != 0 else 0


@compiled
def breakpoint_near(s, la):
    """Whether there is a breakpoint on code on the page of `la`."""
    return met_on_page(s, la, EXECUTION)


@compiled
def general_detect(s):
    """DR7.GD guards the debug registers: 1 with LEAVE set."""
    if load64(s + S.BREAK_CONTROL) & S.DR7_GD == 0:
        return 0
    if load64(s + S.DEBUGGER) & S.DEBUG_HARDWARE:
        leave_debug(s, S.DB, S.DR6_BD)
    else:
        store64(s + S.EXC_PAYLOAD, S.DR6_BD)
        raise_at(s, S.DB, 0, 0)
    return 1


# After one


@compiled
def after_instruction(s, conditions):
    """An instruction has retired; behind a MOV SS its traps wait for the next, and it is no single step."""
    conditions |= load64(s + S.BREAK_HITS)
    store64(s + S.BREAK_HITS, 0)
    if load64(s + S.SHADOW_SET) and load64(s + S.INTR_SHADOW) & 2:
        store64(s + S.HELD_DEBUG, load64(s + S.HELD_DEBUG) | conditions & ~S.DR6_BS)
        return 0
    conditions |= load64(s + S.HELD_DEBUG)
    store64(s + S.HELD_DEBUG, 0)
    return trap(s, conditions) if conditions != 0 else 0


@group.add
def retire(s):
    """Step over the instruction at RIP that the embedder has carried out (kvm_skip_emulated_instruction)."""
    rip = load64(s + S.RIP) + load64(s + S.INSN_LENGTH)
    store64(s + S.RIP, rip if load64(s + S.HFLAGS) & S.MODE_CODE64 else zext32(rip))
    store64(s + S.INTR_SHADOW, 0)
    store64(s + S.SHADOW_SET, 0)
    flags = load64(s + S.RFLAGS)
    store64(s + S.RFLAGS, flags & ~S.RF)
    derive_mode(s)
    return after_instruction(s, S.DR6_BS if flags & S.TF or load64(s + S.SINGLE_STEP) else 0)


@group.add
def retire_pio(s):
    """The same for IN or OUT, whose port may have a breakpoint."""
    store64(s + S.BREAK_HITS, watch_port(s, load64(s + S.PIO_PORT), load64(s + S.PIO_SIZE)))
    return retire(s)


@group.add
def arm_breakpoints(s):
    """DR7, a debug register or DEBUGGER has changed. With DEBUG_HARDWARE, BREAK_* are what the embedder put there."""
    if load64(s + S.DEBUGGER) & S.DEBUG_HARDWARE == 0:
        for number in range(4):
            store64(s + S.BREAK_ADDRESS + 8 * number, load64(s + S.DR + 8 * number))
        store64(s + S.BREAK_CONTROL, load64(s + S.DR7))
    derive_breakpoints(s)
    if load64(s + S.BREAK_DATA):
        call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH), s, 0)
    return derive_mode(s)
