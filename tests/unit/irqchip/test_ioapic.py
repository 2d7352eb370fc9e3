"""The I/O APIC: edges, levels, masks, EOI."""

from __future__ import annotations

import pytest

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from tests.unit.irqchip.machine import APIC, IOAPIC, WAIT, Guest

LEVEL, MASKED, REMOTE_IRR, LOGICAL = 1 << 15, 1 << 16, 1 << 14, 1 << 11
PIN = 20  # of the I/O APIC alone


def write(register: int, value: int) -> str:
    return f"mov ebx, {IOAPIC:#x}\nmov dword ptr [rbx], {register:#x}\nmov dword ptr [rbx+16], {value:#x}\n"


def test_an_edge() -> None:
    guest = Guest()
    guest.redirect(PIN, 0x41)
    assert [guest.line(PIN, 1), guest.line(PIN, 1), guest.line(PIN, 0)] == [1, 0, 1]  # the second is no edge
    assert guest.next_vector() == 0x41
    assert guest.line(PIN, 1) == 1
    assert guest.next_vector() == 0x41


def test_a_level_comes_again_until_it_is_down() -> None:
    guest = Guest()
    guest.redirect(PIN, 0x41 | LEVEL)
    guest.line(PIN, 1)
    for _ in range(3):
        assert guest.next_vector() == 0x41
        assert guest.redirection(PIN) & REMOTE_IRR
    guest.line(PIN, 0)
    guest.message(APIC, 0x30)
    assert guest.next_vector() == 0x30  # after the EOI, which was the last
    assert not guest.redirection(PIN) & REMOTE_IRR


@pytest.mark.parametrize(("entry", "expected"), [(0x41, []), (0x42 | LEVEL, [0x42])])
def test_a_masked_edge_is_lost_but_a_level_is_not(entry: int, expected: list[int]) -> None:
    guest = Guest(write(0x10 + 2 * PIN, entry) + "out 0x77, al\n" + WAIT)
    guest.redirect(PIN, entry | MASKED)
    assert guest.line(PIN, 1) == -1
    guest.next_vector()
    assert guest.cpus[0].requested() == expected


def test_logical_destinations() -> None:
    guest = Guest(cpus=3)
    for number, cpu in enumerate(guest.cpus):
        cpu.set_register(A.APIC_LDR, 1 << number << 24)
    guest.redirect(PIN, 0x41 | LOGICAL | 0b101 << 56)
    assert guest.line(PIN, 1) == 2
    assert [cpu.requested() for cpu in guest.cpus] == [[0x41], [], [0x41]]


def test_the_lowest_priority_is_one_of_those_meant() -> None:
    guest = Guest(cpus=3)
    for number, cpu in enumerate(guest.cpus):
        cpu.set_register(A.APIC_LDR, 1 << number << 24)
    guest.redirect(PIN, 0x41 | A.APIC_DM_LOWEST | LOGICAL | 0b110 << 56)
    assert guest.line(PIN, 1) == 1
    assert sorted(cpu.requested() for cpu in guest.cpus[1:]) == [[], [0x41]]
    assert guest.cpus[0].requested() == []


def test_a_pin_may_be_an_nmi() -> None:
    guest = Guest("cli\nhlt", cpus=2)
    guest.redirect(PIN, A.APIC_DM_NMI | 1 << 56)
    assert guest.line(PIN, 1) == 1
    assert guest.cpus[1].next_vector() == 2


def test_registers() -> None:
    reads = "".join(
        f"mov dword ptr [rbx], {register}\nmov eax, [rbx+16]\nout 0x77, al\nshr eax, 16\nout 0x77, al\n"
        for register in (1, 0x10 + 2 * PIN, 0x50)
    )
    guest = Guest(write(0x10 + 2 * PIN, 0x41 | REMOTE_IRR | LEVEL) + reads)
    seen = [guest.next_vector() for _ in range(6)]
    assert seen == [0x11, 23, 0x41, 0, 0xFF, 0xFF]
    assert guest.redirection(PIN) == 0x41 | LEVEL  # remote IRR is not software's to set


def test_becoming_an_edge_clears_remote_irr() -> None:
    guest = Guest()
    guest.redirect(PIN, 0x41 | LEVEL)
    guest.line(PIN, 1)
    assert guest.redirection(PIN) & REMOTE_IRR
    guest.cpus[0].start(write(0x10 + 2 * PIN, 0x41) + "out 0x77, al\n")
    guest.next_vector()
    assert not guest.redirection(PIN) & REMOTE_IRR


def test_rtc_interrupts_that_nobody_has_ended_are_coalesced() -> None:
    guest = Guest()
    guest.redirect(8, 0x48)
    assert guest.line(8, 1) == 2  # the PIC has it, too, and keeps it
    guest.line(8, 0)
    assert guest.line(8, 1) == 0  # the first waits for its EOI
    assert guest.next_vector() == 0x48
    guest.message(APIC, 0x31)
    assert guest.next_vector() == 0x31
    guest.line(8, 0)
    assert guest.line(8, 1) == 1


def test_the_ioapic_is_not_there_with_a_split_irqchip() -> None:
    guest = Guest(f"mov ebx, {IOAPIC:#x}\nmov eax, [rbx]", split=24)
    guest.run()
    assert guest.page.mmio.phys_addr == IOAPIC


@pytest.mark.parametrize("cap", [Cap.IRQ_ROUTING, Cap.SPLIT_IRQCHIP, Cap.IRQ_INJECT_STATUS])
def test_capabilities(cap: Cap) -> None:
    guest = Guest()
    assert guest.call(guest.vm, ioctls.KVM_CHECK_EXTENSION, int(cap)) > 0
