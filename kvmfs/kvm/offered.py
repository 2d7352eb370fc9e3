"""What works, for documentation: read off the tables that decide it."""

from __future__ import annotations

from kvmfs.abi.caps import Cap
from kvmfs.abi.ioctls import KVM_CREATE_VM, KVM_RUN, Fd
from kvmfs.kvm import caps, system, vcpu, vfio, vm

TRANSPORT = {Fd.SYSTEM: KVM_CREATE_VM, Fd.VCPU: KVM_RUN}
"""Ioctls that the transport does with what this package gives it."""


def ioctls() -> dict[str, set[str]]:
    """By kind of fd, the names of the ioctls that are answered."""
    works = {
        str(table.fd.name): {entry.row.name for entry in table.entries.values()}
        for table in (system.table, vm.TABLE, vcpu.TABLE, vfio.table)
    }
    for fd, row in TRANSPORT.items():
        works[str(fd.name)].add(row.name)
    return works


def capabilities() -> dict[str, dict[str, int]]:
    """By name, a capability's value on /dev/kvm and on a VM of each type."""
    return {
        cap.name: {
            "system": caps.check_extension(cap),
            "vm_default": caps.check_extension(cap, has_private_mem=False),
            "vm_sw_protected": caps.check_extension(cap, has_private_mem=True),
        }
        for cap in Cap
    }
