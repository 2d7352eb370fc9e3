"""The run loop: requests, events, blocks, and what ends them."""

from .. import state as S
from ..build import Group, compiled
from ..mmu import layout as M
from ..mmu.tlb import acknowledge_flush, enter_guest, leave_guest
from ..raw import atomic_and, call2, call4, load64, memcpy, store64
from . import record as R
from .access import linear_rip, probe
from .block import empty_cache, find_block
from .debug import after_instruction, breakpoint_here, breakpoint_near, leave_if_due, trap
from .decode import MAX_LENGTH
from .exception import DELIVERED, EXTERNAL
from .exception import group as exception_group
from .supervisor import call_member, derive_mode

group = Group("run", __name__)

DELIVER, DELIVER_EXCEPTION = exception_group.slot("deliver"), exception_group.slot("deliver_exception")


@compiled
def interruptible(s):
    """Whether an external interrupt may be delivered now."""
    return 1 if load64(s + S.RFLAGS) & S.IF and load64(s + S.INTR_SHADOW) == 0 else 0


@compiled
def deliver_event(s, vector, kind):
    """Deliver an interrupt or NMI: 1 when it is gone, maybe to an exception that this raised; 0 to try again."""
    return 1 if call_deliver(s, vector, -1, kind) == DELIVERED or load64(s + S.LEAVE) == S.LEAVE_EXCEPTION else 0


@compiled
def goes_on(s):
    """Whether nothing has to be looked at first."""
    return 1 if load64(s + S.LEAVE) == S.LEAVE_NEXT else 0


@compiled
def call_deliver(s, vector, error, kind):
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * DELIVER), s, vector, error, kind)


@compiled
def inject(s):
    """Deliver what the embedder injected (KVM_SET_VCPU_EVENTS, KVM_INTERRUPT, NMI): 1 while it is still to be done."""
    if load64(s + S.REQUEST) & S.REQ_TLB_FLUSH:
        acknowledge_flush(s)
    if load64(s + S.EXC_INJECTED) | load64(s + S.EXC_PENDING) == 0:
        store64(s + S.EXC_PAYLOAD_USE, S.PAYLOAD_BY_VECTOR)  # what was said was of no exception
    if load64(s + S.EXC_INJECTED) != 0:
        store64(s + S.EXC_INJECTED, 0)
        store64(s + S.EXC_PAYLOAD_USE, S.PAYLOAD_DONE)
        store64(s + S.EXC_PENDING, 1)
    elif load64(s + S.NMI_INJECTED) != 0:
        if not deliver_event(s, S.NMI, EXTERNAL):
            return 1
        store64(s + S.NMI_INJECTED, 0)
        store64(s + S.NMI_MASKED, 1)
        store64(s + S.NMIS_TAKEN, load64(s + S.NMIS_TAKEN) + 1)
    elif load64(s + S.INTR_INJECTED) != 0:
        if not deliver_event(s, load64(s + S.INTR_VECTOR), 2 if load64(s + S.INTR_SOFT) else EXTERNAL):
            return 1
        store64(s + S.INTR_INJECTED, 0)
        store64(s + S.IRQS_TAKEN, load64(s + S.IRQS_TAKEN) + 1)
    return 0


@compiled
def take_events(s):
    """NMIs, interrupts and the interrupt window between instructions: 0 when LEAVE must be looked at."""
    if load64(s + S.NMI_PENDING) != 0 and load64(s + S.NMI_MASKED) == 0 and load64(s + S.INTR_SHADOW) == 0:
        if not deliver_event(s, S.NMI, EXTERNAL):
            return 0
        store64(s + S.NMI_PENDING, load64(s + S.NMI_PENDING) - 1)
        store64(s + S.NMI_MASKED, 1)
        store64(s + S.NMIS_TAKEN, load64(s + S.NMIS_TAKEN) + 1)
        if not goes_on(s):
            return 0
    if interruptible(s):
        if load64(s + S.INTR_REQUEST) != 0 and load64(s + S.DEBUGGER) & S.DEBUG_BLOCK_IRQS == 0:
            if not deliver_event(s, load64(s + S.INTR_REQUEST) - 1, EXTERNAL):
                return 0
            store64(s + S.INTR_REQUEST, 0)
            store64(s + S.IRQS_TAKEN, load64(s + S.IRQS_TAKEN) + 1)
            if not goes_on(s):
                return 0
        elif load64(s + S.INTR_REQUEST) == 0 and load64(s + S.IRQ_WINDOW) != 0:
            return leave_exit(s, S.EXIT_IRQ_WINDOW)
    waiting = load64(s + S.INTR_REQUEST) | load64(s + S.IRQ_WINDOW) | load64(s + S.NMI_PENDING)
    if waiting == 0:
        atomic_and(s + S.REQUEST, ~S.REQ_EVENT)
    return 1


@compiled
def leave_exit(s, reason):
    """End the run with `reason`."""
    store64(s + S.EXIT, reason)
    store64(s + S.LEAVE, S.LEAVE_EXIT)
    return 0


@compiled
def serve_requests(s):
    """What other threads asked for: 0 when LEAVE must be looked at."""
    requests = load64(s + S.REQUEST)
    if requests & S.REQ_TLB_FLUSH:
        acknowledge_flush(s)
    if requests & S.REQ_STOP:
        atomic_and(s + S.REQUEST, ~S.REQ_STOP)
        return leave_exit(s, S.EXIT_INTERRUPTED)
    if requests & S.REQ_KICK:
        atomic_and(s + S.REQUEST, ~S.REQ_KICK)
        return leave_exit(s, S.EXIT_KICKED)
    if requests & S.REQ_DEBUG and take_hits(s) == 0:
        return 0
    if requests & S.REQ_EVENT and load64(s + S.EXC_PENDING) == 0:
        return take_events(s)
    return 1


@compiled
def take_hits(s):
    """Breakpoints that were met outside step(): 0 when LEAVE must be looked at."""
    atomic_and(s + S.REQUEST, ~S.REQ_DEBUG)
    hits = load64(s + S.BREAK_HITS)
    store64(s + S.BREAK_HITS, 0)
    if hits != 0 and load64(s + S.EXC_PENDING) == 0:  # an instruction that faults traps when it is done
        trap(s, hits)
    return 0 if leave_if_due(s) else 1


@compiled
def before_block(s):
    """All that may come between two blocks; 0 when LEAVE must be looked at."""
    asked, raised = load64(s + S.REQUEST), load64(s + S.EXC_PENDING)
    if asked | raised == 0:
        return 1
    if asked != 0 and serve_requests(s) == 0:
        return 0
    if load64(s + S.EXC_PENDING) != 0 and call_member(s, DELIVER_EXCEPTION) != DELIVERED:
        return 0
    if load64(s + S.REQUEST) & S.REQ_DEBUG:  # a frame was written to where a breakpoint is
        take_hits(s)
        return 0
    return 1


@compiled
def execute(s, b):
    """Run one block until a handler leaves it."""
    store64(s + S.BLOCK_RIP, load64(s + S.RIP))
    r = b + R.HEADER
    while r != 0:
        r = call2(load64(r + R.HANDLER), s, r)
    store64(s + S.INSTRUCTIONS, load64(s + S.INSTRUCTIONS) + load64(b + R.BLOCK_INSTRUCTIONS))


@compiled
def has_retired(s):
    """Whether the instruction that has just been executed is done, as far as the processor is concerned."""
    leave, reason = load64(s + S.LEAVE), load64(s + S.EXIT)
    if leave != S.LEAVE_EXIT:
        return leave == S.LEAVE_NEXT
    handed_over = reason == S.EXIT_PIO and load64(s + S.PIO_STATE) == S.IO_NONE  # OUTS
    return reason == S.EXIT_HLT or reason == S.EXIT_CR8 or handed_over


@compiled
def after_step(s, shadow, resume, rip):
    """After a single instruction: a shadow and RF end, TF set before it traps, a debugger gets control."""
    leave = load64(s + S.LEAVE)
    if leave == S.LEAVE_NEXT or leave == S.LEAVE_EXCEPTION:
        store64(s + S.MMIO_READS, 0)
        if shadow != 0 and load64(s + S.INTR_SHADOW) == shadow and load64(s + S.SHADOW_SET) == 0:
            store64(s + S.INTR_SHADOW, 0)
    if has_retired(s) == 0:
        store64(s + S.BREAK_HITS, 0)
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) | resume)
    else:
        if load64(s + S.RIP) == rip:  # a repeated string instruction goes on
            store64(s + S.RFLAGS, load64(s + S.RFLAGS) | resume)
        after_instruction(s, S.DR6_BS if load64(s + S.STEP_TRAP) or load64(s + S.SINGLE_STEP) else 0)
        if leave == S.LEAVE_NEXT and load64(s + S.MMIO_WRITES) == 0:
            leave_if_due(s)
    derive_mode(s)


@group.add
def step(s):
    """One instruction that must be alone (after MMIO answered, in an interrupt shadow, single-stepping): LEAVE."""
    store64(s + S.HFLAGS, load64(s + S.HFLAGS) | S.MODE_STEP)
    shadow, flags, rip = load64(s + S.INTR_SHADOW), load64(s + S.RFLAGS), load64(s + S.RIP)
    store64(s + S.SHADOW_SET, 0)
    store64(s + S.BREAK_HITS, 0)
    store64(s + S.STEP_TRAP, flags & S.TF)
    store64(s + S.RFLAGS, flags & ~S.RF)
    b = find_block(s)
    if b != 0:
        execute(s, b)
    after_step(s, shadow, flags & S.RF, rip)
    return load64(s + S.LEAVE)


@compiled
def execute_block(s):
    """A block at full speed."""
    b = find_block(s)
    if b != 0:
        execute(s, b)


@compiled
def execute_slowly(s):
    """An instruction alone, unless the only reason to be slow is a breakpoint on another page."""
    if load64(s + S.HFLAGS) & S.MODE_BREAK and load64(s + S.MMIO_READS) == 0:
        la = linear_rip(s, load64(s + S.RIP))
        near = breakpoint_near(s, la)
        if near and breakpoint_here(s, la):
            return
        if near == 0 and load64(s + S.HFLAGS) & S.MODE_STEP == 0:
            execute_block(s)
            return
    step(s)


@compiled
def show_instruction(s):
    """What lies at RIP, for an embedder that is to be told about an instruction (as many bytes as KVM fetches)."""
    la = linear_rip(s, load64(s + S.RIP))
    host, length = probe(s, la, 1, M.TLB_FETCH), 4096 - (la & 4095)
    if host != 0:
        length = length if length < MAX_LENGTH else MAX_LENGTH
        memcpy(s + S.INSN_BYTES, host, length)
        store64(s + S.INSN_LENGTH, length)


@group.add
def run(s):
    """Run the guest until it must leave; returns EXIT. The vCPU block tells all about it."""
    store64(s + S.LEAVE, S.LEAVE_NEXT)
    store64(s + S.EXIT, S.EXIT_NONE)
    enter_guest(s)
    injecting, going = 1, 0 if leave_if_due(s) else 1
    while True:
        if injecting != 0 and going != 0:
            injecting = inject(s)
            going = goes_on(s)
        if going != 0 and before_block(s) != 0:
            store64(s + S.MMIO_USED, 0)
            if load64(s + S.HFLAGS) & S.MODE_SLOW or load64(s + S.MMIO_READS) != 0:
                execute_slowly(s)
            else:
                execute_block(s)
        going = 1
        leave = load64(s + S.LEAVE)
        if leave == S.LEAVE_EXIT:
            break
        store64(s + S.LEAVE, S.LEAVE_NEXT)
        if load64(s + S.MMIO_WRITES) != 0 and leave == S.LEAVE_NEXT:
            store64(s + S.EXIT, S.EXIT_MMIO_WRITE)
            break
        if leave == S.LEAVE_RETRY:
            store64(s + S.MMIO_WRITES, 0)
    if load64(s + S.EXIT) == S.EXIT_EMULATION_FAILURE and load64(s + S.INSN_LENGTH) == 0:
        show_instruction(s)
    leave_guest(s)
    store64(s + S.EXITS, load64(s + S.EXITS) + 1)
    return load64(s + S.EXIT)


@group.add
def reset_code(s):
    """Forget all decoded code."""
    empty_cache(s)
    return 0
