"""What is counted, by the names that KVM's debugfs and kvm_stat have for it (arch/x86/kvm/x86.c).

A statistic is a function of the words of a vCPU block or a VM block. Those of KVM that cannot happen here stay 0
(kvmfs.kvm.stat_table).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from kvmfs.abi.exits import Exit
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.inspection import NO_EXIT, Header, Seen
from kvmfs.kvm.stat_table import VCPU_STATS
from kvmfs.kvm.words import Cpu, Vm


class Words(Protocol):
    def __getitem__(self, offset: int) -> int: ...


Statistic = Callable[[Words], int]


def word(at: int) -> Statistic:
    return lambda words: words[at]


def exits(*reasons: Exit) -> Statistic:
    """Returns to the client for one of these reasons."""
    return lambda words: sum(words[Seen.EXITED + 8 * reason] for reason in reasons)


_COUNTED: Final = {stat.name: word(Seen.COUNTERS + stat.offset) for stat in VCPU_STATS if stat.size == 1}

VCPU: Final[dict[str, Statistic]] = {
    **_COUNTED,
    "exits": word(S.EXITS),
    "halt_exits": word(S.HALTS),
    "irq_injections": word(S.IRQS_TAKEN),
    "nmi_injections": word(S.NMIS_TAKEN),
    "tlb_flush": word(S.TLB_FLUSHES),
    "blocking": word(Cpu.WAITING),
    # ours
    "memory_faults": exits(Exit.MEMORY_FAULT),
    "instructions": word(S.INSTRUCTIONS),
    "tlb_misses": word(S.TLB_MISSES),
    "blocks_decoded": word(S.BLOCKS_DECODED),
    "exceptions": word(S.EXCEPTIONS_TAKEN),
    "userspace_exits": exits(*(reason for reason in Exit if reason < NO_EXIT)),
}
"""Of a vCPU; a VM has the sum of its vCPUs'."""

VM: Final[dict[str, Statistic]] = {
    "remote_tlb_flush": word(mmu.GENERATION),
    "remote_tlb_flush_requests": word(mmu.GENERATION),
    # ours
    "faults_logged": word(Header.FAULT_COUNT),
    "vcpus": word(Vm.VCPU_COUNT),
}
