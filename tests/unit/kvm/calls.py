"""ioctls that many tests of a vCPU need."""

from __future__ import annotations

from ctypes import sizeof
from typing import Any

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.msrs import MsrEntry, Msrs
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import BASE, FakeClient


def get(client: FakeClient, node: Vcpu, row: ioctls.Ioctl, kind: Any) -> Any:
    value = kind()
    client.call(node, row, value)
    return value


def enable(client: FakeClient, vm: Vm, cap: Cap) -> None:
    client.call(vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=cap, args=(1,)))


def set_msr(client: FakeClient, vcpu: Vcpu, number: int, value: int) -> int:
    client.put(MsrEntry(index=number, data=value), BASE + sizeof(Msrs))
    return client.call(vcpu, ioctls.KVM_SET_MSRS, Msrs(nmsrs=1))


def get_msr(client: FakeClient, vcpu: Vcpu, number: int) -> int | None:
    client.put(MsrEntry(index=number), BASE + sizeof(Msrs))
    if not client.call(vcpu, ioctls.KVM_GET_MSRS, Msrs(nmsrs=1)):
        return None
    return MsrEntry.from_buffer_copy(client.memory, sizeof(Msrs)).data


def cpuid_of_all(client: FakeClient, vcpu: Vcpu, change: dict[int, dict[str, int]] | None = None) -> int:
    """KVM_SET_CPUID2 of what is supported, leaves changed: the errno."""
    entries = [CpuidEntry2.from_buffer_copy(entry) for entry in supported_cpuid().entries]
    for entry in entries:
        for name, value in (change or {}).get(entry.function, {}).items():
            setattr(entry, name, value)
    client.write(BASE + 4096, bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries)))
    return client.fails(vcpu, ioctls.KVM_SET_CPUID2, BASE + 4096)
