"""A vCPU's own CPUID table: KVM_SET_CPUID2 and what follows from it (arch/x86/kvm/cpuid.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ctypes import sizeof
from enum import IntFlag
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls, para
from kvmfs.abi import msr_bits as B
from kvmfs.abi.cpuid import FEATURE_REGISTERS, Cpuid, Cpuid2, CpuidEntry, CpuidEntry2
from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf1Edx, Leaf7Ebx, Leaf7Ecx, LeafD_1Eax
from kvmfs.abi.cpuid_extended import Leaf80000001Edx, Leaf80000021Eax
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.limits import KVM_MAX_CPUID_ENTRIES
from kvmfs.abi.vm import KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features
from kvmfs.kvm import xstate
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.cpuid_policy import implemented
from kvmfs.kvm.dispatch import Table, fail, read_array, read_struct
from kvmfs.kvm.hostcpu import host_cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

_COMPARED: Final = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
_FLAGS: Final[dict[str, IntFlag]] = {bit.name: bit for kind in FEATURE_REGISTERS for bit in kind if bit.name}


class GuestCpuid:
    """The entries, in the client's order. Without any, the guest has no feature and no vendor."""

    def __init__(self, entries: list[CpuidEntry2] | None = None) -> None:
        self.entries = entries or []

    def find(self, function: int, index: int | None = None) -> CpuidEntry2 | None:
        """The first entry that answers (cpuid_entry2_find); `index` None: the leaf has no subleaves to tell apart."""
        for entry in self.entries:
            if entry.function == function and (not entry.flags & 1 or index is None or entry.index == index):
                return entry
        return None

    def has(self, feature: IntFlag) -> bool:
        """guest_cpuid_has."""
        register = FEATURE_REGISTERS[type(feature)]
        entry = self.find(register.leaf, register.subleaf)
        return entry is not None and bool(getattr(entry, register.name) & feature)

    def change(self, feature: IntFlag, on: bool) -> None:
        """Set or clear a feature's bit where its leaf is there."""
        register = FEATURE_REGISTERS[type(feature)]
        if entry := self.find(register.leaf, register.subleaf):
            word = getattr(entry, register.name)
            setattr(entry, register.name, word | feature if on else word & ~feature & 0xFFFF_FFFF)

    @property
    def is_amd(self) -> bool:
        """AMD or Hygon: guest_cpuid_is_amd_or_hygon."""
        entry = self.find(0)
        if entry is None:
            return False
        vendor = b"".join(word.to_bytes(4, "little") for word in (entry.ebx, entry.edx, entry.ecx))
        return vendor in (b"AuthenticAMD", b"AMDisbetter!", b"HygonGenuine")

    @property
    def pv_leaf(self) -> CpuidEntry2 | None:
        """KVM_CPUID_FEATURES; KVM's leaves may lie behind another hypervisor's."""
        words = [int.from_bytes(para.KVM_SIGNATURE[at : at + 4], "little") for at in (0, 4, 8)]
        for base in range(para.KVM_CPUID_SIGNATURE, para.KVM_CPUID_SIGNATURE + 0x10000, 0x100):
            entry = self.find(base)
            if entry is not None and [entry.ebx, entry.ecx, entry.edx] == words:
                return self.find(base + 1)
        return None

    @property
    def pv_features(self) -> int:
        """KVM_FEATURE_* bits that the guest is told of."""
        leaf = self.pv_leaf
        return int(leaf.eax) if leaf else 0

    @property
    def max_physical_bits(self) -> int:
        """cpuid_query_maxphyaddr."""
        highest, sizes = self.find(0x80000000), self.find(0x80000008)
        if highest is None or highest.eax < 0x80000008 or sizes is None:
            return 36
        return int(sizes.eax) & 0xFF

    @property
    def supported_xcr0(self) -> int:
        """cpuid_get_supported_xcr0."""
        entry = self.find(0xD, 0)
        return int(entry.eax | entry.edx << 32) & supported_cpuid().xcr0 if entry else 0

    def check(self) -> None:
        """OSError(EINVAL) for what no guest can have (kvm_check_cpuid)."""
        entry = self.find(0x80000008)
        if entry is not None and (entry.eax >> 8 & 0xFF) not in (0, 48, 57):
            fail(errno.EINVAL)

    def equals(self, other: GuestCpuid) -> bool:
        """Padding aside."""
        return len(self.entries) == len(other.entries) and all(
            getattr(mine, name) == getattr(theirs, name)
            for mine, theirs in zip(self.entries, other.entries, strict=True)
            for name in _COMPARED
        )

    def feature_words(self) -> Iterator[int]:
        """The four words of state.FEATURES: what the processor implements on this host and the guest may use."""
        flags = ((name, _FLAGS[name]) for name in implemented(host_cpu().flags) if name in _FLAGS)
        bits = sum(1 << features.BIT[name] for name, flag in flags if self.has(flag))
        for word in range(4):
            yield bits >> 64 * word & (1 << 64) - 1


def cr4_reserved(cpuid: GuestCpuid | None = None) -> int:
    """Bits of CR4 that may not be set: all unknown ones, and those of features that are missing.

    `cpuid` None: missing in KVM itself (cr4_reserved_bits), else missing in the guest.
    """
    has = supported_cpuid().has if cpuid is None else cpuid.has
    reserved: int = (1 << 64) - 1 & ~_CR4_KNOWN
    for bit, feature in _CR4_FEATURES:
        if not has(feature):
            reserved |= bit
    return reserved


_CR4_FEATURES: Final = (
    (S.CR4_OSXSAVE, Leaf1Ecx.XSAVE),
    (S.CR4_SMEP, Leaf7Ebx.SMEP),
    (S.CR4_SMAP, Leaf7Ebx.SMAP),
    (S.CR4_FSGSBASE, Leaf7Ebx.FSGSBASE),
    (S.CR4_PKE, Leaf7Ecx.PKU),
    (S.CR4_LA57, Leaf7Ecx.LA57),
    (S.CR4_UMIP, Leaf7Ecx.UMIP),
    (S.CR4_VMXE, Leaf1Ecx.VMX),
    (S.CR4_PCIDE, Leaf1Ecx.PCID),
)
_CR4_KNOWN: Final = (
    S.CR4_VME | S.CR4_PVI | S.CR4_TSD | S.CR4_DE | S.CR4_PSE | S.CR4_PAE | S.CR4_MCE | S.CR4_PGE | S.CR4_PCE
    | S.CR4_OSFXSR | S.CR4_OSXMMEXCPT | sum(bit for bit, _ in _CR4_FEATURES)
)  # fmt: skip


def efer_reserved_by_kvm() -> int:
    """efer_reserved_bits: 0 in what this KVM has."""
    has = supported_cpuid().has
    allowed = B.EFER_SCE | B.EFER_LME | B.EFER_LMA
    if has(Leaf80000001Edx.NX):
        allowed |= B.EFER_NX
    if has(Leaf80000001Edx.FXSR_OPT):
        allowed |= B.EFER_FFXSR
    return (1 << 64) - 1 & ~allowed


_EFER_FEATURES: Final = (
    (B.EFER_AUTOIBRS, Leaf80000021Eax.AUTOIBRS),
    (B.EFER_FFXSR, Leaf80000001Edx.FXSR_OPT),
    (B.EFER_LME | B.EFER_LMA, Leaf80000001Edx.LM),
    (B.EFER_NX, Leaf80000001Edx.NX),
)


def efer_reserved_by_guest(cpuid: GuestCpuid) -> int:
    """__kvm_valid_efer: bits that the guest's CPUID does not allow."""
    return sum(bits for bits, feature in _EFER_FEATURES if not cpuid.has(feature)) | B.EFER_SVME


def update_runtime(vcpu: Vcpu, cpuid: GuestCpuid) -> None:
    """Make the entries say what the vCPU's state is (__kvm_update_cpuid_runtime)."""
    state = vcpu.state
    has = supported_cpuid().has
    if has(Leaf1Ecx.XSAVE):
        cpuid.change(Leaf1Ecx.OSXSAVE, bool(state[S.CR4] & S.CR4_OSXSAVE))
    cpuid.change(Leaf1Edx.APIC, bool(state[S.APIC_BASE] & B.MSR_IA32_APICBASE_ENABLE))
    if has(Leaf7Ecx.PKU):
        cpuid.change(Leaf7Ecx.OSPKE, bool(state[S.CR4] & S.CR4_PKE))
    if entry := cpuid.find(0xD, 0):
        entry.ebx = xstate.required_size(state[S.XCR0])
    if (entry := cpuid.find(0xD, 1)) and entry.eax & (LeafD_1Eax.XSAVES | LeafD_1Eax.XSAVEC):
        entry.ebx = xstate.required_size(state[S.XCR0], compacted=True)
    if vcpu.vm.hlt_in_guest and (entry := cpuid.pv_leaf):
        entry.eax &= ~(1 << para.KVM_FEATURE_PV_UNHALT) & 0xFFFF_FFFF
    if not vcpu.vm.has_quirk(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT):
        cpuid.change(Leaf1Ecx.MWAIT, bool(state[S.MISC_ENABLE] & B.MSR_IA32_MISC_ENABLE_MWAIT))


def _set(vcpu: Vcpu, entries: list[CpuidEntry2]) -> None:
    cpuid = GuestCpuid(entries)
    update_runtime(vcpu, cpuid)
    if vcpu.has_run:
        update_runtime(vcpu, vcpu.cpuid)  # the guest may have changed CR4 since
        # A guest whose processor changes under it is not supported, but clients set the same again (CPU hotplug).
        if not cpuid.equals(vcpu.cpuid):
            fail(errno.EINVAL)
        return
    cpuid.check()
    vcpu.set_cpuid(cpuid)


@table.ioctl(ioctls.KVM_SET_CPUID2, raw=True)
def set_cpuid2(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, Cpuid2)
    if header.nent > KVM_MAX_CPUID_ENTRIES:
        fail(errno.E2BIG)
    _set(vcpu, read_array(caller, arg + sizeof(Cpuid2), CpuidEntry2, header.nent))


@table.ioctl(ioctls.KVM_SET_CPUID, raw=True)
def set_cpuid(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, Cpuid)
    if header.nent > KVM_MAX_CPUID_ENTRIES:
        fail(errno.E2BIG)
    old = read_array(caller, arg + sizeof(Cpuid), CpuidEntry, header.nent)
    _set(
        vcpu,
        [CpuidEntry2(function=e.function, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in old],
    )


@table.ioctl(ioctls.KVM_GET_CPUID2, raw=True)
def get_cpuid2(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, Cpuid2)
    update_runtime(vcpu, vcpu.cpuid)
    entries = vcpu.cpuid.entries
    if header.nent < len(entries):
        fail(errno.E2BIG)
    caller.write(arg + sizeof(Cpuid2), b"".join(map(bytes, entries)))
    header.nent = len(entries)
    caller.write(arg, bytes(header))
