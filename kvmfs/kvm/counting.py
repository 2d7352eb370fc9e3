"""Counting what happens to a vCPU, for its statistics: compiled into enter.py's group."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import load64, store64
from kvmfs.kvm.stat_table import VCPU_STAT
from kvmfs.kvm.words import Cpu

STATS = Cpu.STATS
IO, MMIO, SIGNAL = VCPU_STAT["io_exits"], VCPU_STAT["mmio_exits"], VCPU_STAT["signal_exits"]
WINDOW, HYPERCALLS, FAILED = VCPU_STAT["irq_window_exits"], VCPU_STAT["hypercalls"], VCPU_STAT["insn_emulation_fail"]


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
