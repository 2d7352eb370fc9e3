"""Hypercalls and MONITOR/MWAIT, under the quirks that change them; paravirtual features by CPUID."""

from __future__ import annotations

import ctypes
import errno
import time

import pytest

from kvmfs.abi import ioctls, para
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.exits import Exit
from kvmfs.abi.vcpu import MpState
from kvmfs.abi.vm import (
    KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_DISABLE_EXITS_MWAIT,
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
    KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT,
    KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    EnableCap,
)
from kvmfs.kvm.caps import check_extension
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.msrs import write_msr
from tests.unit.kvm.inprocess import CODE, DATA, Machine, run_in_thread

VMCALL, VMMCALL, MONITOR, MWAIT, HLT = "0f01c1", "0f01d9", "0f01c8", "0f01c9", "f4"
MISC_ENABLE, MWAIT_BIT = 0x1A0, 1 << 18


def natives() -> tuple[str, str]:
    """(the hypercall of this machine's vendor, the other)"""
    return (VMMCALL, VMCALL) if host_cpu().is_amd else (VMCALL, VMMCALL)


def disable(machine: Machine, quirks: int) -> None:
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.DISABLE_QUIRKS2, args=(quirks,)))


def answer(machine: Machine, number: int, rbx: int = 0, rcx: int = 0) -> int:
    """What the guest finds in RAX."""
    machine.set_regs(rax=number, rbx=rbx, rcx=rcx, rip=CODE)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT
    value = machine.regs.rax
    return value - (1 << 64) if value >> 63 else value


def test_the_other_vendors_instruction_is_overwritten() -> None:
    native, other = natives()
    machine = Machine(other + HLT)
    assert answer(machine, para.KVM_HC_VAPIC_POLL_IRQ) == 0
    assert machine.at(CODE, 3).hex() == native
    assert machine.regs.rip == CODE + 4


def test_without_the_quirk_it_is_undefined() -> None:
    machine = Machine(natives()[1] + HLT)
    disable(machine, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    machine.run()
    assert machine.page.exit_reason == Exit.SHUTDOWN  # #UD without an IDT
    assert machine.at(CODE, 3).hex() == natives()[1]


@pytest.mark.parametrize(
    ("number", "result"),
    [
        (para.KVM_HC_VAPIC_POLL_IRQ, 0),
        (para.KVM_HC_SCHED_YIELD, 0),
        (para.KVM_HC_MAP_GPA_RANGE, -para.KVM_ENOSYS),
        (para.KVM_HC_MMU_OP, -para.KVM_ENOSYS),
        (77, -para.KVM_ENOSYS),
    ],
)
def test_answers(number: int, result: int) -> None:
    assert answer(Machine(natives()[0] + HLT), number) == result


def test_clock_pairing() -> None:
    machine = Machine(natives()[0] + HLT)
    before, tsc_before = time.time_ns(), machine.vcpu.tsc.now()
    assert answer(machine, para.KVM_HC_CLOCK_PAIRING, DATA) == 0
    pair = para.ClockPairing.from_buffer_copy(machine.at(DATA, 64))
    assert before <= pair.sec * 1_000_000_000 + pair.nsec <= time.time_ns()
    assert tsc_before < pair.tsc < machine.vcpu.tsc.now()


@pytest.mark.parametrize(("gpa", "clock", "result"), [(DATA, 1, para.KVM_EOPNOTSUPP), (1 << 40, 0, para.KVM_EFAULT)])
def test_clock_pairing_that_cannot_be(gpa: int, clock: int, result: int) -> None:
    assert answer(Machine(natives()[0] + HLT), para.KVM_HC_CLOCK_PAIRING, gpa, clock) == -result


def test_features_that_cpuid_lacks_can_be_enforced() -> None:
    machine = Machine(natives()[0] + HLT)
    machine.call(machine.vcpu, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.ENFORCE_PV_FEATURE_CPUID, args=(1,)))
    has_it = bool(machine.vcpu.cpuid.pv_features >> para.KVM_FEATURE_PV_SCHED_YIELD & 1)
    assert answer(machine, para.KVM_HC_SCHED_YIELD) == (0 if has_it else -para.KVM_ENOSYS)
    machine.call(machine.vcpu, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.ENFORCE_PV_FEATURE_CPUID, args=(0,)))
    assert answer(machine, para.KVM_HC_SCHED_YIELD) == 0


@pytest.mark.parametrize(
    ("quirks", "enabled", "works"),
    [
        (0, 0, True),
        (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS, 0, False),
        (KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT, 0, True),
        (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT, 0, False),
        (KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT, MWAIT_BIT, True),
    ],
)
def test_mwait(quirks: int, enabled: int, works: bool) -> None:
    """It does nothing; #UD if CPUID has no MWAIT, which IA32_MISC_ENABLE governs without its quirk."""
    machine = Machine(MONITOR + MWAIT + HLT)
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.DISABLE_QUIRKS, args=(quirks,)))
    write_msr(machine.vcpu, MISC_ENABLE, enabled, True)
    machine.run()
    assert machine.page.exit_reason == (Exit.HLT if works else Exit.SHUTDOWN)


def test_monitor_has_no_extensions() -> None:
    machine = Machine(MONITOR + HLT)
    machine.set_regs(rcx=1)
    machine.run()
    assert machine.page.exit_reason == Exit.SHUTDOWN  # #GP


# KVM_CAP_X86_DISABLE_EXITS


def disable_exits(machine: Machine, exits: int) -> None:
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X86_DISABLE_EXITS, args=(exits,)))


def test_exits_that_can_be_disabled() -> None:
    machine = Machine(HLT)
    assert not check_extension(Cap.X86_DISABLE_EXITS) & KVM_X86_DISABLE_EXITS_MWAIT
    disable_exits(machine, KVM_X86_DISABLE_EXITS_MWAIT)  # valid, and ignored as where the host has no MWAIT
    with pytest.raises(OSError, match="Invalid"):
        disable_exits(machine, 16)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_hlt_waits_in_the_guest() -> None:
    """Until something comes: here the client's request for an interrupt window."""
    machine = Machine("fb90" + HLT + "e680")  # sti; nop; hlt; out
    disable_exits(machine, KVM_X86_DISABLE_EXITS_HLT)
    thread, results = run_in_thread(machine)
    machine.vm.native.request(machine.vcpu.context, machine.vcpu.stop)
    thread.join()
    assert results == [-errno.EINTR]
    while machine.regs.rip != CODE + 3:  # it was stopped on its way there
        thread, results = run_in_thread(machine)
        machine.vm.native.request(machine.vcpu.context, machine.vcpu.stop)
        thread.join()
    assert machine.get(ioctls.KVM_GET_MP_STATE, MpState).mp_state == 0
    machine.page.request_interrupt_window = 1
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.IRQ_WINDOW_OPEN
    machine.page.request_interrupt_window = 0
    machine.run()
    assert machine.page.exit_reason == Exit.IO


def test_unhalt_is_not_offered_to_a_guest_that_halts_itself() -> None:
    machine = Machine(HLT)
    entries = [CpuidEntry2.from_buffer_copy(entry) for entry in machine.vcpu.cpuid.entries]
    leaf = next(entry for entry in entries if entry.function == para.KVM_CPUID_FEATURES)
    leaf.eax |= 1 << para.KVM_FEATURE_PV_UNHALT

    def show() -> int:
        data = bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries))
        table = ctypes.create_string_buffer(data)
        machine.vcpu.ioctl(machine.client, ioctls.KVM_SET_CPUID2.number, ctypes.addressof(table))
        return int(machine.vcpu.cpuid.pv_features >> para.KVM_FEATURE_PV_UNHALT & 1)

    assert show() == 1
    disable_exits(machine, KVM_X86_DISABLE_EXITS_HLT)
    assert show() == 0
