"""MTRRs: kept and checked, without effect, as in KVM with two-dimensional paging (arch/x86/kvm/mtrr.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi import msr_index as M
from kvmfs.kvm.msr_rules import reads, require, writes

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

VARIABLE_COUNT: Final = 8
PHYS_BASE0: Final = 0x200
VARIABLE: Final = range(PHYS_BASE0, PHYS_BASE0 + 2 * VARIABLE_COUNT)
FIXED: Final = (
    M.MSR_MTRRfix64K_00000,
    M.MSR_MTRRfix16K_80000,
    M.MSR_MTRRfix16K_A0000,
    *range(M.MSR_MTRRfix4K_C0000, M.MSR_MTRRfix4K_F8000 + 1),
)
CAPABILITIES: Final = 1 << 10 | 1 << 8 | VARIABLE_COUNT  # write-combining, fixed ranges
TYPES: Final = (0, 1, 4, 5, 6)


@reads(M.MSR_MTRRcap)
def _read_capabilities(vcpu: Vcpu, number: int, host: bool) -> int:
    return CAPABILITIES


@reads(M.MSR_MTRRdefType, *FIXED, *VARIABLE)
def _read(vcpu: Vcpu, number: int, host: bool) -> int:
    return vcpu.msr.get(number, 0)


@writes(M.MSR_MTRRdefType)
def _write_default(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(not value & ~0xCFF and value & 0xFF in TYPES)
    vcpu.msr[number] = value


@writes(*FIXED)
def _write_fixed(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    require(all(byte in TYPES for byte in value.to_bytes(8, "little")))
    vcpu.msr[number] = value


@writes(*VARIABLE)
def _write_variable(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    is_base = number % 2 == 0
    require(not is_base or value & 0xFF in TYPES)
    reserved = (1 << 64) - (1 << vcpu.cpuid.max_physical_bits) | (0xF00 if is_base else 0x7FF)
    require(not value & reserved)
    vcpu.msr[number] = value
