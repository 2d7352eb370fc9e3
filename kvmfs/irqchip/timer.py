"""The APIC timer, and the one timerfd that all timers of a VM are armed with.

A timer is armed by storing its deadline and having the timerfd fire no later. The board's thread then goes through all
of them (bus.py). Who changes a deadline from d to something else, by compare-and-swap, has it: the thread, which then
delivers, or the vCPU, which stops or sets it anew.

A vCPU that sleeps in HLT needs nobody to wake it for its own timer: its thread waits no longer than that. Then the
timerfd is armed for what the others wait for, if it was armed for this one.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.irqchip.delivery import local_deliver
from kvmfs.irqchip.lock import spin_lock, spin_unlock
from kvmfs.irqchip.words import NEVER, Apic, Board
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import (
    atomic_xchg,
    cas64,
    load32,
    load64,
    lshr,
    memset,
    rdtsc,
    shl,
    store32,
    store64,
    syscall,
    udiv,
    udiv128,
    ult,
    umulh,
    urem,
)
from kvmfs.kvm.words import Cpu

SYS_CLOCK_GETTIME: Final = 228
SYS_TIMERFD_SETTIME: Final = 286
CLOCK_MONOTONIC: Final = 1
TFD_TIMER_ABSTIME: Final = 1
NSEC: Final = 1_000_000_000
MIN_PERIOD: Final = 200_000  # ns: kvm.min_timer_period_us
FOREVER: Final = 1 << 62

VCPU, BOARD, TARGET, DEADLINE = Apic.VCPU, Apic.BOARD, Apic.TARGET, Apic.DEADLINE
PERIOD, DIVIDER, TSC_DEADLINE = Apic.PERIOD, Apic.DIVIDER, Apic.TSC_DEADLINE
TIMER_MODE, TIMER_MODES = Apic.TIMER_MODE, Apic.TIMER_MODES
TIMER_LOCK, TIMER_FD, TIMER_NEXT, TIMER_SPEC = Board.TIMER_LOCK, Board.TIMER_FD, Board.TIMER_NEXT, Board.TIMER_SPEC
BUS_CYCLE_NS, TSC_KHZ = Board.BUS_CYCLE_NS, Cpu.TSC_KHZ


@compiled
def clock(scratch):
    """CLOCK_MONOTONIC in ns; `scratch`: 16 bytes of the calling thread."""
    syscall(SYS_CLOCK_GETTIME, CLOCK_MONOTONIC, scratch, 0, 0, 0, 0)
    return load64(scratch) * NSEC + load64(scratch + 8)


@compiled
def arm(board, deadline):
    """Have the board's thread look at the timers no later than at `deadline`."""
    spin_lock(board + TIMER_LOCK)
    if deadline < load64(board + TIMER_NEXT):
        store64(board + TIMER_NEXT, deadline)
        store64(board + TIMER_SPEC, 0)
        store64(board + TIMER_SPEC + 8, 0)
        store64(board + TIMER_SPEC + 16, deadline // NSEC)
        store64(board + TIMER_SPEC + 24, deadline % NSEC)
        syscall(SYS_TIMERFD_SETTIME, load64(board + TIMER_FD), TFD_TIMER_ABSTIME, board + TIMER_SPEC, 0, 0, 0)
    spin_unlock(board + TIMER_LOCK)


@compiled
def disarm(board):
    """Nobody waits for the timerfd, unless somebody has just begun to."""
    spin_lock(board + TIMER_LOCK)
    if load64(board + TIMER_NEXT) == NEVER:
        memset(board + TIMER_SPEC, 0, 32)
        syscall(SYS_TIMERFD_SETTIME, load64(board + TIMER_FD), TFD_TIMER_ABSTIME, board + TIMER_SPEC, 0, 0, 0)
    spin_unlock(board + TIMER_LOCK)


@compiled
def muldiv(a, b, c):
    """a * b / c, all unsigned; FOREVER when that is more."""
    high = umulh(a, b)
    if ult(high, c) == 0:
        return FOREVER
    quotient = udiv128(high, a * b, c)
    return quotient if ult(quotient, FOREVER) else FOREVER


@compiled
def guest_tsc(s):
    """What RDTSC says in the guest."""
    host, ratio = rdtsc(), load64(s + S.TSC_RATIO)
    return (shl(umulh(host, ratio), 32) | lshr(host * ratio, 32)) + load64(s + S.TSC_OFFSET)


# The APIC timer -----


@compiled
def expire(apic):
    """The count got to 0, or the TSC to the deadline."""
    local_deliver(apic, A.APIC_LVTT)
    if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE:
        store64(apic + TSC_DEADLINE, 0)


@compiled
def fire(apic, now):
    """The board's thread: deliver if it is time."""
    deadline = load64(apic + DEADLINE)
    if deadline == 0 or deadline > now:
        return
    following = 0
    if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_PERIODIC:
        following = max(deadline + load64(apic + PERIOD), now)  # what was missed is not made up for
    if cas64(apic + DEADLINE, deadline, following) == deadline:
        if following != 0:
            store64(apic + TARGET, following)
        expire(apic)


@compiled
def cancel(apic):
    atomic_xchg(apic + DEADLINE, 0)


@compiled
def limit_period(apic):
    """limit_periodic_timer_frequency."""
    period = load64(apic + PERIOD)
    if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_PERIODIC and period != 0 and period < MIN_PERIOD:
        store64(apic + PERIOD, MIN_PERIOD)


@compiled
def count_to_ns(apic, count):
    return count * load64(load64(apic + BOARD) + BUS_CYCLE_NS) * load64(apic + DIVIDER)


@compiled
def set_deadline(apic, deadline):
    atomic_xchg(apic + DEADLINE, deadline)
    arm(load64(apic + BOARD), deadline)


@compiled
def restart(apic, now):
    """restart_apic_timer: arm it for TARGET or TSC_DEADLINE."""
    if load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_TSCDEADLINE:
        s, wanted = load64(apic + VCPU), load64(apic + TSC_DEADLINE)
        if wanted == 0:
            return
        current = guest_tsc(s)
        if ult(current, wanted) == 0:
            expire(apic)
        else:
            set_deadline(apic, now + muldiv(wanted - current, 1_000_000, load64(s + TSC_KHZ)))
        return
    if load64(apic + PERIOD) == 0:
        return
    if now > load64(apic + TARGET):
        expire(apic)
        if load64(apic + TIMER_MODE) != A.APIC_LVT_TIMER_PERIODIC:
            return
        store64(apic + TARGET, max(load64(apic + TARGET) + load64(apic + PERIOD), now))
    set_deadline(apic, load64(apic + TARGET))


@compiled
def start(apic, count_register):
    """__start_apic_timer; `count_register`: APIC_TMICT, or APIC_TMCCT to go on where a client's snapshot was."""
    now = clock(load64(apic + VCPU) + S.T3)
    mode = load64(apic + TIMER_MODE)
    if mode == A.APIC_LVT_TIMER_ONESHOT or mode == A.APIC_LVT_TIMER_PERIODIC:
        store64(apic + PERIOD, count_to_ns(apic, load32(apic + A.APIC_TMICT)))
        if load64(apic + PERIOD) == 0:
            return
        limit_period(apic)
        period = load64(apic + PERIOD)
        left = period
        if count_register != A.APIC_TMICT:
            left = count_to_ns(apic, load32(apic + count_register))
            if left == 0:
                left = period if mode == A.APIC_LVT_TIMER_PERIODIC else 0
            elif left > period:
                left = period
        store64(apic + TARGET, now + left)
    restart(apic, now)


@compiled
def current_count(apic):
    """apic_get_tmcct."""
    period = load64(apic + PERIOD)
    if load32(apic + A.APIC_TMICT) == 0 or period == 0:
        return 0
    left = load64(apic + TARGET) - clock(load64(apic + VCPU) + S.T3)
    if left < 0:  # it has fired, or is about to
        is_periodic = load64(apic + TIMER_MODE) == A.APIC_LVT_TIMER_PERIODIC
        left = period - urem(-left, period) if is_periodic else 0
    return udiv(urem(left, period), load64(load64(apic + BOARD) + BUS_CYCLE_NS) * load64(apic + DIVIDER))


@compiled
def update_mode(apic):
    """apic_update_lvtt."""
    old, mode = load64(apic + TIMER_MODE), load32(apic + A.APIC_LVTT) & load64(apic + TIMER_MODES)
    if old == mode:
        return
    if (old == A.APIC_LVT_TIMER_TSCDEADLINE) != (mode == A.APIC_LVT_TIMER_TSCDEADLINE):
        cancel(apic)
        store32(apic + A.APIC_TMICT, 0)
        store64(apic + PERIOD, 0)
        store64(apic + TSC_DEADLINE, 0)
    store64(apic + TIMER_MODE, mode)
    limit_period(apic)


@compiled
def read_divider(apic):
    """update_divide_count."""
    code = load32(apic + A.APIC_TDCR)
    store64(apic + DIVIDER, 1 << ((((code & 3) | (code & 8) >> 1) + 1) & 7))


@compiled
def set_divider(apic, value):
    """A write of TDCR: what is left of the count passes at the new rate."""
    old = load64(apic + DIVIDER)
    store32(apic + A.APIC_TDCR, value & 0xB)
    read_divider(apic)
    if load64(apic + DIVIDER) == old or load64(apic + PERIOD) == 0:
        return
    cancel(apic)
    now = clock(load64(apic + VCPU) + S.T3)
    store64(apic + PERIOD, count_to_ns(apic, load32(apic + A.APIC_TMICT)))
    limit_period(apic)
    left = max(load64(apic + TARGET) - now, 0)
    store64(apic + TARGET, now + muldiv(left, load64(apic + DIVIDER), old))
    restart(apic, now)


@compiled
def set_tsc_deadline(apic, value):
    """IA32_TSC_DEADLINE: 0 disarms."""
    cancel(apic)
    store64(apic + TSC_DEADLINE, value)
    start(apic, A.APIC_TMICT)
