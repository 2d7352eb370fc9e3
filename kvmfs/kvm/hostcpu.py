"""What the host's processor calls itself. KVM gives guests the host's vendor, family and model, and so do we: a client
chooses instructions and MSRs by what it sees around itself, and its guest has to agree.

Source: /proc/cpuinfo. Its features matter only where the processor in software that guests run on has its instructions
executed by the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvmfs.abi.layout import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class HostCpu:
    vendor: str  # twelve characters, as in CPUID leaf 0
    family: int
    model: int
    stepping: int
    name: str
    physical_bits: int
    virtual_bits: int
    microcode: int
    flags: frozenset[str] = frozenset()

    @property
    def is_amd(self) -> bool:
        return self.vendor in ("AuthenticAMD", "HygonGenuine")

    @property
    def signature(self) -> int:
        """CPUID leaf 1, EAX (SDM vol. 2A, figure 3-6)."""
        family, extended_family = min(self.family, 15), max(self.family - 15, 0)
        return self.stepping | (self.model & 15) << 4 | family << 8 | (self.model >> 4) << 16 | extended_family << 20

    @property
    def max_gfn(self) -> int:
        """The last guest frame that a memslot may have (kvm_mmu_max_gfn)."""
        return (1 << self.physical_bits) // PAGE_SIZE - 1


def parse(cpuinfo: str) -> HostCpu:
    """The first processor of a /proc/cpuinfo."""
    fields = {}
    for line in cpuinfo.partition("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    physical, _, virtual = fields.get("address sizes", "40 bits physical, 48 bits virtual").partition(",")
    return HostCpu(
        vendor=fields.get("vendor_id", "GenuineIntel")[:12].ljust(12),
        family=int(fields.get("cpu family", 6)),
        model=int(fields.get("model", 0)),
        stepping=int(fields["stepping"]) if fields.get("stepping", "").isdigit() else 0,
        name=fields.get("model name", ""),
        physical_bits=int(physical.split()[0]),
        virtual_bits=int(virtual.split()[0]),
        microcode=int(fields.get("microcode", "0"), 0),
        flags=frozenset(fields.get("flags", "").split()),
    )


@cache
def host_cpu() -> HostCpu:
    return parse(Path("/proc/cpuinfo").read_text())
