"""Counting what happens to a vCPU, for its statistics: compiled into enter.py's group."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import clz, load64, rdtsc, store64, udiv, urem
from kvmfs.kvm.inspection import Header
from kvmfs.kvm.stat_table import HALT_POLL_HIST_COUNT, VCPU_STAT
from kvmfs.kvm.words import Cpu

STATS = Cpu.STATS
IO, MMIO, SIGNAL = VCPU_STAT["io_exits"], VCPU_STAT["mmio_exits"], VCPU_STAT["signal_exits"]
WINDOW, HYPERCALLS, FAILED = VCPU_STAT["irq_window_exits"], VCPU_STAT["hypercalls"], VCPU_STAT["insn_emulation_fail"]
REQUESTED_WINDOW, WAKEUP = VCPU_STAT["request_irq_exits"], VCPU_STAT["halt_wakeup"]
WAIT, WAITS, LAST_BUCKET = VCPU_STAT["halt_wait_ns"], VCPU_STAT["halt_wait_hist"], HALT_POLL_HIST_COUNT - 1
TSC_KHZ = Header.TSC_KHZ


@compiled
def nanoseconds(s, ticks):
    """Of the host's time stamp counter."""
    khz = load64(load64(s + S.VM) + TSC_KHZ)
    return udiv(ticks, khz) * 1_000_000 + udiv(urem(ticks, khz) * 1_000_000, khz)


@compiled
def count(s, what):
    counter = load64(s + STATS) + what
    store64(counter, load64(counter) + 1)


@compiled
def count_exit(s, reason):
    """What run() left for."""
    if reason == S.EXIT_PIO:
        count(s, IO)
    elif reason == S.EXIT_MMIO_READ or reason == S.EXIT_MMIO_WRITE:
        count(s, MMIO)
    elif reason == S.EXIT_INTERRUPTED:
        count(s, SIGNAL)
    elif reason == S.EXIT_IRQ_WINDOW:
        count(s, WINDOW)
    elif reason == S.EXIT_HYPERCALL:
        count(s, HYPERCALLS)
    elif reason == S.EXIT_EMULATION_FAILURE:
        count(s, FAILED)


@compiled
def count_wait(s, since, woken):
    """A vCPU has been halted since the host's counter showed `since` (kvm_vcpu_halt); `woken`: not by a signal."""
    waited = nanoseconds(s, rdtsc() - since)
    total = load64(s + STATS) + WAIT
    store64(total, load64(total) + waited)
    bucket = 64 - clz(waited)  # KVM_STATS_LOG_HIST_UPDATE
    count(s, WAITS + 8 * (bucket if bucket < LAST_BUCKET else LAST_BUCKET))
    if woken:
        count(s, WAKEUP)
