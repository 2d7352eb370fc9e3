"""KVM_GET_SUPPORTED_CPUID: the most that a guest can be shown (__do_cpuid_func of arch/x86/kvm/cpuid.c).

The answer is one for all VMs of a host: vendor, family, model and name are the host's, features are those of
cpuid_policy. Leaves that would describe the host (caches, topology, power, performance counters) are 0, which every
guest reads as "not said".
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import IntFlag
from functools import cache

from kvmfs.abi import para
from kvmfs.abi.cpuid import FEATURE_REGISTERS, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, CpuidEntry2
from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf7Ecx, LeafD_1Eax
from kvmfs.abi.cpuid_extended import Leaf80000001Edx
from kvmfs.abi.limits import KVM_MAX_CPUID_ENTRIES
from kvmfs.kvm import accounts, xstate
from kvmfs.kvm.cpuid_policy import implemented, supported
from kvmfs.kvm.dispatch import fail
from kvmfs.kvm.hostcpu import HostCpu, host_cpu

INDEXED = frozenset({4, 7, 0xB, 0xD, 0xF, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1D, 0x1E, 0x1F, 0x24, 0x8000001D})
"""Leaves whose answer depends on ECX (cpuid_function_is_indexed)."""

MAX_BASIC = 0xD
MAX_EXTENDED = 0x80000008
CLFLUSH_UNITS = 8  # of 8 bytes

PV_FEATURES = (
    1 << para.KVM_FEATURE_CLOCKSOURCE
    | 1 << para.KVM_FEATURE_NOP_IO_DELAY
    | 1 << para.KVM_FEATURE_CLOCKSOURCE2
    | 1 << para.KVM_FEATURE_PV_EOI
    | 1 << para.KVM_FEATURE_PV_UNHALT
    | 1 << para.KVM_FEATURE_PV_SEND_IPI
    | 1 << para.KVM_FEATURE_POLL_CONTROL
    | 1 << para.KVM_FEATURE_CLOCKSOURCE_STABLE_BIT
)
"""Those that are there on every host."""


def _entry(function: int, index: int = 0, eax: int = 0, ebx: int = 0, ecx: int = 0, edx: int = 0) -> CpuidEntry2:
    flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX if function in INDEXED else 0
    return CpuidEntry2(function=function, index=index, flags=flags, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def _text(text: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4))


class SupportedCpuid:
    """The supported leaves on one host."""

    def __init__(self, host: HostCpu) -> None:
        self._host = host
        self._masks = supported(host.is_amd, implemented(host.flags))
        self.xcr0 = xstate.supported_xcr0(self.has)
        self.entries: tuple[CpuidEntry2, ...] = tuple(self._leaves())

    def has(self, feature: IntFlag) -> bool:
        """kvm_cpu_cap_has."""
        return bool(self._masks[FEATURE_REGISTERS[type(feature)]] & feature)

    def _features(self, function: int, index: int = 0) -> dict[str, int]:
        return {
            register.name: mask
            for register, mask in self._masks.items()
            if (register.leaf, register.subleaf) == (function, index)
        }

    def _leaves(self) -> Iterator[CpuidEntry2]:
        for function in range(MAX_BASIC + 1):
            yield from self._basic(function)
        for function in range(0x80000000, MAX_EXTENDED + 1):
            yield self._extended(function)
        ebx, ecx, edx = _text(para.KVM_SIGNATURE)
        yield _entry(para.KVM_CPUID_SIGNATURE, 0, para.KVM_CPUID_FEATURES, ebx, ecx, edx)
        steal_time = 1 << para.KVM_FEATURE_STEAL_TIME if accounts.are_kept() else 0
        yield _entry(para.KVM_CPUID_FEATURES, eax=PV_FEATURES | steal_time)

    def _basic(self, function: int) -> Iterator[CpuidEntry2]:
        features = self._features(function)
        if function == 0:
            ebx, edx, ecx = _text(self._host.vendor.encode())
            yield _entry(0, 0, MAX_BASIC, ebx, ecx, edx)
        elif function == 1:
            yield _entry(1, eax=self._host.signature, ebx=CLFLUSH_UNITS << 8, **features)
        elif function == 2 and not self._host.is_amd:
            yield _entry(2, eax=1)  # the low byte is always 1 (SDM vol. 2A, CPUID)
        elif function == 7:
            second, third = self._features(7, 1), self._features(7, 2)
            deepest = 2 if any(third.values()) else 1 if any(second.values()) else 0
            yield _entry(7, 0, deepest, **features)
            if deepest >= 1:
                yield _entry(7, 1, **second)
            if deepest >= 2:
                yield _entry(7, 2, **third)
        elif function == 0xD:
            yield from self._xsave()
        else:
            yield _entry(function, **features)

    def _xsave(self) -> Iterator[CpuidEntry2]:
        if not self.xcr0:
            yield _entry(0xD)
            return
        size = xstate.required_size(self.xcr0)
        yield _entry(0xD, 0, self.xcr0 & 0xFFFF_FFFF, size, size, self.xcr0 >> 32)
        features = self._features(0xD, 1)
        compacts = features["eax"] & (LeafD_1Eax.XSAVES | LeafD_1Eax.XSAVEC)
        yield _entry(0xD, 1, features["eax"], xstate.required_size(self.xcr0, compacted=True) if compacts else 0)
        for number, component in xstate.COMPONENTS.items():
            if self.xcr0 >> number & 1:
                yield _entry(0xD, number, component.size, component.offset)

    def _extended(self, function: int) -> CpuidEntry2:
        features = self._features(function)
        if function == 0x80000000:
            ebx, edx, ecx = _text(self._host.vendor.encode()) if self._host.is_amd else (0, 0, 0)
            return _entry(function, 0, MAX_EXTENDED, ebx, ecx, edx)
        if function == 0x80000001:
            return _entry(function, eax=self._host.signature if self._host.is_amd else 0, **features)
        if 0x80000002 <= function <= 0x80000004:
            name = self._host.name.encode()[:47].ljust(48, b"\0")
            at = 16 * (function - 0x80000002)
            return _entry(function, 0, *_text(name[at : at + 16]))
        if function == 0x80000008:
            # KVM's ABI: bits 0-7 what a guest physical address may have, 16-23 how much of it can be reached.
            physical = self._host.physical_bits
            virtual = 57 if self.has(Leaf7Ecx.LA57) else 48
            return _entry(function, eax=physical | virtual << 8 | physical << 16, **features)
        return _entry(function, **features)


@cache
def supported_cpuid() -> SupportedCpuid:
    """Of this host."""
    return SupportedCpuid(host_cpu())


def get_supported(room: int) -> list[CpuidEntry2]:
    """The entries for a client that has room for so many. OSError(E2BIG)."""
    if room < 1:
        fail(errno.E2BIG)
    entries = supported_cpuid().entries
    if len(entries) > min(room, KVM_MAX_CPUID_ENTRIES):
        fail(errno.E2BIG)
    return list(entries)


def get_emulated(room: int) -> list[CpuidEntry2]:
    """What KVM could emulate if asked to, offered or not (__do_cpuid_func_emulated). OSError(E2BIG)."""
    has = supported_cpuid().has
    rdpid = Leaf7Ecx.RDPID if has(Leaf80000001Edx.RDTSCP) and has(Leaf7Ecx.RDPID) else 0
    leaves = [_entry(0, eax=7), _entry(1, ecx=Leaf1Ecx.MOVBE if has(Leaf1Ecx.MOVBE) else 0), _entry(7, ecx=rdpid)]
    if room <= len(leaves):  # one more is wanted for each further class, and then not used
        fail(errno.E2BIG)
    return leaves
