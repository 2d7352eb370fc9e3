"""KVM_SET_GUEST_DEBUG: the client as the guest's debugger."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import debug, ioctls
from kvmfs.abi.debug import BP_VECTOR, DB_VECTOR, GuestDebug
from kvmfs.abi.ioctls import Fd
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

VALID_MASK: Final = (
    debug.KVM_GUESTDBG_USE_SW_BP
    | debug.KVM_GUESTDBG_USE_HW_BP
    | debug.KVM_GUESTDBG_SINGLESTEP
    | debug.KVM_GUESTDBG_INJECT_BP
    | debug.KVM_GUESTDBG_INJECT_DB
    | debug.KVM_GUESTDBG_BLOCKIRQ
)
"""KVM_CAP_SET_GUEST_DEBUG2. KVM ignores other bits of `control`."""

_DEBUGGER: Final = (
    (debug.KVM_GUESTDBG_USE_HW_BP, S.DEBUG_HARDWARE),
    (debug.KVM_GUESTDBG_USE_SW_BP, S.DEBUG_SOFTWARE),
    (debug.KVM_GUESTDBG_BLOCKIRQ, S.DEBUG_BLOCK_IRQS),
)


@table.ioctl(ioctls.KVM_SET_GUEST_DEBUG)
def set_guest_debug(vcpu: Vcpu, caller: Caller, arg: GuestDebug) -> None:
    """kvm_arch_vcpu_ioctl_set_guest_debug. OSError(EBUSY): another exception is pending."""
    state = vcpu.state
    if arg.control & (debug.KVM_GUESTDBG_INJECT_DB | debug.KVM_GUESTDBG_INJECT_BP):
        if state[S.EXC_PENDING] or state[Cpu.TRIPLE_FAULT]:
            fail(errno.EBUSY)
        vcpu.queue_exception(DB_VECTOR if arg.control & debug.KVM_GUESTDBG_INJECT_DB else BP_VECTOR)
    control = arg.control if arg.control & debug.KVM_GUESTDBG_ENABLE else 0
    state[S.SINGLE_STEP] = bool(control & debug.KVM_GUESTDBG_SINGLESTEP)
    state[S.DEBUGGER] = sum(wanted for bit, wanted in _DEBUGGER if control & bit)
    state[S.DEBUG_DUE] = 0
    if control & debug.KVM_GUESTDBG_USE_HW_BP:
        for index in range(4):
            state[S.BREAK_ADDRESS + 8 * index] = arg.arch.debugreg[index]
        state[S.BREAK_CONTROL] = arg.arch.debugreg[7]
    vcpu.arm_breakpoints()
