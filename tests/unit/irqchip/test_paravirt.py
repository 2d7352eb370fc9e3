"""Paravirtual interrupts: IPIs and kicks by hypercall, EOIs without an exit."""

from __future__ import annotations

import pytest

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls, para
from kvmfs.abi.caps import Cap
from kvmfs.abi.vm import EnableCap
from tests.unit.irqchip.machine import APIC, STUB, STUBS, WAIT, Guest

BYTE = 0x9000  # in guest memory


def hypercall(number: int, *arguments: int) -> str:
    values = zip(("rax", "rbx", "rcx", "rdx", "rsi"), (number, *arguments), strict=False)
    return "".join(f"mov {name}, {value:#x}\n" for name, value in values) + "vmcall\n"


@pytest.mark.parametrize(
    ("low", "high", "first", "takers"),
    [(0b101, 0, 0, [0, 2]), (0b11, 0, 1, [1, 2]), (0, 1, 0, []), (0b10, 0, 2, [])],
)
def test_send_ipi(low: int, high: int, first: int, takers: list[int]) -> None:
    guest = Guest(hypercall(para.KVM_HC_SEND_IPI, low, high, first, 0x61) + "out 0x77, al\n", cpus=3)
    assert guest.next_vector() == len(takers)  # its result
    assert [number for number, cpu in enumerate(guest.cpus) if cpu.requested()] == takers


def test_send_ipi_with_a_shorthand() -> None:
    guest = Guest(hypercall(para.KVM_HC_SEND_IPI, 1, 0, 0, A.APIC_DEST_SELF) + "out 0x77, al\n")
    assert guest.next_vector() == -para.KVM_EINVAL & 0xFF


def test_a_feature_that_is_hidden() -> None:
    guest = Guest(hypercall(para.KVM_HC_SEND_IPI, 1, 0, 0, 0x61) + "out 0x77, al\n")
    guest.vcpu.cpuid.pv_leaf.eax = 0
    guest.call(guest.vcpu, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.ENFORCE_PV_FEATURE_CPUID, args=(1,)))
    assert guest.next_vector() == -para.KVM_ENOSYS & 0xFF


def test_a_kick_ends_a_halt() -> None:
    guest = Guest("cli\nhlt\nout 0x77, al\n", cpus=2)
    guest.cpus[1].start(hypercall(para.KVM_HC_KICK_CPU, 0, 0) + "out 0x77, al\n")
    guest.set_regs(rax=9)
    seen: list[int] = []
    thread = guest.cpus[0].in_thread(lambda: seen.append(guest.next_vector()))
    assert guest.cpus[1].next_vector() == 0
    thread.join()
    assert seen == [9]


def pv_eoi_guest() -> Guest:
    """Whose handler for 0x41 clears the bit instead of writing the register, if it is set, and says what it was."""
    guest = Guest(WAIT)
    handler = f"push rax\nxor eax, eax\nlock btr dword ptr [{BYTE:#x}], 0\nsetc al\nout 0x77, al\npop rax\niretq\n"
    guest.place(STUBS + STUB * 0x41, handler)
    assert guest.cpus[0].set_msr(para.MSR_KVM_PV_EOI_EN, BYTE | para.KVM_MSR_ENABLED) == 1
    return guest


def test_pv_eoi() -> None:
    guest = pv_eoi_guest()
    for _ in range(3):
        guest.message(APIC, 0x41)
        assert guest.next_vector() == 1  # the guest was let
        guest.finish()
        assert guest.cpus[0].register(A.APIC_ISR + 0x20) == 0  # and that was the EOI


def test_no_pv_eoi_with_another_interrupt_waiting() -> None:
    guest = pv_eoi_guest()
    guest.message(APIC, 0x41)
    guest.message(APIC, 0x31)
    assert guest.next_vector() == 0
    guest.finish()
    assert guest.cpus[0].register(A.APIC_ISR + 0x20) == 2


def test_no_pv_eoi_for_a_level() -> None:
    guest = pv_eoi_guest()
    guest.redirect(20, 0x41 | 1 << 15)
    guest.line(20, 1)
    assert guest.next_vector() == 0


def test_pv_eoi_msr() -> None:
    guest = Guest()
    cpu = guest.cpus[0]
    assert cpu.set_msr(para.MSR_KVM_PV_EOI_EN, BYTE | 2) == 0
    assert cpu.set_msr(para.MSR_KVM_PV_EOI_EN, 1 << 40 | 1) == 0
    assert cpu.set_msr(para.MSR_KVM_PV_EOI_EN, BYTE | 1) == 1
    assert cpu.get_msr(para.MSR_KVM_PV_EOI_EN) == BYTE | 1
