"""KVM_RUN: what it returns for, what it takes from the client and tells it."""

from __future__ import annotations

import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.vcpu import Interrupt, MpState, Sregs, VcpuEvents
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.inprocess import CODE, MMIO, PAGE, STACK, TABLES, Machine, finish, run_in_thread

HLT = "f4"
OUT80 = "e680"  # out 0x80, al
SPIN = "ebfe"  # jmp $
RDMSR, VMCALL, UD2 = "0f32", "0f01c1", "0f0b"
FLD = "d903"  # fld dword [rbx]: KVM emulates none of x87's arithmetic


# Other exits


def test_hlt_is_the_clients_without_our_apic() -> None:
    machine = Machine(HLT)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT
    assert machine.regs.rip == CODE + 1


def test_unhandled_exception_shuts_down() -> None:
    for code in (UD2, RDMSR):  # MSR 0 is P5_MC_ADDR; RCX says another
        machine = Machine(code + HLT)
        machine.set_regs(rcx=0xBAD)
        assert machine.run() == 0
        assert machine.page.exit_reason == Exit.SHUTDOWN


@pytest.mark.parametrize("restored", [False, True])
def test_a_page_fault_is_in_cr2(restored: bool) -> None:
    """Whatever the client has said before of exceptions that there are not."""
    machine = Machine("488b03")  # mov rax, [rbx]
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXCEPTION_PAYLOAD, args=(1,)))
    if restored:
        events = machine.get(ioctls.KVM_GET_VCPU_EVENTS, VcpuEvents)
        machine.call(machine.vcpu, ioctls.KVM_SET_VCPU_EVENTS, events)
    machine.set_regs(rbx=5 << 30)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.SHUTDOWN
    assert machine.get(ioctls.KVM_GET_SREGS, Sregs).cr2 == 5 << 30


def test_triple_fault_from_the_client() -> None:
    machine = Machine(HLT)
    machine.vcpu.state[Cpu.TRIPLE_FAULT] = 1
    machine.run()
    assert machine.page.exit_reason == Exit.SHUTDOWN
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


@pytest.mark.parametrize("enabled", [False, True])
def test_instruction_that_kvm_does_not_emulate(enabled: bool) -> None:
    machine = Machine(FLD + HLT)
    machine.set_regs(rbx=MMIO)
    if enabled:
        machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXIT_ON_EMULATION_FAILURE, args=(1,)))
    assert machine.run() == 0
    failure = machine.page.emulation_failure
    assert machine.page.exit_reason == Exit.INTERNAL_ERROR
    assert (failure.suberror, failure.flags) == (1, 1)
    assert 3 < failure.insn_size <= 15  # what was fetched, as in KVM
    assert bytes(failure.insn_bytes[:3]).hex() == FLD + HLT
    assert machine.regs.rip == CODE
    assert machine.vcpu.state[S.EXC_PENDING] == (not enabled)  # the client may go on with #UD, or step over it
    machine.set_regs(rip=CODE + 2)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


@pytest.mark.parametrize("enabled", [False, True])
def test_user_mode_gets_an_exception_where_kvm_cannot_emulate(enabled: bool) -> None:
    """handle_emulation_failure: the client hears of it only if it asked for that."""
    machine = Machine(FLD)
    if enabled:
        machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXIT_ON_EMULATION_FAILURE, args=(1,)))
    handler, idt, gdt, tss = 0x5000, 0x6000, 0x7000, 0x7100
    machine.put(handler, bytes.fromhex(HLT))
    machine.put(idt + 16 * S.UD, (handler | 8 << 16 | 0x8E00 << 32).to_bytes(16, "little"))
    machine.put(gdt + 8, 0x00AF9B000000FFFF.to_bytes(8, "little"))
    machine.put(tss + 4, STACK.to_bytes(8, "little"))
    for at in (0, 0x1000, 0x1008, 0x2000, 0x3000):  # everything is the user's too
        machine.put(TABLES + at, bytes([machine.at(TABLES + at, 1)[0] | 4]))
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.idt.base, sregs.idt.limit, sregs.gdt.base, sregs.gdt.limit = idt, 0xFFF, gdt, 0xF
    sregs.tr.base, sregs.tr.limit, sregs.tr.type, sregs.tr.present = tss, 0x67, 11, 1
    sregs.cs.selector, sregs.cs.dpl, sregs.ss.selector, sregs.ss.dpl = 0x1B, 3, 0x23, 3
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    machine.set_regs(rbx=MMIO)
    assert machine.run() == 0
    if enabled:
        assert (machine.page.exit_reason, machine.page.internal.suberror) == (Exit.INTERNAL_ERROR, 1)
        assert (machine.regs.rip, machine.vcpu.state[S.EXC_PENDING]) == (CODE, 0)
    else:
        assert (machine.page.exit_reason, machine.regs.rip) == (Exit.HLT, handler + 1)
        assert machine.at(machine.regs.rsp, 8) == CODE.to_bytes(8, "little")


def test_no_code_to_execute() -> None:
    machine = Machine(HLT)
    machine.set_regs(rip=MMIO)
    assert machine.run() == 0
    assert (machine.page.exit_reason, machine.page.internal.suberror) == (Exit.INTERNAL_ERROR, 1)
    assert machine.page.emulation_failure.flags == 0


def test_msrs() -> None:
    machine = Machine(RDMSR + OUT80 + "0f30" + RDMSR + HLT)
    machine.set_regs(rcx=0xCE)
    machine.run()
    assert (machine.regs.rax, machine.regs.rdx) == (1 << 31, 0)
    machine.set_regs(rcx=0xC0000081, rax=0x1234, rdx=0x5678)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT
    assert machine.vcpu.state[S.STAR] == 0x5678_0000_1234


def test_hypercall() -> None:
    machine = Machine(VMCALL + HLT)
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXIT_HYPERCALL, args=(1 << 12,)))
    machine.set_regs(rax=12, rbx=PAGE, rcx=1, rdx=16)
    machine.run()
    hypercall = machine.page.hypercall
    assert (machine.page.exit_reason, hypercall.nr, hypercall.flags) == (Exit.HYPERCALL, 12, 1)
    assert machine.regs.rip == CODE
    hypercall.ret = 77
    assert finish(machine) == -errno.EINTR
    assert (machine.regs.rax, machine.regs.rip) == (77, CODE + 3)


# Entering


@pytest.mark.parametrize(("field", "value"), [("kvm_valid_regs", 8), ("kvm_dirty_regs", 1 << 31), ("cr8", 16)])
def test_bad_input(field: str, value: int) -> None:
    machine = Machine(HLT)
    setattr(machine.page, field, value)
    assert machine.run() == -errno.EINVAL
    setattr(machine.page, field, 0)
    assert machine.run() == 0


def test_what_every_return_tells() -> None:
    machine = Machine("fb90" + OUT80 + HLT)  # sti; nop
    machine.page.cr8 = 5
    machine.page.flags = 0xFFFF
    machine.run()
    page = machine.page
    assert (page.if_flag, page.ready_for_interrupt_injection, page.flags) == (1, 1, 0)
    assert (page.cr8, page.apic_base) == (5, 0xFEE00900)


def test_interrupt_window() -> None:
    machine = Machine(OUT80 + "fb9090" + HLT)
    machine.page.request_interrupt_window = 1
    machine.run()
    assert (machine.page.exit_reason, machine.page.ready_for_interrupt_injection) == (Exit.IO, 0)
    machine.run()
    assert machine.page.exit_reason == Exit.IRQ_WINDOW_OPEN
    assert machine.page.ready_for_interrupt_injection == 1
    machine.page.request_interrupt_window = 0
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_injected_interrupt_without_a_gate_shuts_down() -> None:
    machine = Machine("fb90" + HLT)
    machine.call(machine.vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=0x40))
    machine.run()
    assert machine.page.exit_reason == Exit.SHUTDOWN


def test_synchronized_registers() -> None:
    machine = Machine(OUT80 + OUT80 + HLT)
    machine.page.kvm_valid_regs = 7
    machine.run()
    assert machine.page.s.regs.regs.rip == CODE
    machine.page.s.regs.regs.rax = 0x55
    machine.page.kvm_dirty_regs = 1
    machine.run()
    assert machine.pio[0] == 0x55
    assert machine.page.s.regs.regs.rip == CODE + 2
    assert machine.page.kvm_dirty_regs == 0


def test_a_running_guest_is_interrupted() -> None:
    machine = Machine(SPIN)
    thread, results = run_in_thread(machine)
    while not machine.vcpu.state[S.MODE]:
        pass
    machine.vm.native.request(machine.vcpu.context, machine.vcpu.stop)
    thread.join()
    assert results == [-errno.EINTR]
    assert machine.page.exit_reason == Exit.INTR
    assert machine.regs.rip == CODE


@pytest.mark.parametrize("state", [1, 3])
def test_a_vcpu_that_waits_is_interrupted(state: int) -> None:
    machine = Machine(HLT, irqchip=True)
    machine.call(machine.vcpu, ioctls.KVM_SET_MP_STATE, MpState(mp_state=state))
    thread, results = run_in_thread(machine)
    machine.vm.native.request(machine.vcpu.context, machine.vcpu.stop)
    thread.join()
    assert results == [-errno.EINTR]
    assert machine.page.exit_reason == Exit.INTR
    assert machine.get(ioctls.KVM_GET_MP_STATE, MpState).mp_state == state


def test_hlt_waits_in_our_apic() -> None:
    machine = Machine(HLT, irqchip=True)
    thread, results = run_in_thread(machine)
    while machine.vcpu.state[Cpu.MP_STATE] != 3:
        pass
    machine.vm.native.request(machine.vcpu.context, machine.vcpu.stop)
    thread.join()
    assert results == [-errno.EINTR]
    assert machine.regs.rip == CODE + 1


def test_sipi_starts_a_vcpu() -> None:
    machine = Machine(HLT, irqchip=True)
    machine.vcpu.lapic.sipi_vector = 0x12
    machine.call(machine.vcpu, ioctls.KVM_SET_MP_STATE, MpState(mp_state=4))
    machine.page.immediate_exit = 1
    assert machine.run() == -errno.EINTR
    assert (machine.regs.rip, machine.vcpu.state[S.CS + S.BASE]) == (0, 0x12000)
    assert machine.vcpu.state[Cpu.MP_STATE] == 0
