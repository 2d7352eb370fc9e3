"""KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import debug as D
from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.debug import Debugregs, GuestDebug
from kvmfs.abi.exits import Exit
from kvmfs.abi.vcpu import VcpuEvents
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.caps import check_extension
from tests.unit.kvm.inprocess import CODE, DATA, Machine, finish

HLT, NOP, INT3 = "f4", "90", "cc"
OUT80 = "e680"
RDMSR = "0f32"
STEP = D.KVM_GUESTDBG_ENABLE | D.KVM_GUESTDBG_SINGLESTEP
HARDWARE = D.KVM_GUESTDBG_ENABLE | D.KVM_GUESTDBG_USE_HW_BP
BS = 0xFFFF4FF0


def debug(machine: Machine, control: int, dr: tuple[int, ...] = (), dr7: int = 0x400) -> None:
    arg = GuestDebug(control=control)
    for index, value in enumerate(dr):
        arg.arch.debugreg[index] = value
    arg.arch.debugreg[7] = dr7
    machine.call(machine.vcpu, ioctls.KVM_SET_GUEST_DEBUG, arg)


def exit_of(machine: Machine) -> tuple[int, int, int]:
    """(vector, pc less CODE, dr6)"""
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.DEBUG
    arch = machine.page.debug.arch
    return arch.exception, arch.pc - CODE, arch.dr6


def test_what_is_offered() -> None:
    assert check_extension(Cap.SET_GUEST_DEBUG) == 1
    assert check_extension(Cap.SET_GUEST_DEBUG2) == 0x1F0002  # KVM_GUESTDBG_VALID_MASK
    assert check_extension(Cap.X86_ROBUST_SINGLESTEP) == 1


def test_single_step_through_what_python_completes() -> None:
    """One exit after each, be it executed, handed to the client or carried out by us."""
    machine = Machine(NOP + OUT80 + RDMSR + HLT)
    machine.set_regs(rcx=0xCE)
    debug(machine, STEP)
    assert exit_of(machine) == (1, 1, BS)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.IO
    assert exit_of(machine) == (1, 3, BS)
    assert exit_of(machine) == (1, 5, BS)
    assert machine.regs.rax == 1 << 31
    machine.run()  # without our APIC, HLT hides it
    assert machine.page.exit_reason == Exit.HLT


def test_completion_reports_the_step_even_if_the_client_wants_out() -> None:
    machine = Machine(OUT80 + HLT)
    debug(machine, STEP)
    machine.run()
    assert finish(machine) == 0
    assert (machine.page.exit_reason, machine.page.debug.arch.pc) == (Exit.DEBUG, CODE + 2)
    assert finish(machine) == -errno.EINTR


def test_tf_is_the_debuggers_while_it_steps() -> None:
    machine = Machine(NOP + HLT)
    machine.set_regs(rflags=S.TF | 2)
    debug(machine, STEP)
    assert machine.regs.rflags == 2


def test_software_breakpoint() -> None:
    machine = Machine(NOP + INT3 + HLT)
    debug(machine, D.KVM_GUESTDBG_ENABLE | D.KVM_GUESTDBG_USE_SW_BP)
    assert exit_of(machine)[:2] == (3, 1)
    assert exit_of(machine)[:2] == (3, 1)
    machine.set_regs(rip=CODE + 2)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_without_enable_nothing_is_watched() -> None:
    machine = Machine(NOP + HLT)
    debug(machine, D.KVM_GUESTDBG_SINGLESTEP | D.KVM_GUESTDBG_USE_HW_BP, (CODE,), 0x402)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_hardware_breakpoints() -> None:
    machine = Machine(NOP + "4889 0425 0890 0000".replace(" ", "") + HLT)  # mov [0x9008], rax
    debug(machine, HARDWARE, (CODE + 1, DATA + 12), 0x400 | 2 | 8 | 0xD << 20)
    assert exit_of(machine) == (1, 1, 0xFFFF0FF1)
    assert machine.page.debug.arch.dr7 == 0x400 | 2 | 8 | 0xD << 20
    debug(machine, HARDWARE, (0, DATA + 12), 0x400 | 8 | 0xD << 20)
    assert exit_of(machine) == (1, 9, 0xFFFF0FF2)
    debug(machine, 0)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_the_guests_registers_stay_its_own() -> None:
    machine = Machine("0f21c0" + HLT)  # mov rax, dr0
    mine = Debugregs(db=(0x1234, 0, 0, 0), dr6=0xFFFF0FF0, dr7=0x400)
    machine.call(machine.vcpu, ioctls.KVM_SET_DEBUGREGS, mine)
    debug(machine, HARDWARE, (CODE + 3,), 0x402)
    assert exit_of(machine) == (1, 3, 0xFFFF0FF1)
    assert machine.regs.rax == 0x1234
    assert bytes(machine.get(ioctls.KVM_GET_DEBUGREGS, Debugregs)) == bytes(mine)


@pytest.mark.parametrize(("control", "vector"), [(D.KVM_GUESTDBG_INJECT_DB, 1), (D.KVM_GUESTDBG_INJECT_BP, 3)])
def test_injection(control: int, vector: int) -> None:
    machine = Machine(HLT)
    debug(machine, control)
    assert (machine.vcpu.state[S.EXC_PENDING], machine.vcpu.state[S.EXC_VECTOR]) == (1, vector)
    with pytest.raises(OSError, match="busy"):
        debug(machine, control)


def test_guests_own_trap_is_an_event() -> None:
    """What single-steps an instruction that the client completes is pending when it looks."""
    machine = Machine(OUT80 + HLT)
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXCEPTION_PAYLOAD, args=(1,)))
    machine.set_regs(rflags=S.TF | 2)
    machine.run()
    assert finish(machine) == -errno.EINTR
    events = machine.get(ioctls.KVM_GET_VCPU_EVENTS, VcpuEvents)
    assert (events.exception.pending, events.exception.nr) == (1, 1)
    assert (events.exception_has_payload, events.exception_payload) == (1, 1 << 14)


def test_shadow_from_the_client_ends() -> None:
    """KVM_SET_VCPU_EVENTS with an interrupt shadow: it lasts one instruction."""
    machine = Machine(NOP + HLT)
    events = machine.get(ioctls.KVM_GET_VCPU_EVENTS, VcpuEvents)
    events.interrupt.shadow = 2
    machine.call(machine.vcpu, ioctls.KVM_SET_VCPU_EVENTS, events)
    machine.run()
    assert machine.get(ioctls.KVM_GET_VCPU_EVENTS, VcpuEvents).interrupt.shadow == 0
