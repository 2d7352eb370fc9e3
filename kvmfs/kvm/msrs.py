"""KVM_GET_MSRS, KVM_SET_MSRS and the lists: which MSRs there are. Their rules are in msr_rules, mtrr and mce."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ctypes import sizeof
from functools import cache
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi import msr_index as M
from kvmfs.abi import para as P
from kvmfs.abi.cpuid_basic import Leaf7Ecx
from kvmfs.abi.cpuid_extended import Leaf80000001Edx
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.limits import MAX_IO_MSRS
from kvmfs.abi.msrs import MsrEntry, MsrList, Msrs
from kvmfs.kvm import accounts, clock, mce, msr_vendor, mtrr
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.dispatch import Table, fail, read_array, read_struct
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.msr_rules import READ, WRITE, Invalid, Unsupported

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU, mce.table)
RULES: Final = (accounts, clock, mce, msr_vendor, mtrr)  # imported for the rules that they register

_SAVED: Final = (
    M.MSR_IA32_SYSENTER_CS, M.MSR_IA32_SYSENTER_ESP, M.MSR_IA32_SYSENTER_EIP, M.MSR_STAR, M.MSR_CSTAR,
    M.MSR_KERNEL_GS_BASE, M.MSR_SYSCALL_MASK, M.MSR_LSTAR, M.MSR_IA32_TSC, M.MSR_IA32_CR_PAT,
)  # fmt: skip
_EMULATED: Final = (
    P.MSR_KVM_SYSTEM_TIME, P.MSR_KVM_WALL_CLOCK, P.MSR_KVM_SYSTEM_TIME_NEW, P.MSR_KVM_WALL_CLOCK_NEW,
    P.MSR_KVM_STEAL_TIME, P.MSR_KVM_PV_EOI_EN,
    M.MSR_IA32_TSC_ADJUST, M.MSR_IA32_TSC_DEADLINE, M.MSR_IA32_ARCH_CAPABILITIES, M.MSR_IA32_PERF_CAPABILITIES,
    M.MSR_IA32_MISC_ENABLE,
    M.MSR_IA32_MCG_STATUS, M.MSR_IA32_MCG_CTL, M.MSR_SMI_COUNT, M.MSR_PLATFORM_INFO, M.MSR_MISC_FEATURES_ENABLES,
    M.MSR_IA32_POWER_CTL, M.MSR_IA32_UCODE_REV, M.MSR_K7_HWCR,
    P.MSR_KVM_POLL_CONTROL,
)  # fmt: skip

ARCH_CAPABILITIES: Final = (
    B.ARCH_CAP_RDCL_NO | B.ARCH_CAP_SKIP_VMENTRY_L1DFLUSH | B.ARCH_CAP_SSB_NO | B.ARCH_CAP_MDS_NO
    | B.ARCH_CAP_PSCHANGE_MC_NO | B.ARCH_CAP_SBDR_SSDP_NO | B.ARCH_CAP_FBSDP_NO | B.ARCH_CAP_PSDP_NO
    | B.ARCH_CAP_PBRSB_NO | B.ARCH_CAP_GDS_NO | B.ARCH_CAP_RFDS_NO | B.ARCH_CAP_BHI_NO | B.ARCH_CAP_ITS_NO
)  # fmt: skip
"""A processor in software speculates about nothing. TAA_NO is for those that have TSX."""


@cache
def index_list() -> tuple[int, ...]:
    """KVM_GET_MSR_INDEX_LIST: what a client is to save and restore."""
    has, amd = supported_cpuid().has, host_cpu().is_amd
    vendor = (M.MSR_VM_HSAVE_PA,) if amd else (M.MSR_IA32_FEAT_CTL,)
    aux = (M.MSR_TSC_AUX,) if has(Leaf80000001Edx.RDTSCP) or has(Leaf7Ecx.RDPID) else ()
    return (*_SAVED, *vendor, *aux, *_EMULATED)


@cache
def feature_msrs() -> dict[int, int]:
    """The feature MSRs and their values (kvm_get_feature_msr)."""
    values = {
        M.MSR_IA32_UCODE_REV: host_cpu().microcode << 32,
        M.MSR_IA32_ARCH_CAPABILITIES: ARCH_CAPABILITIES,
        M.MSR_IA32_PERF_CAPABILITIES: 0,
    }
    if host_cpu().is_amd:
        values[M.MSR_IA32_UCODE_REV] >>= 32
        values = {M.MSR_AMD64_DE_CFG: msr_vendor.DE_CFG_LFENCE_SERIALIZE, **values}
    return values


IMMUTABLE: Final = (M.MSR_AMD64_DE_CFG, M.MSR_IA32_ARCH_CAPABILITIES, M.MSR_IA32_PERF_CAPABILITIES)


def read_msr(vcpu: Vcpu, number: int, host: bool) -> int:
    """The MSR's value. Raises Invalid or Unsupported; for the client, what is listed can always be read."""
    try:
        rule = READ.get(number)
        if rule is None:
            raise Unsupported
        return rule(vcpu, number, host)
    except Unsupported:
        if host and number in index_list():
            return 0
        raise


def write_msr(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    """Raises Invalid or Unsupported; for the client, what is listed can always be set to 0."""
    try:
        rule = WRITE.get(number)
        if rule is None:
            raise Unsupported
        rule(vcpu, number, value, host)
    except Unsupported:
        if host and not value and number in index_list():
            return
        raise


def msr_io(caller: Caller, address: int, access: Callable[[MsrEntry], None], writeback: bool) -> int:
    """Go through a struct kvm_msrs until `access` raises: how many went well (msr_io of x86.c)."""
    header = read_struct(caller, address, Msrs)
    if header.nmsrs >= MAX_IO_MSRS:
        fail(errno.E2BIG)
    entries = read_array(caller, address + sizeof(Msrs), MsrEntry, header.nmsrs)
    done = 0
    for entry in entries:
        try:
            access(entry)
        except (Invalid, Unsupported):
            break
        done += 1
    if writeback:
        caller.write(address + sizeof(Msrs), b"".join(map(bytes, entries)))
    return done


def write_list(caller: Caller, address: int, numbers: tuple[int, ...]) -> None:
    """KVM_GET_MSR_INDEX_LIST: the count in any case, the numbers if there is room. OSError(E2BIG)."""
    header = read_struct(caller, address, MsrList)
    room, header.nmsrs = header.nmsrs, len(numbers)
    caller.write(address, bytes(header))
    if room < len(numbers):
        fail(errno.E2BIG)
    caller.write(address + sizeof(MsrList), b"".join(number.to_bytes(4, "little") for number in numbers))


def get_feature_msr(entry: MsrEntry) -> None:
    """KVM_GET_MSRS of /dev/kvm."""
    value = feature_msrs().get(entry.index)
    entry.data = value or 0
    if value is None and entry.index not in index_list():
        raise Unsupported


@table.ioctl(ioctls.KVM_GET_MSRS, raw=True)
def get_msrs(vcpu: Vcpu, caller: Caller, arg: int) -> int:
    def get(entry: MsrEntry) -> None:
        entry.data = 0
        entry.data = read_msr(vcpu, entry.index, True)

    return msr_io(caller, arg, get, writeback=True)


@table.ioctl(ioctls.KVM_SET_MSRS, raw=True)
def set_msrs(vcpu: Vcpu, caller: Caller, arg: int) -> int:
    def set(entry: MsrEntry) -> None:
        if vcpu.has_run and entry.index in IMMUTABLE and read_msr(vcpu, entry.index, True) != entry.data:
            raise Invalid
        write_msr(vcpu, entry.index, entry.data, True)

    return msr_io(caller, arg, set, writeback=False)
