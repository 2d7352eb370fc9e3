"""KVM_PRE_FAULT_MEMORY (kvm_vcpu_pre_fault_memory, kvm_tdp_map_page)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.memory import PreFaultMemory
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu
from kvmfs.jit.mmu.layout import EHWPOISON
from kvmfs.kvm import service
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail, read_struct

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

WRAP: Final = 1 << 64


def fault_in(vcpu: Vcpu, caller: Caller, gpa: int) -> int:
    """Make one page present, as a read by the guest would: 0 or an errno."""
    if not vcpu.is_legal_gpa(gpa):
        return errno.ENOENT
    kind = vcpu.vm.native.prefault(vcpu.context, gpa)
    if kind == mmu.TO_MMIO:
        return errno.ENOENT
    if kind != mmu.TO_FAULT:
        return 0  # present, or remote: then there is nothing to map
    if vcpu.state[S.EXIT] == S.EXIT_MEMORY_FAULT:
        _report(vcpu)
    elif vcpu.state[S.FAULT_ERRNO] == EHWPOISON:
        return -service.poisoned(vcpu, caller)
    return vcpu.state[S.FAULT_ERRNO]


def _report(vcpu: Vcpu) -> None:
    """kvm_mmu_prepare_memory_fault_exit fills struct kvm_run here too."""
    state, run = vcpu.state, vcpu.run
    run.exit_reason = Exit.MEMORY_FAULT
    run.memory_fault.flags = state[S.FAULT_FLAGS]
    run.memory_fault.gpa, run.memory_fault.size = state[S.FAULT_GPA], state[S.FAULT_SIZE]


@table.ioctl(ioctls.KVM_PRE_FAULT_MEMORY, raw=True)
def pre_fault_memory(vcpu: Vcpu, caller: Caller, arg: int) -> None:
    """The range is written back with what is left of it, whatever the result."""
    what = read_struct(caller, arg, PreFaultMemory)
    error = _walk(vcpu, caller, what)
    caller.write(arg, bytes(what))
    if error:
        fail(error)


def _walk(vcpu: Vcpu, caller: Caller, what: PreFaultMemory) -> int:
    if what.flags or what.gpa % PAGE_SIZE or what.size % PAGE_SIZE or not what.gpa < what.gpa + what.size < WRAP:
        return errno.EINVAL
    full, error = what.size, 0
    while what.size:
        error = fault_in(vcpu, caller, what.gpa)
        if error:
            break
        what.size -= PAGE_SIZE
        what.gpa += PAGE_SIZE
    return error if what.size == full else 0  # success if it was at least a page
