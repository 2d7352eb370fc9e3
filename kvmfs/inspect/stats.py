"""What is counted, by the names that KVM's debugfs and kvm_stat have for it (arch/x86/kvm/x86.c).

A statistic is a function of the words of a vCPU block or a VM block. Names that KVM has and that mean nothing here
(shadow pages, host state, nested guests) are not shown at all: a 0 would be a lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from kvmfs.abi.exits import Exit
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.inspection import Header, Seen
from kvmfs.kvm.words import Vm


class Words(Protocol):
    def __getitem__(self, offset: int) -> int: ...


Statistic = Callable[[Words], int]


def word(at: int) -> Statistic:
    return lambda words: words[at]


def exits(*reasons: Exit) -> Statistic:
    """Returns to the client for one of these reasons."""
    return lambda words: sum(words[Seen.EXITED + 8 * reason] for reason in reasons)


VCPU: Final[dict[str, Statistic]] = {
    "exits": word(S.EXITS),
    "io_exits": exits(Exit.IO),
    "mmio_exits": exits(Exit.MMIO),
    "signal_exits": exits(Exit.INTR),
    "irq_window_exits": exits(Exit.IRQ_WINDOW_OPEN),
    "halt_exits": word(S.HALTS),
    "hypercalls": exits(Exit.HYPERCALL),
    "irq_injections": word(S.IRQS_TAKEN),
    "insn_emulation_fail": exits(Exit.INTERNAL_ERROR),
    # ours
    "memory_faults": exits(Exit.MEMORY_FAULT),
    "instructions": word(S.INSTRUCTIONS),
    "tlb_misses": word(S.TLB_MISSES),
    "blocks_decoded": word(S.BLOCKS_DECODED),
    "exceptions": word(S.EXCEPTIONS_TAKEN),
    "userspace_exits": lambda words: sum(words[Seen.EXITED + 8 * reason] for reason in range(63)),
}
"""Of a vCPU; a VM has the sum of its vCPUs'."""

VM: Final[dict[str, Statistic]] = {
    "remote_tlb_flush": word(mmu.GENERATION),
    # ours
    "faults_logged": word(Header.FAULT_COUNT),
    "vcpus": word(Vm.VCPU_COUNT),
}
