"""/dev/kvm. KVM_CREATE_VM is the transport's: it makes a process; here is only what its argument may be."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import u64
from kvmfs.abi.limits import KVM_MAX_CPUID_ENTRIES, VCPU_MMAP_SIZE
from kvmfs.abi.vm import KVM_API_VERSION, KVM_X86_GRP_SYSTEM, KVM_X86_XCOMP_GUEST_SUPP, DeviceAttr
from kvmfs.kvm import caps
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.cpuid import get_emulated, get_supported, supported_cpuid
from kvmfs.kvm.dispatch import Table, fail, read_array, read_struct
from kvmfs.kvm.mce import SUPPORTED_MCE_CAP
from kvmfs.kvm.msrs import feature_msrs, get_feature_msr, index_list, msr_io, write_list

table: Table[System] = Table(Fd.SYSTEM)


class System:
    """The device's node. `shared_pages`: VMs can share memory with a client that maps one of their files. `reads`: a
    client can read them."""

    name = "kvm"

    def __init__(self, shared_pages: bool = True, reads: bool = True) -> None:
        self.shared_pages, self.reads = shared_pages, reads

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        return table.call(self, caller, cmd, arg)

    def check_vm_type(self, kind: int) -> None:
        """KVM_CREATE_VM's argument (kvm_is_vm_type_supported). OSError(EINVAL)."""
        if kind >= 32 or not caps.VM_TYPES >> kind & 1:
            fail(errno.EINVAL)

    def released(self) -> None:
        pass


@table.ioctl(ioctls.KVM_GET_API_VERSION)
def get_api_version(system: System, caller: Caller, arg: int) -> int:
    return KVM_API_VERSION


@table.ioctl(ioctls.KVM_CHECK_EXTENSION)
def check_extension(system: System, caller: Caller, arg: int) -> int:
    return caps.check_extension(arg, shared_pages=system.shared_pages, reads=system.reads)


@table.ioctl(ioctls.KVM_GET_VCPU_MMAP_SIZE)
def get_vcpu_mmap_size(system: System, caller: Caller, arg: int) -> int:
    return VCPU_MMAP_SIZE


@table.ioctl(ioctls.KVM_GET_MSR_INDEX_LIST, raw=True)
def get_msr_index_list(system: System, caller: Caller, arg: int) -> None:
    write_list(caller, arg, index_list())


@table.ioctl(ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST, raw=True)
def get_msr_feature_index_list(system: System, caller: Caller, arg: int) -> None:
    write_list(caller, arg, tuple(feature_msrs()))


@table.ioctl(ioctls.KVM_GET_MSRS, raw=True)
def get_msrs(system: System, caller: Caller, arg: int) -> int:
    return msr_io(caller, arg, get_feature_msr, writeback=True)


@table.ioctl(ioctls.KVM_GET_SUPPORTED_CPUID, raw=True)
def get_supported_cpuid(system: System, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, Cpuid2)
    _write_cpuid(caller, arg, header, get_supported(header.nent))


@table.ioctl(ioctls.KVM_GET_EMULATED_CPUID, raw=True)
def get_emulated_cpuid(system: System, caller: Caller, arg: int) -> None:
    header = read_struct(caller, arg, Cpuid2)
    if header.nent < 1:
        fail(errno.E2BIG)
    room = min(header.nent, KVM_MAX_CPUID_ENTRIES)
    try:
        given = read_array(caller, arg + sizeof(Cpuid2), CpuidEntry2, room)
    except OSError:
        fail(errno.EINVAL)  # sanity_check_entries makes no difference
    if any(any(entry.padding) for entry in given):
        fail(errno.EINVAL)
    _write_cpuid(caller, arg, header, get_emulated(room))


def _write_cpuid(caller: Caller, address: int, header: Cpuid2, entries: list[CpuidEntry2]) -> None:
    caller.write(address + sizeof(Cpuid2), b"".join(map(bytes, entries)))
    header.nent = len(entries)
    caller.write(address, bytes(header))


@table.ioctl(ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED)
def get_mce_cap(system: System, caller: Caller, arg: int) -> u64:
    return u64(SUPPORTED_MCE_CAP)


def _attribute(attr: DeviceAttr) -> int:
    if attr.group != KVM_X86_GRP_SYSTEM or attr.attr != KVM_X86_XCOMP_GUEST_SUPP:
        fail(errno.ENXIO)
    return supported_cpuid().xcr0


@table.ioctl(ioctls.KVM_GET_DEVICE_ATTR)
def get_device_attr(system: System, caller: Caller, arg: DeviceAttr) -> None:
    caller.write(arg.addr, bytes(u64(_attribute(arg))))


@table.ioctl(ioctls.KVM_HAS_DEVICE_ATTR)
def has_device_attr(system: System, caller: Caller, arg: DeviceAttr) -> None:
    _attribute(arg)


if TYPE_CHECKING:
    from kvmfs.kvm.caller import Node

    _: Node = System()
