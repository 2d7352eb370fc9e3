"""The statistics of VMs and vCPUs: the kernel's names, in its order, and where each is kept.

Sources: KVM_GENERIC_VM_STATS and KVM_GENERIC_VCPU_STATS of include/linux/kvm_host.h, kvm_vm_stats_desc and
kvm_vcpu_stats_desc of arch/x86/kvm/x86.c. The data block is one u64 after the other, in memory that compiled code
counts in. What cannot happen here stays 0 (docs/inspection.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvmfs.abi.stats import (
    KVM_STATS_TYPE_CUMULATIVE,
    KVM_STATS_TYPE_INSTANT,
    KVM_STATS_TYPE_LOG_HIST,
    KVM_STATS_TYPE_PEAK,
    KVM_STATS_UNIT_BOOLEAN,
    KVM_STATS_UNIT_NONE,
    KVM_STATS_UNIT_SECONDS,
)

HALT_POLL_HIST_COUNT: Final = 32


@dataclass(frozen=True, slots=True)
class Stat:
    """One statistic of `size` u64, in units of 10 ** exponent; at `offset` bytes of the data block."""

    name: str
    type: int
    unit: int
    exponent: int
    size: int
    offset: int


def _stats(*kinds: tuple[int, int, int, int, str]) -> tuple[Stat, ...]:
    """Rows of {type, unit, exponent, size, names}, one after the other in the data block."""
    found: list[Stat] = []
    offset = 0
    for kind, unit, exponent, size, names in kinds:
        for name in names.split():
            found.append(Stat(name, kind, unit, exponent, size, offset))
            offset += 8 * size
    return tuple(found)


_COUNTER = (KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_UNIT_NONE, 0, 1)
_INSTANT = (KVM_STATS_TYPE_INSTANT, KVM_STATS_UNIT_NONE, 0, 1)
_PEAK = (KVM_STATS_TYPE_PEAK, KVM_STATS_UNIT_NONE, 0, 1)
_BOOLEAN = (KVM_STATS_TYPE_INSTANT, KVM_STATS_UNIT_BOOLEAN, 0, 1)
_TIME = (KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_UNIT_SECONDS, -9, 1)
_TIMES = (KVM_STATS_TYPE_LOG_HIST, KVM_STATS_UNIT_SECONDS, -9, HALT_POLL_HIST_COUNT)

VM_STATS: Final = _stats(
    (*_COUNTER, "remote_tlb_flush remote_tlb_flush_requests"),
    (*_COUNTER, "mmu_shadow_zapped mmu_pte_write mmu_pde_zapped mmu_flooded mmu_recycled mmu_cache_miss"),
    (*_INSTANT, "mmu_unsync pages_4k pages_2m pages_1g nx_lpage_splits"),
    (*_PEAK, "max_mmu_rmap_size max_mmu_page_hash_collisions"),
)

VCPU_STATS: Final = _stats(
    (*_COUNTER, "halt_successful_poll halt_attempted_poll halt_poll_invalid halt_wakeup"),
    (*_TIME, "halt_poll_success_ns halt_poll_fail_ns halt_wait_ns"),
    (*_TIMES, "halt_poll_success_hist halt_poll_fail_hist halt_wait_hist"),
    (*_BOOLEAN, "blocking"),
    (*_COUNTER, "pf_taken pf_fixed pf_emulate pf_spurious pf_fast pf_mmio_spte_created pf_guest"),
    (*_COUNTER, "tlb_flush invlpg exits io_exits mmio_exits signal_exits irq_window_exits nmi_window_exits l1d_flush"),
    (*_COUNTER, "halt_exits request_irq_exits irq_exits host_state_reload fpu_reload insn_emulation"),
    (*_COUNTER, "insn_emulation_fail hypercalls irq_injections nmi_injections req_event nested_run"),
    (*_COUNTER, "directed_yield_attempted directed_yield_successful preemption_reported preemption_other"),
    (*_BOOLEAN, "guest_mode"),
    (*_COUNTER, "notify_window_exits"),
)

VM_STAT: Final = {stat.name: stat.offset for stat in VM_STATS}
VCPU_STAT: Final = {stat.name: stat.offset for stat in VCPU_STATS}


def size_of(stats: tuple[Stat, ...]) -> int:
    """Bytes of the data block."""
    return stats[-1].offset + 8 * stats[-1].size
