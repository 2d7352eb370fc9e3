"""KVM_GET_DIRTY_LOG (kvm_get_dirty_log_protect)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.limits import KVM_USER_MEM_SLOTS
from kvmfs.abi.memory import DirtyLog
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.slots import ADDRESS_SPACES

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)


@table.ioctl(ioctls.KVM_GET_DIRTY_LOG)
def get_dirty_log(vm: Vm, caller: Caller, arg: DirtyLog) -> None:
    with vm.slots_lock:
        slot_id = arg.slot & 0xFFFF
        if arg.slot >> 16 >= ADDRESS_SPACES or slot_id >= KVM_USER_MEM_SLOTS:
            fail(errno.EINVAL)
        slot = vm.memory.get(slot_id)
        if slot is None or not slot.dirty:
            fail(errno.ENOENT)
        caller.write(arg.dirty_bitmap, vm.memory.take_dirty(slot))
