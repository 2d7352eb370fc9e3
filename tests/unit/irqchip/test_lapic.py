"""The local APIC: what is delivered, to whom, in which order."""

from __future__ import annotations

import errno

import pytest

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.vcpu import Interrupt, Sregs
from kvmfs.abi.vm import EnableCap
from tests.unit.irqchip.machine import APIC, WAIT, Guest

RUNNABLE, INIT_RECEIVED = 0, 2


def write(offset: int, value: int) -> str:
    return f"mov ebx, {APIC + offset:#x}\nmov dword ptr [rbx], {value:#x}\n"


def read(offset: int) -> str:
    return f"mov ebx, {APIC + offset:#x}\nmov eax, [rbx]\nout 0x77, al\nshr eax, 16\nout 0x77, al\n"


def icr(low: int, dest: int = 0) -> str:
    return write(A.APIC_ICR2, dest << 24) + write(A.APIC_ICR, low)


# Messages


def test_a_message_wakes_a_halted_processor() -> None:
    guest = Guest()
    assert guest.message(APIC, 0x41) == 1
    assert guest.next_vector() == 0x41
    assert guest.cpus[0].register(A.APIC_ISR + 0x20) == 2  # 0x41, in service until the EOI that comes next
    assert guest.message(APIC, 0x52) == 1
    assert guest.next_vector() == 0x52
    assert guest.cpus[0].register(A.APIC_ISR + 0x20) == 0x40000


def test_the_highest_vector_comes_first() -> None:
    guest = Guest()
    for vector in (0x41, 0xE1, 0x80):
        guest.message(APIC, vector)
    assert [guest.next_vector() for _ in range(3)] == [0xE1, 0x80, 0x41]


def test_a_disabled_apic_takes_nothing() -> None:
    guest = Guest()
    guest.cpus[0].set_register(A.APIC_SPIV, 0xFF)
    assert guest.message(APIC, 0x41) == 0
    assert guest.cpus[0].requested() == []


def test_the_task_priority_holds_back() -> None:
    lower = "mov rax, 4\nmov cr8, rax\n" + WAIT
    guest = Guest("mov rax, 6\nmov cr8, rax\nsti\nnop\nout 0x77, al\n" + lower)
    guest.message(APIC, 0x55)
    assert guest.next_vector() == 6  # AL: the guest's own mark, with the interrupt still waiting
    assert guest.cpus[0].requested() == [0x55]
    assert (guest.cpus[0].register(A.APIC_TASKPRI), guest.cpus[0].register(A.APIC_PROCPRI)) == (0x60, 0x60)
    assert guest.next_vector() == 0x55


def test_tpr_and_cr8_are_one() -> None:
    guest = Guest(write(A.APIC_TASKPRI, 0x37) + "mov rax, cr8\nout 0x77, al\n")
    assert guest.next_vector() == 3
    assert guest.cpus[0].register(A.APIC_TASKPRI) == 0x37


def test_an_interrupt_waits_for_if() -> None:
    guest = Guest("out 0x77, al\nsti\nnop\nhlt")
    guest.set_regs(rax=1)
    guest.message(APIC, 0x41)
    assert guest.next_vector() == 1
    assert guest.next_vector() == 0x41


# Inter-processor interrupts


@pytest.mark.parametrize(
    ("low", "dest", "takers"),
    [
        (0x41, 1, [1]),
        (0x41, 0xFF, [0, 1, 2]),
        (0x41 | A.APIC_DEST_SELF, 0, [0]),
        (0x41 | A.APIC_DEST_ALLINC, 0, [0, 1, 2]),
        (0x41 | A.APIC_DEST_ALLBUT, 0, [1, 2]),
        (0x41 | A.APIC_DEST_LOGICAL, 0b110, [1, 2]),
        (0x41 | A.APIC_DEST_LOGICAL | A.APIC_DM_LOWEST, 0b111, [0x41 % 3]),
        (0x42 | A.APIC_DEST_LOGICAL | A.APIC_DM_LOWEST, 0b110, [1]),
        (0x41, 9, []),
    ],
)
def test_destinations(low: int, dest: int, takers: list[int]) -> None:
    guest = Guest(icr(low, dest) + "cli\nout 0x77, al\n", cpus=3)
    for number, cpu in enumerate(guest.cpus):
        cpu.set_register(A.APIC_LDR, 1 << number << 24)
    guest.next_vector()
    assert [number for number, cpu in enumerate(guest.cpus) if cpu.requested()] == takers


@pytest.mark.parametrize(("dest", "takers"), [(0x11, [0]), (0x13, [0, 1]), (0x21, [2]), (0xFF, [0, 1, 2]), (0x41, [])])
def test_logical_clusters(dest: int, takers: list[int]) -> None:
    guest = Guest(icr(0x41 | A.APIC_DEST_LOGICAL, dest) + "out 0x77, al\n", cpus=3)
    for cpu, logical in zip(guest.cpus, (0x11, 0x12, 0x21), strict=True):
        cpu.set_register(A.APIC_DFR, A.APIC_DFR_CLUSTER)
        cpu.set_register(A.APIC_LDR, logical << 24)
    guest.next_vector()
    assert [number for number, cpu in enumerate(guest.cpus) if cpu.requested()] == takers


def test_an_nmi_comes_whatever_if_says() -> None:
    guest = Guest("cli\nhlt", cpus=2)
    guest.cpus[1].start(icr(A.APIC_DM_NMI, 0) + "out 0x77, al\n")
    seen: list[int] = []
    thread = guest.cpus[0].in_thread(lambda: seen.append(guest.next_vector()))
    guest.cpus[1].next_vector()
    thread.join()
    assert seen == [2]


def test_the_clients_nmi_wakes_a_halted_processor() -> None:
    guest = Guest("cli\nhlt")
    guest.call(guest.vcpu, ioctls.KVM_NMI)
    assert guest.next_vector() == 2


def test_init_and_sipi_start_a_processor() -> None:
    text = icr(A.APIC_DM_INIT | A.APIC_INT_ASSERT, 1) + icr(A.APIC_DM_STARTUP | 0x12, 1) + "out 0x77, al\n"
    guest = Guest(text, cpus=2)
    guest.next_vector()
    other = guest.cpus[1]
    assert other.mp_state == RUNNABLE
    guest.vcpu = other.vcpu
    assert guest.regs.rip == 0
    sregs = guest.get(ioctls.KVM_GET_SREGS, Sregs)
    assert (sregs.cs.selector, sregs.cs.base) == (0x1200, 0x12000)


def test_a_processor_waits_for_sipi() -> None:
    guest = Guest(icr(A.APIC_DM_INIT | A.APIC_INT_ASSERT, 1) + "out 0x77, al\n", cpus=2)
    guest.next_vector()
    assert guest.cpus[1].mp_state == INIT_RECEIVED
    results: list[int] = []
    thread = guest.cpus[1].in_thread(lambda: results.append(guest.cpus[1].run()))
    guest.cpus[1].stop()
    thread.join()
    assert results == [-errno.EINTR]


# x2APIC


def to_x2apic(guest: Guest) -> None:
    for cpu in guest.cpus:
        assert cpu.set_msr(0x1B, cpu.get_msr(0x1B) | 0x400) == 1


def wrmsr(number: int, low: int, high: int = 0) -> str:
    return f"mov ecx, {number:#x}\nmov eax, {low:#x}\nmov edx, {high:#x}\nwrmsr\n"


def test_x2apic_registers() -> None:
    guest = Guest(
        "mov ecx, 0x802\nrdmsr\nout 0x77, al\nmov ecx, 0x80d\nrdmsr\nout 0x77, al\nshr eax, 16\nout 0x77, al", cpus=20
    )
    to_x2apic(guest)
    cpu = guest.cpus[18]
    assert [cpu.next_vector() for _ in range(3)] == [18, 4, 1]  # logical: cluster 1, processor 2
    assert cpu.set_msr(0x80E, 0) == 0  # DFR is not there


def test_x2apic_ipis() -> None:
    guest = Guest(wrmsr(0x830, 0x41, 2) + wrmsr(0x83F, 0x52) + "cli\nout 0x77, al", cpus=3)
    to_x2apic(guest)
    guest.next_vector()
    assert [cpu.requested() for cpu in guest.cpus] == [[0x52], [], [0x41]]


@pytest.mark.parametrize(
    ("low", "dest", "takers"),
    [
        (0x41, 0b110, [1, 2]),
        (0x41, 1 << 16 | 0b101, [16, 18]),
        (0x41, 2 << 16 | 1, []),
        (0x41, 0xFFFFFFFF, list(range(20))),
        (0x41 | A.APIC_DM_LOWEST, 1 << 16 | 0b11, [16 + 0x41 % 2]),
    ],
)
def test_x2apic_clusters(low: int, dest: int, takers: list[int]) -> None:
    guest = Guest(wrmsr(0x830, low | A.APIC_DEST_LOGICAL, dest) + "cli\nout 0x77, al", cpus=20)
    to_x2apic(guest)
    guest.next_vector()
    assert [number for number, cpu in enumerate(guest.cpus) if cpu.requested()] == takers


def test_an_x2apic_register_that_is_not_there_faults() -> None:
    guest = Guest(wrmsr(0x80E, 0))
    to_x2apic(guest)
    assert guest.next_vector() == 13


def test_the_page_has_nothing_in_x2apic_mode() -> None:
    guest = Guest(read(A.APIC_LVR))
    to_x2apic(guest)
    assert [guest.next_vector() for _ in range(2)] == [0xFF, 0xFF]


def test_moving_the_page() -> None:
    guest = Guest(
        f"mov ebx, {APIC + 0x1000 + A.APIC_LVR:#x}\nmov eax, [rbx]\nout 0x77, al\nmov ebx, {APIC:#x}\nmov eax, [rbx]"
    )
    assert guest.cpus[0].set_msr(0x1B, APIC + 0x1000 | 0x900) == 1
    assert guest.next_vector() == 0x14
    guest.run()
    assert (guest.page.exit_reason, guest.page.mmio.phys_addr) == (Exit.MMIO, APIC)


# With the client's PIC and I/O APIC


def test_split_level_interrupts_are_ended_by_the_client() -> None:
    guest = Guest(split=24)
    guest.route_message(3, APIC, 0x8041)
    guest.line(3, 1)
    assert guest.next_vector() == 0x41
    assert guest.run() == 0
    assert (guest.page.exit_reason, guest.page.eoi.vector) == (Exit.IOAPIC_EOI, 0x41)


def test_split_edges_are_nobodys_to_end() -> None:
    guest = Guest(split=24)
    guest.route_message(3, APIC, 0x41)
    guest.line(3, 1)
    assert guest.next_vector() == 0x41
    guest.message(APIC, 0x52)
    assert guest.next_vector() == 0x52


def test_split_external_interrupts() -> None:
    guest = Guest(split=24)
    guest.cpus[0].set_register(A.APIC_LVT0, A.APIC_DM_EXTINT)
    guest.call(guest.vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=0x33))
    with pytest.raises(OSError, match="exists"):
        guest.call(guest.vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=0x34))
    assert guest.next_vector() == 0x33
    guest.page.request_interrupt_window = 1
    guest.run()
    assert guest.page.exit_reason == Exit.IRQ_WINDOW_OPEN


# KVM_CAP_X2APIC_API


def test_the_broadcast_quirk() -> None:
    for quirk, takers in ((0, 2), (2, 0)):
        guest = Guest(cpus=2)
        guest.call(guest.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X2APIC_API, args=(quirk,)))
        to_x2apic(guest)
        assert guest.message(APIC | 0xFF << 12, 0x41) == takers


def test_long_destination_ids() -> None:
    guest = Guest(cpus=1)
    guest.call(guest.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X2APIC_API, args=(1,)))
    guest.call(guest.vm, ioctls.KVM_CREATE_VCPU, 300)
    far = guest.cpu_of(guest.vm.vcpus[300])
    far.set_register(A.APIC_SPIV, 0x1FF)
    assert guest.message(APIC | 300 >> 8 << 40 | (300 & 0xFF) << 12, 0x41) == 1
    assert far.requested() == [0x41]
    with pytest.raises(OSError, match="Invalid"):
        guest.message(APIC | 1 << 32, 0x41)
    with pytest.raises(OSError, match="Invalid"):
        guest.call(guest.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X2APIC_API, args=(4,)))
