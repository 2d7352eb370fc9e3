"""/sys/module/kvm*/parameters as kvmfs would have them.

The names are those of Linux 6.12's module_param()s; the values are what is true of kvmfs: no hardware assistance is
claimed, no nesting, no encryption; the guest's page tables are its own (what "ept" and "npt" mean to those who ask),
any CPU state runs. ``Y``/``N`` for bool, decimal for the rest, as the kernel prints them.
"""

from pathlib import Path
from typing import Final

# arch/x86/kvm/x86.c, mmu/mmu.c, mmu/spte.c, lapic.c; virt/kvm/kvm_main.c
KVM: Final = {
    "eager_page_split": "N",
    "enable_pmu": "N",
    "enable_virt_at_load": "N",
    "enable_vmware_backdoor": "N",
    "flush_on_reuse": "N",
    "force_emulation_prefix": "0",
    "halt_poll_ns": "0",
    "halt_poll_ns_grow": "0",
    "halt_poll_ns_grow_start": "0",
    "halt_poll_ns_shrink": "0",
    "ignore_msrs": "N",
    "kvmclock_periodic_sync": "N",
    "lapic_timer_advance": "N",
    "min_timer_period_us": "200",
    "mitigate_smt_rsb": "N",
    "mmio_caching": "N",
    "nx_huge_pages": "N",
    "nx_huge_pages_recovery_period_ms": "0",
    "nx_huge_pages_recovery_ratio": "0",
    "pi_inject_timer": "0",
    "report_ignored_msrs": "Y",
    "tdp_mmu": "N",
    "tsc_tolerance_ppm": "250",
    "vector_hashing": "Y",
}

# arch/x86/kvm/vmx/vmx.c, nested.c, sgx.c
KVM_INTEL: Final = {
    "allow_smaller_maxphyaddr": "N",
    "dump_invalid_vmcs": "N",
    "emulate_invalid_guest_state": "Y",
    "enable_apicv": "N",
    "enable_ipiv": "N",
    "enable_shadow_vmcs": "N",
    "ept": "Y",
    "eptad": "N",
    "error_on_inconsistent_vmcs_config": "Y",
    "fasteoi": "N",
    "flexpriority": "N",
    "nested": "N",
    "nested_early_check": "N",
    "ple_gap": "0",
    "ple_window": "0",
    "ple_window_grow": "0",
    "ple_window_max": "0",
    "ple_window_shrink": "0",
    "pml": "N",
    "preemption_timer": "N",
    "sgx": "N",
    "unrestricted_guest": "Y",
    "vmentry_l1d_flush": "never",
    "vnmi": "N",
    "vpid": "N",
}

# arch/x86/kvm/svm/svm.c, sev.c, avic.c
KVM_AMD: Final = {
    "avic": "N",
    "debug_swap": "N",
    "dump_invalid_vmcb": "N",
    "force_avic": "N",
    "intercept_smi": "Y",
    "lbrv": "0",
    "nested": "0",
    "npt": "Y",
    "nrips": "0",
    "pause_filter_count": "0",
    "pause_filter_count_grow": "0",
    "pause_filter_count_max": "0",
    "pause_filter_count_shrink": "0",
    "pause_filter_thresh": "0",
    "sev": "N",
    "sev_es": "N",
    "sev_snp": "N",
    "tsc_scaling": "0",
    "vgif": "0",
    "vls": "0",
    "vnmi": "N",
}

_AMD: Final = ("AuthenticAMD", "HygonGenuine")


def modules() -> dict[str, dict[str, str]]:
    """Module name -> its parameters: kvm, and the one that fits the vendor of this machine's CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id" and value.strip() in _AMD:
            return {"kvm": KVM, "kvm_amd": KVM_AMD}
    return {"kvm": KVM, "kvm_intel": KVM_INTEL}
