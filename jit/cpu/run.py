"""The run loop: requests, events, blocks, and what ends them."""

from .. import state as S
from ..build import Group, compiled
from ..mmu.tlb import acknowledge_flush, enter_guest, leave_guest
from ..raw import atomic_and, call2, call4, load64, store64
from . import record as R
from .block import empty_cache, find_block
from .exception import DELIVERED, EXTERNAL
from .exception import group as exception_group
from .supervisor import call_member, derive_mode, raise_at

group = Group("run", __name__)

DELIVER, DELIVER_EXCEPTION = exception_group.slot("deliver"), exception_group.slot("deliver_exception")



@compiled
def interruptible(s):
    """Whether an external interrupt may be delivered now."""
    return 1 if load64(s + S.RFLAGS) & S.IF and load64(s + S.INTR_SHADOW) == 0 else 0


@compiled
def deliver_event(s, vector, kind):
    """Deliver an interrupt or NMI: 1 when done; 0 when an exit, a retry or an exception comes first."""
    return call_deliver(s, vector, -1, kind) == DELIVERED


@compiled
def call_deliver(s, vector, error, kind):
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * DELIVER), s, vector, error, kind)


@compiled
def inject(s):
    """Deliver what the embedder injected (KVM_SET_VCPU_EVENTS, KVM_INTERRUPT, NMI): 0 when LEAVE must be looked at."""
    if load64(s + S.EXC_INJECTED) != 0:
        store64(s + S.EXC_INJECTED, 0)
        store64(s + S.EXC_PENDING, 1)
    elif load64(s + S.NMI_INJECTED) != 0:
        if not deliver_event(s, S.NMI, EXTERNAL):
            return 0
        store64(s + S.NMI_INJECTED, 0)
        store64(s + S.NMI_MASKED, 1)
    elif load64(s + S.INTR_INJECTED) != 0:
        if not deliver_event(s, load64(s + S.INTR_VECTOR), 2 if load64(s + S.INTR_SOFT) else EXTERNAL):
            return 0
        store64(s + S.INTR_INJECTED, 0)
        store64(s + S.IRQS_TAKEN, load64(s + S.IRQS_TAKEN) + 1)
    return 1


@compiled
def take_events(s):
    """NMIs, interrupts and the interrupt window between instructions: 0 when LEAVE must be looked at."""
    if load64(s + S.NMI_PENDING) != 0 and load64(s + S.NMI_MASKED) == 0 and load64(s + S.INTR_SHADOW) & 2 == 0:
        if not deliver_event(s, S.NMI, EXTERNAL):
            return 0
        store64(s + S.NMI_PENDING, load64(s + S.NMI_PENDING) - 1)
        store64(s + S.NMI_MASKED, 1)
    if interruptible(s):
        if load64(s + S.INTR_REQUEST) != 0:
            if not deliver_event(s, load64(s + S.INTR_REQUEST) - 1, EXTERNAL):
                return 0
            store64(s + S.INTR_REQUEST, 0)
            store64(s + S.IRQS_TAKEN, load64(s + S.IRQS_TAKEN) + 1)
        elif load64(s + S.IRQ_WINDOW) != 0:
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
    if requests & S.REQ_EVENT:
        return take_events(s)
    return 1


@compiled
def before_block(s):
    """All that may come between two blocks; 0 when LEAVE must be looked at."""
    if load64(s + S.REQUEST) != 0 and serve_requests(s) == 0:
        return 0
    if load64(s + S.EXC_PENDING) != 0:
        return 1 if call_member(s, DELIVER_EXCEPTION) == DELIVERED else 0
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
def after_step(s, shadow, trap):
    """After a single instruction: an interrupt shadow ends, TF set before it traps, a debugger gets control."""
    leave = load64(s + S.LEAVE)
    if leave == S.LEAVE_NEXT or leave == S.LEAVE_EXCEPTION:
        store64(s + S.MMIO_READS, 0)
        if shadow != 0 and load64(s + S.INTR_SHADOW) == shadow and load64(s + S.SHADOW_SET) == 0:
            store64(s + S.INTR_SHADOW, 0)
    if leave == S.LEAVE_NEXT:
        if load64(s + S.SINGLE_STEP) != 0:
            store64(s + S.EXIT_ARGS, S.DB)
            store64(s + S.EXIT_ARGS + 8, 1 << 14)
            leave_exit(s, S.EXIT_DEBUG)
        elif trap != 0 and load64(s + S.EXC_PENDING) == 0:
            store64(s + S.EXC_PAYLOAD, 1 << 14)  # DR6.BS
            raise_at(s, S.DB, 0, 0)
    derive_mode(s)


@group.add
def step(s):
    """One instruction that must be alone (after MMIO answered, in an interrupt shadow, single-stepping): LEAVE."""
    store64(s + S.HFLAGS, load64(s + S.HFLAGS) | S.MODE_STEP)
    shadow, trap = load64(s + S.INTR_SHADOW), load64(s + S.RFLAGS) & S.TF
    store64(s + S.SHADOW_SET, 0)
    b = find_block(s)
    if b != 0:
        execute(s, b)
    after_step(s, shadow, trap)
    return load64(s + S.LEAVE)


@group.add
def run(s):
    """Run the guest until it must leave; returns EXIT. The vCPU block tells all about it."""
    store64(s + S.LEAVE, S.LEAVE_NEXT)
    store64(s + S.EXIT, S.EXIT_NONE)
    enter_guest(s)
    going = inject(s)
    while True:
        if going != 0 and before_block(s) != 0:
            store64(s + S.MMIO_USED, 0)
            if load64(s + S.HFLAGS) & S.MODE_STEP or load64(s + S.MMIO_READS) != 0:
                step(s)
            else:
                b = find_block(s)
                if b != 0:
                    execute(s, b)
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
    leave_guest(s)
    store64(s + S.EXITS, load64(s + S.EXITS) + 1)
    return load64(s + S.EXIT)


@group.add
def reset_code(s):
    """Forget all decoded code."""
    empty_cache(s)
    return 0
