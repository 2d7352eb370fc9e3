"""Task switches (SDM vol. 3, ch. 8).

Faults that are found before the old task is left are the old task's; what is wrong with the new one's LDT, segments
and instruction pointer is the new one's, at its first instruction. An exit of the latter kind (memory that the
embedder must see to) puts everything back, so that the switch happens once, later.
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu.group import PROBE_WRITE, TLB_FLUSH
from ..raw import call2, call3, load8, load16, load32, load64, lshr, memcpy, memset, store8, store16, store64, ult
from .control import write_cr3
from .debug import group as debug_group
from .debug import trap
from .descriptor import (
    UNUSABLE,
    attributes,
    code_descriptor,
    data_descriptor,
    load_hidden,
    load_real,
    load_segment,
    nullify,
    read_descriptor,
    selector_fault,
)
from .flags import rflags, set_arithmetic
from .gate import current_stack, push_frame, put
from .supervisor import IMPLICIT, call_member, derive_mode, linear, raise_at, read_system, write_system

group = Group("task", __name__)

ARM_BREAKPOINTS = debug_group.slot("arm_breakpoints")

# How a task is entered; with FROM_EVENT it is an exception or interrupt (EXT is set), with FROM_FAULT its RF is saved
BY_CALL, BY_IRET, BY_JMP, BY_GATE = 0, 1, 2, 3
FROM_EVENT, FROM_FAULT = 4, 8
NESTS = 1 << BY_CALL | 1 << BY_GATE  # the new task has NT and a link back, the old one stays busy

FAILED, DONE = 0, 1
LOCAL_BREAKPOINTS = 0x155  # DR7's L0 to L3 and LE
BUSY = 2  # in a TSS descriptor's type


@compiled
def read_link(s):
    """T3 <- the selector of the task that this one interrupted: 1, or 0 to leave."""
    return read_system(s, load64(s + S.TR + S.BASE), 2, s + S.T3)


@compiled
def find_tss(s, selector, how):
    """T1 <- the new TSS's descriptor: 1, or 0 to leave."""
    by, ext = how & 3, 1 if how & FROM_EVENT else 0
    vector, wanted = S.TS if by == BY_IRET else S.GP, 8 | (BUSY if by == BY_IRET else 0) | 1
    if selector & 4:
        return selector_fault(s, vector, selector, ext)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    attr = attributes(load64(s + S.T1))
    if found == 2 or attr & 0x1F | 8 != wanted:
        return selector_fault(s, vector, selector, ext)
    if attr >> 7 & 1 == 0:
        return selector_fault(s, S.NP, selector, ext)
    return 1


@compiled
def can_write(s, la, size):
    """1, or 0 to leave: what is written later will not fault."""
    function = load64(load64(s + S.FUNCTIONS) + 8 * PROBE_WRITE)
    return 0 if call3(function, s, linear(s, la), size | IMPLICIT) == 0 else 1


@compiled
def busy_byte(s, selector):
    """Linear address of the byte with a TSS descriptor's type."""
    return load64(s + S.GDTR_BASE) + (selector & 0xFFF8) + 5


@compiled
def set_busy(s, selector, busy):
    if read_system(s, busy_byte(s, selector), 1, s + S.T3) == 0:
        return 0
    store8(s + S.T3, load8(s + S.T3) & ~BUSY | busy)
    return write_system(s, busy_byte(s, selector), 1, s + S.T3)


@compiled
def save_old(s, how):
    """The dynamic fields of the current TSS: 1, or 0 to leave."""
    size, start = (4, 0x20) if load64(s + S.TR + S.ATTR) & 8 else (2, 0x0E)
    flags = rflags(s)
    if how & 3 == BY_IRET:
        flags &= ~S.NT
    if how & FROM_FAULT:
        flags |= S.RF
    at = put(s + S.FRAME, size, load64(s + S.RIP))
    at = put(at, size, flags)
    for number in range(8):
        at = put(at, size, load64(s + S.GPR + 8 * number))
    for number in range(6 if size == 4 else 4):
        at = put(at, size, load64(s + S.SEGMENTS + S.SEGMENT_SIZE * number + S.SEL))
    return write_system(s, load64(s + S.TR + S.BASE) + start, at - (s + S.FRAME), s + S.FRAME)


# Everything that a switch changes, as it was: it goes to IMAGE and comes back should the switch have to wait.

REGISTERS, REGISTER_BYTES = S.GPR, S.LEAVE - S.GPR
CONTEXT, CONTEXT_BYTES = S.SEGMENTS, S.EFER - S.SEGMENTS
NEW_IMAGE = 904  # place of the new TSS in IMAGE
assert REGISTER_BYTES + CONTEXT_BYTES <= NEW_IMAGE <= 1024 - 112


@compiled
def keep(s):
    memcpy(s + S.IMAGE, s + REGISTERS, REGISTER_BYTES)
    memcpy(s + S.IMAGE + REGISTER_BYTES, s + CONTEXT, CONTEXT_BYTES)


@compiled
def put_back(s):
    memcpy(s + REGISTERS, s + S.IMAGE, REGISTER_BYTES)
    memcpy(s + CONTEXT, s + S.IMAGE + REGISTER_BYTES, CONTEXT_BYTES)
    call2(load64(load64(s + S.FUNCTIONS) + 8 * TLB_FLUSH), s, 0)
    call_member(s, ARM_BREAKPOINTS)


@compiled
def load_registers(s, how, wide):
    """From the new TSS; segment registers get their selectors, and are not usable yet."""
    image = s + S.IMAGE + NEW_IMAGE
    size, at = (4, image + 0x20) if wide else (2, image + 0x0E)
    for word in range(10):
        value = load32(at) if wide else load16(at)
        at += size
        if word == 0:
            store64(s + S.RIP, value)
        elif word == 1:
            value = value & DEFINED | (S.NT if NESTS >> (how & 3) & 1 else 0)
            store64(s + S.RFLAGS, value & ~S.ARITHMETIC | 2)
            set_arithmetic(s, value)
        else:
            store64(s + S.GPR + 8 * (word - 2), value)
    for number in range(6):
        there = wide or number < 4
        nullify(s, s + S.SEGMENTS + S.SEGMENT_SIZE * number, load16(at) if there else 0)
        at += size
    nullify(s, s + S.LDTR, load16(image + 0x60) if wide else load16(image + 0x2A))
    level = 3 if load64(s + S.RFLAGS) & S.VM86 else load64(s + S.CS + S.SEL) & 3
    store64(s + S.SS + S.ATTR, UNUSABLE | level << 5)
    derive_mode(s)


DEFINED = S.ARITHMETIC | S.TF | S.IF | S.DF | S.IOPL | S.NT | S.RF | S.VM86 | S.AC | S.VIF | S.VIP | S.ID


@compiled
def load_ldt(s, ext):
    selector = load64(s + S.LDTR + S.SEL)
    if selector & 0xFFFC == 0:
        return 1
    if selector & 4:
        return selector_fault(s, S.TS, selector, ext)
    found = read_descriptor(s, selector, s + S.T1)
    if found == 0:
        return 0
    if found == 2 or attributes(load64(s + S.T1)) & 0x9F != 0x82:
        return selector_fault(s, S.TS, selector, ext)
    load_hidden(s, s + S.LDTR, selector, load64(s + S.T1))
    return 1


@compiled
def load_code_and_stack(s, ext):
    """CS at its selector's RPL, SS at the same level: 1, or 0 to leave."""
    selector = load64(s + S.CS + S.SEL)
    if code_descriptor(s, selector, S.TS, ext) == 0 or load_segment(s, s + S.CS, selector, load64(s + S.T1)) == 0:
        return 0
    level, selector = selector & 3, load64(s + S.SS + S.SEL)
    if selector & 0xFFFC == 0:
        return raise_at(s, S.TS, ext, 1)
    if data_descriptor(s, selector, level, 1, S.TS, ext) == 0:
        return 0
    return load_segment(s, s + S.SS, selector, load64(s + S.T1))


@compiled
def load_segments(s, ext):
    """Descriptors for the new task's selectors: 1, or 0 to leave."""
    if load_ldt(s, ext) == 0:
        return 0
    v86 = load64(s + S.RFLAGS) & S.VM86
    if v86 == 0 and load_code_and_stack(s, ext) == 0:
        return 0
    for number in range(6):
        seg = s + S.SEGMENTS + S.SEGMENT_SIZE * number
        selector = load64(seg + S.SEL)
        if v86:
            load_real(s, seg, selector)
        elif number != 1 and number != 2 and selector & 0xFFFC != 0:
            if data_descriptor(s, selector, load64(s + S.CPL), 0, S.TS, ext) == 0:
                return 0
            if load_segment(s, seg, selector, load64(s + S.T1)) == 0:
                return 0
    derive_mode(s)
    if ult(load64(s + S.CS + S.LIMIT), load64(s + S.RIP)):
        return raise_at(s, S.GP, ext, 1)
    return 1


@compiled
def push_error(s, error, size):
    """An exception's error code, on the new task's stack."""
    store64(s + S.FRAME, error)
    current_stack(s)
    if push_frame(s, s + S.FRAME + size, size, load64(s + S.CPL), 0) == 0:
        return 0
    store64(s + S.RSP, load64(s + S.NEW_RSP))
    return 1


@compiled
def enter_task(s, how, error, wide):
    """All that happens in the new task's name: 1, or 0 to leave."""
    ext = 1 if how & FROM_EVENT else 0
    image = s + S.IMAGE + NEW_IMAGE
    load_registers(s, how, wide)
    if wide and load64(s + S.CR0) & S.CR0_PG and write_cr3(s, load32(image + 0x1C)) == 0:
        return 0
    if load_segments(s, ext) == 0:
        return 0
    if error >= 0 and push_error(s, error, 4 if wide else 2) == 0:
        return 0
    if wide and load8(image + 0x64) & 1:
        trap(s, S.DR6_BT)
    return 1


@group.add
def task_switch(s, selector, how, error):
    """To the task of a TSS: DONE, perhaps with an exception of the new task in LEAVE; or FAILED, nothing changed.

    RIP is where the old task is to go on; `error` is pushed on the new task's stack unless it is -1.
    """
    if find_tss(s, selector, how) == 0:
        return FAILED
    low, old, nests = load64(s + S.T1), load64(s + S.TR + S.SEL), NESTS >> (how & 3) & 1
    wide = lshr(low, 40) & 8
    load_hidden(s, s + S.NEW_SS, selector, low)
    base, limit = load64(s + S.NEW_SS + S.BASE), load64(s + S.NEW_SS + S.LIMIT)
    if limit < (0x67 if wide else 0x2B):
        return selector_fault(s, S.TS, selector, 1 if how & FROM_EVENT else 0)
    memset(s + S.IMAGE + NEW_IMAGE, 0, 104)
    if read_system(s, base, 104 if wide else 44, s + S.IMAGE + NEW_IMAGE) == 0:
        return FAILED
    if can_write(s, busy_byte(s, old), 1) == 0 or can_write(s, busy_byte(s, selector), 1) == 0:
        return FAILED
    if nests and can_write(s, base, 2) == 0:
        return FAILED
    keep(s)
    if save_old(s, how) == 0:
        return FAILED
    if nests:
        store16(s + S.T3, old)
        write_system(s, base, 2, s + S.T3)
    else:
        set_busy(s, old, 0)
    set_busy(s, selector, BUSY)
    load_hidden(s, s + S.TR, selector, low | BUSY << 40)
    store64(s + S.CR0, load64(s + S.CR0) | S.CR0_TS)
    store64(s + S.DR7, load64(s + S.DR7) & ~LOCAL_BREAKPOINTS)
    call_member(s, ARM_BREAKPOINTS)
    if enter_task(s, how, error, wide) == 0 and load64(s + S.LEAVE) != S.LEAVE_EXCEPTION:
        put_back(s)
        set_busy(s, selector, BUSY if how & 3 == BY_IRET else 0)
        set_busy(s, old, BUSY)
        return FAILED
    if how & 3 == BY_IRET:
        store64(s + S.NMI_MASKED, 0)
    return DONE


TASK_SWITCH = group.slot("task_switch")
