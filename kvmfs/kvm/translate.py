"""KVM_TRANSLATE."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.vcpu import Translation
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)


@table.ioctl(ioctls.KVM_TRANSLATE)
def translate(vcpu: Vcpu, caller: Caller, arg: Translation) -> None:
    """kvm_arch_vcpu_ioctl_translate: writeable and usermode say nothing, there as here."""
    linear = arg.linear_address
    gpa = vcpu.vm.native.translate_debug(vcpu.context, linear - (1 << 64) if linear >> 63 else linear)
    arg.physical_address = gpa & (1 << 64) - 1
    arg.valid = gpa != -1
    arg.writeable, arg.usermode = 1, 0
