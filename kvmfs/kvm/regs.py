"""General registers, segments, control and debug registers (arch/x86/kvm/regs.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi.debug import DB_VECTOR, PF_VECTOR, Debugregs
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.vcpu import KVM_MP_STATE_RUNNABLE, KVM_NR_INTERRUPTS, KVM_SREGS2_FLAGS_PDPTRS_VALID, Regs, Sregs, Sregs2
from kvmfs.jit import state as S
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.cpu_state import GENERAL, SEGMENTS
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.words import Cpu, Vm

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu

table: Table[Vcpu] = Table(Fd.VCPU)

CR0_RESERVED: Final = ~(
    S.CR0_PE | S.CR0_MP | S.CR0_EM | S.CR0_TS | S.CR0_ET | S.CR0_NE | S.CR0_WP | S.CR0_AM | S.CR0_NW | S.CR0_CD
    | S.CR0_PG
)  # fmt: skip
CR8_RESERVED: Final = ~0xF
CR3_PCID_MASK: Final = 0xFFF
DR6_ACTIVE_LOW: Final = 0xFFFF0FF0
DR7_FIXED_1: Final = 0x400
DR6_RTM: Final = 1 << 16
DR6_FIXED_1: Final = 0xFFFE0FF0
DR_TRAP_BITS: Final = 0xF


def get_regs(vcpu: Vcpu) -> Regs:
    """__get_regs."""
    state = vcpu.state
    rflags = state.rflags
    if vcpu.single_stepping:
        rflags &= ~S.TF
    return Regs(rip=state[S.RIP], rflags=rflags, **{name: state[at] for name, at in GENERAL})


def set_regs(vcpu: Vcpu, regs: Regs) -> None:
    """__set_regs."""
    state = vcpu.state
    for name, at in GENERAL:
        state[at] = getattr(regs, name)
    state[S.RIP] = regs.rip
    state.rflags = regs.rflags
    state[S.EXC_PENDING], state[S.EXC_PAYLOAD_USE] = 0, S.PAYLOAD_BY_VECTOR
    state.derive()


def deliver_payload(vcpu: Vcpu) -> None:
    """Without KVM_CAP_EXCEPTION_PAYLOAD, a pending exception's CR2 or DR6 is shown as soon as anyone looks
    (kvm_handle_exception_payload_quirk)."""
    state = vcpu.state
    if vcpu.vm.block[Vm.EXCEPTION_PAYLOAD] or not (state[S.EXC_PENDING] and vcpu.has_payload):
        return
    payload = state[S.EXC_PAYLOAD]
    if state[S.EXC_VECTOR] == DB_VECTOR:
        dr6 = state[S.DR6] & ~DR_TRAP_BITS | DR6_RTM
        dr6 = dr6 & ~(payload & DR6_ACTIVE_LOW) | payload & ~DR6_ACTIVE_LOW
        state[S.DR6] = dr6 & ~(1 << 12) | DR6_FIXED_1
    elif state[S.EXC_VECTOR] == PF_VECTOR:
        state[S.CR2] = payload
    state[S.EXC_PAYLOAD_USE], state[S.EXC_PAYLOAD] = S.PAYLOAD_DONE, 0


def _get_common(vcpu: Vcpu, sregs: Sregs | Sregs2) -> None:
    state = vcpu.state
    deliver_payload(vcpu)
    for name, at in SEGMENTS:
        setattr(sregs, name, state.get_segment(at))
    sregs.idt.base, sregs.idt.limit = state[S.IDTR_BASE], state[S.IDTR_LIMIT]
    sregs.gdt.base, sregs.gdt.limit = state[S.GDTR_BASE], state[S.GDTR_LIMIT]
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4 = state[S.CR0], state[S.CR2], state[S.CR3], state[S.CR4]
    sregs.cr8, sregs.efer, sregs.apic_base = state[S.CR8], state[S.EFER], state[S.APIC_BASE]


def get_sregs(vcpu: Vcpu) -> Sregs:
    """__get_sregs."""
    sregs = Sregs()
    _get_common(vcpu, sregs)
    if vcpu.state[S.INTR_INJECTED] and not vcpu.state[S.INTR_SOFT]:
        vector = vcpu.state[S.INTR_VECTOR]
        sregs.interrupt_bitmap[vector // 64] = 1 << vector % 64
    return sregs


def is_valid_cr0(cr0: int) -> bool:
    """kvm_is_valid_cr0."""
    return not (
        cr0 >> 32
        or (cr0 & S.CR0_NW and not cr0 & S.CR0_CD)
        or (cr0 & S.CR0_PG and not cr0 & S.CR0_PE)
    )  # fmt: skip


def is_valid_sregs(vcpu: Vcpu, sregs: Sregs | Sregs2) -> bool:
    """kvm_is_valid_sregs."""
    if sregs.efer & B.EFER_LME and sregs.cr0 & S.CR0_PG:
        if not sregs.cr4 & S.CR4_PAE or not sregs.efer & B.EFER_LMA:
            return False
        if not vcpu.is_legal_gpa(sregs.cr3):
            return False
    elif sregs.efer & B.EFER_LMA or sregs.cs.l:
        return False
    return vcpu.is_valid_cr4(sregs.cr4) and is_valid_cr0(sregs.cr0) and vcpu.is_valid_efer(sregs.efer)


def _set_common(vcpu: Vcpu, sregs: Sregs | Sregs2, pdptrs: tuple[int, ...] | None = None) -> None:
    """`pdptrs`: the PDPTE registers; None: they are where CR3 points to."""
    state = vcpu.state
    if not is_valid_sregs(vcpu, sregs) or not vcpu.set_apic_base(sregs.apic_base, host=True):
        fail(errno.EINVAL)
    state[S.IDTR_BASE], state[S.IDTR_LIMIT] = sregs.idt.base, sregs.idt.limit
    state[S.GDTR_BASE], state[S.GDTR_LIMIT] = sregs.gdt.base, sregs.gdt.limit
    state[S.CR2], state[S.CR3] = sregs.cr2, sregs.cr3
    state[S.EFER] = sregs.efer
    state[S.CR0] = sregs.cr0 | S.CR0_ET
    state[S.CR4] = sregs.cr4
    if pdptrs is not None:
        for index, entry in enumerate(pdptrs):
            state[S.PDPTE + 8 * index] = entry
    elif state.is_pae_paging:
        vcpu.reload_pdptrs()
    for name, at in SEGMENTS:
        state.set_segment(at, getattr(sregs, name))
    vcpu.set_cr8(sregs.cr8)
    # Old clients do not wake the boot processor on reset.
    at_reset_vector = state[S.RIP] == 0xFFF0 and sregs.cs.selector == 0xF000 and sregs.cs.base == 0xFFFF0000
    if state[S.APIC_BASE] & B.MSR_IA32_APICBASE_BSP and at_reset_vector and not state[S.CR0] & S.CR0_PE:
        state[Cpu.MP_STATE] = KVM_MP_STATE_RUNNABLE
    vcpu.update_cpuid_runtime()
    vcpu.flush_translations()
    state.derive()


def set_sregs(vcpu: Vcpu, sregs: Sregs) -> None:
    """__set_sregs. OSError(EINVAL)."""
    _set_common(vcpu, sregs)
    bitmap = int.from_bytes(bytes(sregs.interrupt_bitmap), "little")
    vector = (bitmap & -bitmap).bit_length() - 1
    if 0 <= vector < KVM_NR_INTERRUPTS:
        vcpu.queue_interrupt(vector)


@table.ioctl(ioctls.KVM_GET_REGS)
def _get_regs(vcpu: Vcpu, caller: Caller, arg: int) -> Regs:
    return get_regs(vcpu)


@table.ioctl(ioctls.KVM_SET_REGS)
def _set_regs(vcpu: Vcpu, caller: Caller, arg: Regs) -> None:
    set_regs(vcpu, arg)


@table.ioctl(ioctls.KVM_GET_SREGS)
def _get_sregs(vcpu: Vcpu, caller: Caller, arg: int) -> Sregs:
    return get_sregs(vcpu)


@table.ioctl(ioctls.KVM_SET_SREGS)
def _set_sregs(vcpu: Vcpu, caller: Caller, arg: Sregs) -> None:
    set_sregs(vcpu, arg)


@table.ioctl(ioctls.KVM_GET_SREGS2)
def _get_sregs2(vcpu: Vcpu, caller: Caller, arg: int) -> Sregs2:
    sregs = Sregs2()
    _get_common(vcpu, sregs)
    if vcpu.state.is_pae_paging:
        for index in range(4):
            sregs.pdptrs[index] = vcpu.state[S.PDPTE + 8 * index]
        sregs.flags |= KVM_SREGS2_FLAGS_PDPTRS_VALID
    return sregs


@table.ioctl(ioctls.KVM_SET_SREGS2)
def _set_sregs2(vcpu: Vcpu, caller: Caller, arg: Sregs2) -> None:
    pae = arg.cr0 & S.CR0_PG and arg.cr4 & S.CR4_PAE and not arg.efer & B.EFER_LMA
    if arg.flags & ~KVM_SREGS2_FLAGS_PDPTRS_VALID or (arg.flags and not pae):
        fail(errno.EINVAL)
    _set_common(vcpu, arg, tuple(arg.pdptrs) if arg.flags else None)


@table.ioctl(ioctls.KVM_GET_DEBUGREGS)
def _get_debugregs(vcpu: Vcpu, caller: Caller, arg: int) -> Debugregs:
    deliver_payload(vcpu)
    state = vcpu.state
    return Debugregs(db=tuple(state[S.DR + 8 * index] for index in range(4)), dr6=state[S.DR6], dr7=state[S.DR7])


@table.ioctl(ioctls.KVM_SET_DEBUGREGS)
def _set_debugregs(vcpu: Vcpu, caller: Caller, arg: Debugregs) -> None:
    if arg.flags or arg.dr6 >> 32 or arg.dr7 >> 32:
        fail(errno.EINVAL)
    state = vcpu.state
    for index in range(4):
        state[S.DR + 8 * index] = arg.db[index]
    state[S.DR6], state[S.DR7] = arg.dr6, arg.dr7
    vcpu.arm_breakpoints()
