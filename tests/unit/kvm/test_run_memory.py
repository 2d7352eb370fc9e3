"""KVM_RUN and memory: faults that the client resolves, and slots that change under a running guest."""

from __future__ import annotations

import ctypes
import errno
import json
from pathlib import Path

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import CreateGuestMemfd, MemoryAttributes, PreFaultMemory
from kvmfs.abi.vcpu import Sregs, Translation
from tests.unit.kvm.inprocess import CODE, DATA, MEMORY, MMIO, PAGE, Machine, run_in_thread

HLT = "f4"
OUT80 = "e680"  # out 0x80, al
LOAD, STORE = "488b03", "488903"  # mov rax, [rbx]; mov [rbx], rax


def test_private_page_of_a_slot_without_guest_memfd() -> None:
    machine = Machine(LOAD + HLT, kind=1)
    machine.set_regs(rbx=DATA + 5)
    private = MemoryAttributes(address=DATA, size=PAGE, attributes=8)
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, private)
    assert machine.run() == -errno.EFAULT
    fault = machine.page.memory_fault
    assert machine.page.exit_reason == Exit.MEMORY_FAULT
    assert (fault.gpa, fault.size, fault.flags) == (DATA, PAGE, 8)
    private.attributes = 0
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, private)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT


def test_faults_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("KVMFS_EVENT_LOG", str(log))
    machine = Machine(LOAD + HLT, kind=1)
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, MemoryAttributes(address=DATA, size=PAGE, attributes=8))
    machine.set_regs(rbx=DATA)
    assert machine.run() == machine.run() == -errno.EFAULT
    faults = [event for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "memory_fault"]
    found = [(fault["vcpu"], fault["gpa"], fault["size"], fault["flags"]) for fault in faults]
    assert found == [(0, DATA, PAGE, 8)] * 2


def test_private_and_shared_side_of_a_page() -> None:
    machine = Machine(LOAD + OUT80 + LOAD + HLT, kind=1)
    gmem = machine.call(machine.vm, ioctls.KVM_CREATE_GUEST_MEMFD, CreateGuestMemfd(size=PAGE))
    shared = machine.client.memory(PAGE)
    ctypes.memmove(shared, b"shared..", 8)
    machine.set_slot(1, MMIO, shared, PAGE, flags=4, guest_memfd=gmem)
    machine.set_regs(rbx=MMIO)
    machine.run()
    assert machine.regs.rax == int.from_bytes(b"shared..", "little")
    private = MemoryAttributes(address=MMIO, size=PAGE, attributes=8)
    machine.call(machine.vm, ioctls.KVM_SET_MEMORY_ATTRIBUTES, private)
    machine.run()
    assert (machine.page.exit_reason, machine.regs.rax) == (Exit.HLT, 0)


def test_client_memory_that_is_not_there() -> None:
    machine = Machine(LOAD + HLT)
    machine.set_slot(1, MMIO, 0x10000, PAGE)  # below mmap_min_addr: nothing can be mapped there
    machine.set_regs(rbx=MMIO)
    assert machine.run() == -errno.EFAULT
    assert machine.page.exit_reason == Exit.UNKNOWN


def test_memory_that_cannot_be_mapped_is_copied() -> None:
    machine = Machine(LOAD + "48ffc0" + STORE + HLT, shared=False)  # inc rax; code and page tables are remote too
    machine.put(DATA, (41).to_bytes(8, "little"))
    machine.set_regs(rbx=DATA)
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT
    assert machine.at(DATA, 8) == (42).to_bytes(8, "little")


def test_pre_fault() -> None:
    machine = Machine(HLT)
    what = PreFaultMemory(gpa=MEMORY - 2 * PAGE, size=4 * PAGE)
    machine.call(machine.vcpu, ioctls.KVM_PRE_FAULT_MEMORY, what)
    assert (what.gpa, what.size) == (MEMORY, 2 * PAGE)


def test_translate() -> None:
    machine = Machine(HLT)
    for linear, gpa in ((DATA + 5, DATA + 5), (MMIO, MMIO), (1 << 40, None)):
        what = Translation(linear_address=linear)
        machine.call(machine.vcpu, ioctls.KVM_TRANSLATE, what)
        assert (what.valid, what.physical_address if what.valid else None) == (gpa is not None, gpa)


def test_a_slot_is_gone_when_its_deletion_returns() -> None:
    machine = Machine(LOAD + "ebfb")  # the load, again and again
    memory = machine.client.memory(PAGE)
    machine.set_slot(1, MMIO, memory, PAGE)
    machine.set_regs(rbx=MMIO)
    thread, _ = run_in_thread(machine)
    while not machine.vcpu.state[S.MODE]:
        pass
    machine.set_slot(1, 0, 0, 0)
    thread.join()
    assert (machine.page.exit_reason, machine.page.mmio.phys_addr) == (Exit.MMIO, MMIO)


@pytest.mark.parametrize(
    ("code", "emulated"),
    [
        ("d900", False),  # fld dword [rax]
        ("0f5800", False),  # addps xmm0, [rax]
        ("f30f1100", False),  # movss [rax], xmm0
        ("0fae18", False),  # stmxcsr [rax]
        ("f30fb800", False),  # popcnt eax, [rax]
        ("0f7f00", True),  # movq [rax], mm0
        ("660fe700", True),  # movntdq [rax], xmm0
        ("0fc300", True),  # movnti [rax], eax
        ("d938", True),  # fnstcw [rax]
        ("0f1000", True),  # movups xmm0, [rax]
        ("0300", True),  # add eax, [rax]
    ],
)
def test_mmio_is_for_instructions_that_kvm_emulates(code: str, emulated: bool) -> None:
    machine = Machine(code + "f4")
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.cr4 |= S.CR4_OSFXSR
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    machine.set_regs(rax=MMIO)
    assert machine.run() == 0
    if emulated:
        assert machine.page.exit_reason == Exit.MMIO
    else:
        failure = machine.page.emulation_failure
        assert (machine.page.exit_reason, failure.suberror, failure.flags) == (Exit.INTERNAL_ERROR, 1, 1)
        assert bytes(failure.insn_bytes[: len(code) // 2]).hex() == code
        assert machine.regs.rip == CODE
