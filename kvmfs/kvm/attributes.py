"""KVM_SET_MEMORY_ATTRIBUTES."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.memory import KVM_MEMORY_ATTRIBUTE_PRIVATE, MemoryAttributes
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

WRAP: Final = 1 << 64


def supported_attributes(has_private_mem: bool) -> int:
    """kvm_supported_mem_attributes."""
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if has_private_mem else 0


@table.ioctl(ioctls.KVM_SET_MEMORY_ATTRIBUTES)
def set_memory_attributes(vm: Vm, caller: Caller, arg: MemoryAttributes) -> None:
    """kvm_vm_ioctl_set_mem_attributes. The cost does not depend on the range's size."""
    if arg.flags or arg.attributes & ~supported_attributes(vm.has_private_mem):
        fail(errno.EINVAL)
    if arg.size == 0 or arg.address + arg.size >= WRAP:
        fail(errno.EINVAL)
    if arg.address % PAGE_SIZE or arg.size % PAGE_SIZE:
        fail(errno.EINVAL)
    first, end = arg.address // PAGE_SIZE, (arg.address + arg.size) // PAGE_SIZE
    with vm.slots_lock:
        if not vm.publisher.have_attributes(first, end, arg.attributes):
            vm.publisher.set_attributes(first, end, arg.attributes)
    vm.log.write("set_memory_attributes", gpa=arg.address, size=arg.size, attributes=arg.attributes)
