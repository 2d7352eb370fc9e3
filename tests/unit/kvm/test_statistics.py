"""Binary statistics that count what the processor and KVM_RUN do."""

from __future__ import annotations

import os

from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.kvm.stat_table import HALT_POLL_HIST_COUNT, VCPU_STAT, VCPU_STATS
from kvmfs.kvm.stats import vcpu_data
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.inprocess import DATA, MMIO, PAGE, Machine, run_in_thread

LOAD, STORE, HLT = "488b03", "488903", "f4"  # mov rax, [rbx]; mov [rbx], rax


def words(machine: Machine) -> list[int]:
    data = vcpu_data(machine.vcpu)
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def statistics(machine: Machine) -> dict[str, int]:
    found = words(machine)
    return {stat.name: found[stat.offset // 8] for stat in VCPU_STATS if stat.size == 1}


def histogram(machine: Machine, name: str) -> list[int]:
    first = VCPU_STAT[name] // 8
    return words(machine)[first : first + HALT_POLL_HIST_COUNT]


def test_faults_by_what_came_of_them() -> None:
    machine = Machine(LOAD + STORE + LOAD + "48c7c3" + "00000040" + LOAD + HLT)  # mov rbx, MMIO
    machine.set_regs(rbx=DATA)
    machine.run()
    before = statistics(machine)
    assert machine.run() == 0
    after = statistics(machine)
    assert before["pf_fixed"] >= 4  # code, page tables, data for reading and for writing
    assert (before["pf_emulate"], before["pf_taken"]) == (1, before["pf_fixed"] + 1)
    assert after["mmio_exits"] == before["mmio_exits"] == 1


def test_translations_that_had_to_be_dropped() -> None:
    machine = Machine(HLT)
    machine.run()
    before = statistics(machine)["tlb_flush"]
    machine.set_slot(1, MMIO, machine.client.memory(PAGE), PAGE)
    machine.run()
    assert statistics(machine)["tlb_flush"] > before


def wait_until_halted(machine: Machine, times: int) -> None:
    state = machine.vcpu.state
    while not (state[S.HALTS] == times and state[Cpu.WAITING]):
        os.sched_yield()


def test_how_long_a_vcpu_was_halted() -> None:
    machine = Machine(HLT * 2, irqchip=True)
    thread, _ = run_in_thread(machine)
    wait_until_halted(machine, 1)
    assert statistics(machine)["blocking"] == 1
    machine.vcpu.state[Cpu.UNHALTED] = 1  # as KVM_HC_KICK_CPU does
    machine.vm.native.request(machine.vcpu.context, S.REQ_KICK)
    wait_until_halted(machine, 2)
    found = statistics(machine)
    assert (found["halt_wakeup"], found["halt_exits"]) == (1, 2)
    assert found["halt_wait_ns"] > 0
    (bucket,) = (index for index, count in enumerate(histogram(machine, "halt_wait_hist")) if count)
    assert bucket == min(found["halt_wait_ns"].bit_length(), HALT_POLL_HIST_COUNT - 1)
    machine.vm.native.request(machine.vcpu.context, S.REQ_STOP)
    thread.join()
    found = statistics(machine)
    assert (found["halt_wakeup"], found["blocking"]) == (1, 0)  # a signal is no wake-up
    assert sum(histogram(machine, "halt_wait_hist")) == 2


def test_windows_for_the_clients_interrupts() -> None:
    machine = Machine("fb9090" + HLT)  # sti; nop; nop
    machine.page.request_interrupt_window = 1
    machine.run()
    assert statistics(machine)["request_irq_exits"] + statistics(machine)["irq_window_exits"] >= 1


def test_nmis() -> None:
    machine = Machine("90" * 4 + HLT)
    gate, handler = DATA + 0x800, DATA + 0x400
    machine.put(handler, bytes.fromhex("f4"))
    low = handler & 0xFFFF | 8 << 16 | 0x8E00 << 32
    machine.put(gate + 2 * 16, low.to_bytes(8, "little") + (0).to_bytes(8, "little"))
    gdt = DATA + 0xC00
    machine.put(gdt + 8, (0x00AF_9B00_0000_FFFF).to_bytes(8, "little"))
    sregs = machine._long_mode()
    sregs.idt.base, sregs.idt.limit, sregs.gdt.base, sregs.gdt.limit = gate, 0xFFF, gdt, 0xF
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    machine.call(machine.vcpu, ioctls.KVM_NMI)
    machine.run()
    assert machine.regs.rip == handler + 1
    assert statistics(machine)["nmi_injections"] == 1
