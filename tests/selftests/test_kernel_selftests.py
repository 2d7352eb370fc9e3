"""The kernel's own KVM selftests, unmodified, under `kvmfs run`.

One case per program and set of arguments.  They speak TAP in parts, but the exit status says it all:
0 passed, 4 skipped itself (KSFT_SKIP: something it asked for was not offered), else failed.  Here all of them have to
pass, so a skip is a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import Finished


@dataclass(frozen=True)
class Program:
    path: str
    args: tuple[str, ...] = ()
    seconds: int = 60  # ample: the slowest machine of CI, busy

    @property
    def id(self) -> str:
        return " ".join((Path(self.path).name, *self.args))


PROGRAMS = [
    Program("guest_memfd_test"),
    Program("set_memory_region_test", seconds=300),
    Program("x86_64/private_mem_kvm_exits_test"),
    Program("x86_64/private_mem_conversions_test", seconds=300),
    Program("x86_64/private_mem_conversions_test", ("-m", "4"), seconds=300),
    Program("x86_64/private_mem_conversions_test", ("-n", "4"), seconds=900),
    Program("x86_64/private_mem_conversions_test", ("-n", "4", "-m", "4"), seconds=900),
    Program("pre_fault_memory_test"),
    Program("guest_print_test"),
    Program("kvm_create_max_vcpus", seconds=180),
    Program("x86_64/userspace_io_test"),
    Program("x86_64/sync_regs_test"),
    Program("x86_64/set_sregs_test"),
    Program("x86_64/cpuid_test"),
    Program("x86_64/get_msr_index_features"),
    Program("x86_64/platform_info_test"),
    Program("x86_64/set_boot_cpu_id"),
    Program("x86_64/max_vcpuid_cap_test"),
    Program("x86_64/kvm_clock_test"),
    Program("system_counter_offset_test"),
    Program("steal_time"),
    Program("x86_64/userspace_msr_exit_test"),
    Program("x86_64/cr4_cpuid_sync_test"),
    Program("x86_64/xcr0_cpuid_test"),
    Program("x86_64/xss_msr_test"),
    Program("x86_64/hwcr_msr_test"),
    Program("x86_64/tsc_msrs_test"),
    Program("x86_64/kvm_pv_test"),
    Program("x86_64/exit_on_emulation_failure_test"),
    Program("x86_64/tsc_scaling_sync", seconds=240),
    Program("x86_64/xapic_state_test", seconds=300),
    Program("x86_64/xapic_ipi_test", seconds=180),
    Program("x86_64/recalc_apic_map_test", seconds=300),
    Program("x86_64/apic_bus_clock_test", seconds=120),
    Program("x86_64/ucna_injection_test"),
    Program("x86_64/debug_regs"),
    Program("x86_64/fix_hypercall_test"),
    Program("x86_64/state_test"),
    Program("coalesced_io_test"),
    Program("kvm_binary_stats_test"),
    Program("kvm_page_table_test", ("-b", "16M"), seconds=120),
    Program("demand_paging_test", ("-b", "16M"), seconds=120),
    Program("demand_paging_test", ("-b", "8M", "-u", "MISSING"), seconds=120),
    Program("demand_paging_test", ("-b", "8M", "-u", "MISSING", "-v", "2"), seconds=120),
    Program("demand_paging_test", ("-b", "8M", "-u", "MINOR", "-s", "shmem"), seconds=120),
    Program("demand_paging_test", ("-b", "8M", "-u", "MINOR", "-s", "shmem", "-v", "2"), seconds=120),
    Program("dirty_log_perf_test", ("-b", "16M", "-v", "2", "-i", "2"), seconds=120),
    Program("dirty_log_perf_test", ("-b", "16M", "-v", "1", "-i", "2", "-g"), seconds=120),
    Program("dirty_log_perf_test", ("-b", "8M", "-v", "2", "-i", "2", "-x", "4", "-a"), seconds=120),
    Program("dirty_log_perf_test", ("-b", "8M", "-v", "2", "-i", "2", "-o", "-s", "shmem"), seconds=120),
    Program("memslot_modification_stress_test", ("-i", "30", "-v", "1"), seconds=120),
    Program("memslot_perf_test", ("-l", "1", "-r", "1", "-s", "512"), seconds=300),
    Program("max_guest_memory_test", ("-m", "1", "-s", "1", "-c", "2"), seconds=120),
    Program("rseq_test", ("-u",), seconds=120),  # -u: not to judge how many runs a machine manages
]


def _verdict(done: Finished) -> str | None:
    match done.status:
        case 0:
            return None
        case 4:
            return "the program skipped itself"
        case None:
            return "the program did not end"
        case 254:  # TEST_ASSERT() calls exit(254)
            return "an assertion of the program failed"
        case status:
            return f"the program ended with status {status}"


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=p.id, marks=pytest.mark.timeout(p.seconds + 30)) for p in PROGRAMS],
)
def test_kernel_selftest(program: Program, selftests_dir: Path, kvmfs_run: Callable[..., Finished]) -> None:
    done = kvmfs_run(selftests_dir / program.path, *program.args, timeout=program.seconds)
    if problem := _verdict(done):
        pytest.fail(f"{problem}\n{done}", pytrace=False)


WITHOUT_FUSE = [
    Program("guest_memfd_test"),
    Program("x86_64/private_mem_kvm_exits_test"),
    Program("x86_64/private_mem_conversions_test", seconds=300),
    Program("pre_fault_memory_test"),
    Program("x86_64/userspace_io_test"),
    Program("x86_64/xapic_ipi_test", seconds=180),
    Program("coalesced_io_test"),
    Program("demand_paging_test", ("-b", "8M", "-u", "MISSING"), seconds=120),
    Program("dirty_log_perf_test", ("-b", "16M", "-v", "2", "-i", "2"), seconds=120),
    Program("rseq_test", ("-u",), seconds=120),
]
"""A few of each kind over the other transport: descriptors, exits, memory, fallocate, eventfds, threads, migration."""


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.parametrize(
    "program",
    [pytest.param(p, id=p.id, marks=pytest.mark.timeout(p.seconds + 30)) for p in WITHOUT_FUSE],
)
def test_without_fuse(program: Program, selftests_dir: Path, kvmfs_run: Callable[..., Finished]) -> None:
    options = ("--transport", "seccomp")
    done = kvmfs_run(selftests_dir / program.path, *program.args, timeout=program.seconds, options=options)
    if problem := _verdict(done):
        pytest.fail(f"{problem}\n{done}", pytrace=False)
