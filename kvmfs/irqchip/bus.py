"""Devices behind MMIO and port I/O, and the thread that timers and eventfds wake.

What an exit asks for is answered here if a device of ours has the address; else the client gets it. As in KVM the APIC
comes first, then the chips, ioeventfds, and the ring of coalesced writes.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.irqchip.chips import LEVEL
from kvmfs.irqchip.chips import group as chips
from kvmfs.irqchip.lapic import group as lapic
from kvmfs.irqchip.lock import begin_read, end_read, spin_lock, spin_unlock
from kvmfs.irqchip.routing import signal
from kvmfs.irqchip.timer import arm, clock, disarm
from kvmfs.irqchip.words import (
    EPOLL_TIMER,
    EPOLL_WAKE,
    NEVER,
    SOURCE_RESAMPLE,
    SOURCE_USERSPACE,
    Apic,
    Board,
    Ioevent,
    Irqfd,
)
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.raw import atomic_xchg, call1, call2, call4, load8, load16, load32, load64, store64, syscall
from kvmfs.kvm.coalesced_ring import group as ring
from kvmfs.kvm.words import IRQCHIP_KERNEL, Cpu, Vm

group = Group("bus", __name__)

SYS_READ, SYS_EPOLL_WAIT, SYS_PREADV2 = 0, 232, 327
RWF_NOWAIT: Final = 8
EVENTS: Final = 64
FEW: Final = 256
"""vCPUs: with more, a wake-up too many of the board's thread costs less than to look at all of them."""
EVENT_SIZE, EVENT_DATA = 12, 4  # struct epoll_event is packed
APIC_READ, APIC_WRITE = lapic.slot("apic_mmio_read"), lapic.slot("apic_mmio_write")
APIC_FIRE, CHIPS_FIRE, SET_GSI = lapic.slot("apic_fire"), chips.slot("chips_fire"), chips.slot("set_gsi")
CHIPS_NEXT = chips.slot("chips_next")
IOAPIC_READ, IOAPIC_WRITE = chips.slot("ioapic_mmio_read"), chips.slot("ioapic_mmio_write")
PORT_READ, PORT_WRITE = chips.slot("chips_port_read"), chips.slot("chips_port_write")

COALESCE_MMIO, COALESCE_PORT = ring.slot("coalesce_mmio"), ring.slot("coalesce_port")

BOARD, IRQCHIP, VCPUS, VCPU_COUNT = Vm.BOARD, Vm.IRQCHIP, Vm.VCPUS, Vm.VCPU_COUNT
VM, FUNCTIONS, IOEVENTS, IRQFDS = Board.VM, Board.FUNCTIONS, Board.IOEVENTS, Board.IRQFDS
TIMER_LOCK, TIMER_FD, TIMER_NEXT = Board.TIMER_LOCK, Board.TIMER_FD, Board.TIMER_NEXT
EPOLL_FD, EPOLL_EVENTS, STOP, SCRATCH = Board.EPOLL_FD, Board.EPOLL_EVENTS, Board.STOP, Board.SCRATCH
APIC, SLEEPS, DEADLINE = Cpu.APIC, Apic.SLEEPS, Apic.DEADLINE
EVENT_RECORD, PORT, ADDRESS, LENGTH = Ioevent.SIZE, Ioevent.PORT, Ioevent.ADDRESS, Ioevent.LENGTH
MATCHES, DATA, EVENT_FD = Ioevent.MATCHES, Ioevent.DATA, Ioevent.FD
IRQFD_RECORD, IRQFD_FD, IRQFD_GSI, RESAMPLES = Irqfd.SIZE, Irqfd.FD, Irqfd.GSI, Irqfd.RESAMPLES


@compiled
def device(s, slot, address, size, buffer):
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * slot), s, address, size, buffer)


@compiled
def chips_in_kernel(s):
    return load64(load64(s + S.VM) + IRQCHIP) == IRQCHIP_KERNEL


# Ioeventfds -----


@compiled
def value_at(buffer, size):
    if size == 1:
        return load8(buffer)
    if size == 2:
        return load16(buffer)
    return load32(buffer) if size == 4 else load64(buffer)


@compiled
def write_ioevent(s, is_port, address, size, buffer):
    """ioeventfd_write: 1 when an eventfd took it."""
    board = load64(load64(s + S.VM) + BOARD)
    if load64(board + IOEVENTS) == 0:
        return 0
    which, found = begin_read(board), 0
    table = load64(board + IOEVENTS)
    count = load64(table) if table != 0 else 0
    for index in range(count):
        record = table + 8 + EVENT_RECORD * index
        if load64(record + ADDRESS) != address or load64(record + PORT) != is_port:
            continue
        length = load64(record + LENGTH)
        if length != 0 and length != size:
            continue
        if load64(record + MATCHES) and load64(record + DATA) != value_at(buffer, size):
            continue
        signal(load64(record + EVENT_FD), s + S.T3)
        found = 1
        break
    end_read(board, which)
    return found


# Exits: 1 when it has been done here, 0: it is the client's -----


@group.add
def bus_mmio_read(s, gpa, size, buffer):
    if device(s, APIC_READ, gpa, size, buffer):
        return 1
    return device(s, IOAPIC_READ, gpa, size, buffer) if chips_in_kernel(s) else 0


@group.add
def bus_mmio_write(s, gpa, size, buffer):
    if device(s, APIC_WRITE, gpa, size, buffer):
        return 1
    if chips_in_kernel(s) and device(s, IOAPIC_WRITE, gpa, size, buffer):
        return 1
    return 1 if write_ioevent(s, 0, gpa, size, buffer) else device(s, COALESCE_MMIO, gpa, size, buffer)


@group.add
def bus_port_read(s, port, size, buffer):
    return device(s, PORT_READ, port, size, buffer) if chips_in_kernel(s) else 0


@group.add
def bus_port_write(s, port, size, buffer):
    if chips_in_kernel(s) and device(s, PORT_WRITE, port, size, buffer):
        return 1
    return 1 if write_ioevent(s, 1, port, size, buffer) else device(s, COALESCE_PORT, port, size, buffer)


# The board's thread -----


@compiled
def keeps_its_timer(s):
    """Whether the vCPU's thread, asleep, wakes for its APIC timer by itself."""
    return load64(s + APIC) != 0 and load64(load64(s + APIC) + SLEEPS) != 0


@compiled
def leave_out(s):
    """Arm the timerfd for what others wait for, and not for this vCPU."""
    vm = load64(s + S.VM)
    board = load64(vm + BOARD)
    spin_lock(board + TIMER_LOCK)
    store64(board + TIMER_NEXT, NEVER)
    spin_unlock(board + TIMER_LOCK)
    following = call1(load64(load64(s + S.FUNCTIONS) + 8 * CHIPS_NEXT), board)
    for index in range(load64(vm + VCPU_COUNT)):
        other = load64(load64(vm + VCPUS) + 8 * index)
        if load64(other + APIC) == 0 or keeps_its_timer(other):
            continue
        deadline = load64(load64(other + APIC) + DEADLINE)
        if deadline != 0 and (following == 0 or deadline < following):
            following = deadline
    if following != 0:
        arm(board, following)
    else:
        disarm(board)


@group.add
def timer_sleep(s):
    """The vCPU is about to wait: until when, for its timer; 0: that is not running. To be followed by timer_wake()."""
    apic, vm = load64(s + APIC), load64(s + S.VM)
    if apic == 0 or load64(apic + DEADLINE) == 0:
        return 0
    atomic_xchg(apic + SLEEPS, 1)
    deadline = load64(apic + DEADLINE)
    if deadline != 0 and load64(load64(vm + BOARD) + TIMER_NEXT) == deadline and load64(vm + VCPU_COUNT) <= FEW:
        leave_out(s)
    return deadline


@group.add
def timer_wake(s):
    """The vCPU has waited: its timer is delivered if it is due, else the board's thread sees to it again."""
    apic = load64(s + APIC)
    if apic == 0 or load64(apic + SLEEPS) == 0:
        return 0
    if load64(apic + DEADLINE) != 0:
        call2(load64(load64(s + S.FUNCTIONS) + 8 * APIC_FIRE), s, clock(s + S.T3))
    atomic_xchg(apic + SLEEPS, 0)
    if load64(apic + DEADLINE) != 0:
        arm(load64(load64(s + S.VM) + BOARD), load64(apic + DEADLINE))
    return 0


@compiled
def serve_timers(board):
    """Fire what is due, and arm the timerfd for what comes next."""
    syscall(SYS_READ, load64(board + TIMER_FD), board + SCRATCH, 8, 0, 0, 0)
    spin_lock(board + TIMER_LOCK)
    store64(board + TIMER_NEXT, NEVER)  # from here on, who sets a deadline arms the timerfd itself
    spin_unlock(board + TIMER_LOCK)
    now, vm, functions = clock(board + SCRATCH), load64(board + VM), load64(board + FUNCTIONS)
    following = call2(load64(functions + 8 * CHIPS_FIRE), board, now)
    for index in range(load64(vm + VCPU_COUNT)):
        s = load64(load64(vm + VCPUS) + 8 * index)
        if keeps_its_timer(s):
            continue
        deadline = call2(load64(functions + 8 * APIC_FIRE), s, now)
        if deadline != 0 and (following == 0 or deadline < following):
            following = deadline
    if following != 0:
        arm(board, following)


@compiled
def serve_irqfd(board, index):
    """irqfd_inject: an edge, or a level that lasts until its EOI."""
    which = begin_read(board)
    record = load64(board + IRQFDS) + IRQFD_RECORD * index
    fd = load64(record + IRQFD_FD) - 1
    if fd >= 0:
        iovec = board + EPOLL_EVENTS + EVENTS * EVENT_SIZE
        store64(iovec, board + SCRATCH)
        store64(iovec + 8, 8)
        # Somebody else may have read it, and then it must not block.
        if syscall(SYS_PREADV2, fd, iovec, 1, -1, -1, RWF_NOWAIT) == 8:
            set_gsi, gsi = load64(load64(board + FUNCTIONS) + 8 * SET_GSI), load64(record + IRQFD_GSI)
            if load64(record + RESAMPLES):
                call4(set_gsi, board, SOURCE_RESAMPLE, gsi, LEVEL)
            else:
                call4(set_gsi, board, SOURCE_USERSPACE, gsi, LEVEL)
                call4(set_gsi, board, SOURCE_USERSPACE, gsi, 0)
    end_read(board, which)


@group.add
def board_thread(board):
    """Sleep until a timer or an irqfd is due, and serve it; returns after STOP and a wake-up."""
    events = board + EPOLL_EVENTS
    while load64(board + STOP) == 0:
        count = syscall(SYS_EPOLL_WAIT, load64(board + EPOLL_FD), events, EVENTS, -1, 0, 0)
        for index in range(max(count, 0)):
            data = load64(events + EVENT_SIZE * index + EVENT_DATA)
            if data == EPOLL_TIMER:
                serve_timers(board)
            elif data != EPOLL_WAKE:
                serve_irqfd(board, data)
    return 0
