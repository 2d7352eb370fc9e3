"""The rest of a vCPU's state, and the requests of the compiled KVM_RUN."""

from __future__ import annotations

import errno
from ctypes import sizeof

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu

from kvmfs.abi import ioctls
from kvmfs.abi import msr_index as M
from kvmfs.abi.caps import Cap
from kvmfs.abi.layout import u64
from kvmfs.abi.memory import PreFaultMemory
from kvmfs.abi.run import Run
from kvmfs.abi.vm import DeviceAttr, EnableCap
from kvmfs.kvm import service
from kvmfs.kvm import words as W
from kvmfs.kvm.vcpu import TABLE, Vcpu
from kvmfs.kvm.vm import Vm
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.calls import get_msr, set_msr
from tests.unit.kvm.fakes import BAD, BASE, PAGE, FakeClient, FakeNative

STATE_FIRST = {"KVM_GET_LAPIC", "KVM_SET_LAPIC", "KVM_SET_VAPIC_ADDR"}  # EINVAL without a local APIC


@pytest.mark.parametrize(
    "row",
    [entry.row for entry in TABLE.entries.values() if entry.row.argument.name in ("IN", "OUT", "INOUT")],
    ids=lambda row: row.name,
)
def test_bad_pointer(vcpu: Vcpu, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(vcpu, row, BAD) == (errno.EINVAL if row.name in STATE_FIRST else errno.EFAULT)


# Local APIC, TSC, signal mask


def test_tsc_of_vcpus_agree(vm: Vm, client: FakeClient) -> None:
    for number in range(2):
        client.call(vm, ioctls.KVM_CREATE_VCPU, number)
    first, second = vm.vcpus[0], vm.vcpus[1]
    assert first.tsc.offset == second.tsc.offset
    # Two writes of nearly the same value mean the same counter, once the client has written any.
    set_msr(client, first, M.MSR_IA32_TSC, 1 << 40)
    set_msr(client, second, M.MSR_IA32_TSC, (1 << 40) + 5)
    assert first.tsc.offset == second.tsc.offset
    set_msr(client, second, M.MSR_IA32_TSC, 1 << 50)
    assert first.tsc.offset != second.tsc.offset
    now = get_msr(client, second, M.MSR_IA32_TSC)
    assert now
    assert now - (1 << 50) < 1 << 20


def test_tsc_offset_attribute(vcpu: Vcpu, client: FakeClient) -> None:
    there = DeviceAttr(group=0, attr=0, addr=BASE + 512)
    client.write(BASE + 512, bytes(u64(777)))
    assert client.call(vcpu, ioctls.KVM_SET_DEVICE_ATTR, there) == 0
    client.write(BASE + 512, bytes(8))
    client.call(vcpu, ioctls.KVM_GET_DEVICE_ATTR, there)
    assert client.read(BASE + 512, 8) == bytes(u64(777))
    for row in (ioctls.KVM_HAS_DEVICE_ATTR, ioctls.KVM_GET_DEVICE_ATTR, ioctls.KVM_SET_DEVICE_ATTR):
        assert client.fails(vcpu, row, DeviceAttr(group=1)) == errno.ENXIO
        assert client.fails(vcpu, row, DeviceAttr(attr=1)) == errno.ENXIO


def test_tsc_frequency(vcpu: Vcpu, client: FakeClient) -> None:
    assert client.fails(vcpu, ioctls.KVM_SET_TSC_KHZ, 1 << 31) == errno.EINVAL
    client.call(vcpu, ioctls.KVM_SET_TSC_KHZ, 500_000)
    assert vcpu.state[S.TSC_RATIO] == 1 << 31
    client.call(vcpu, ioctls.KVM_SET_TSC_KHZ, 0)
    assert vcpu.state[S.TSC_RATIO] == 1 << 32


# KVM_PRE_FAULT_MEMORY


@pytest.mark.parametrize(
    ("gpa", "size", "flags"),
    [(0, PAGE, 1), (1, PAGE, 0), (0, PAGE + 1, 0), (0, 0, 0), ((1 << 64) - PAGE, PAGE, 0), (1 << 63, 1 << 63, 0)],
)
def test_pre_fault_refused(vcpu: Vcpu, client: FakeClient, gpa: int, size: int, flags: int) -> None:
    what = PreFaultMemory(gpa=gpa, size=size, flags=flags)
    assert client.fails(vcpu, ioctls.KVM_PRE_FAULT_MEMORY, what) == errno.EINVAL
    assert (what.gpa, what.size) == (gpa, size)


def test_pre_fault_stops_where_memory_ends(vcpu: Vcpu, client: FakeClient, native: FakeNative) -> None:
    native.present = lambda cpu, gpa: mmu.TO_HOST if gpa < 3 * PAGE else mmu.TO_MMIO
    what = PreFaultMemory(gpa=PAGE, size=4 * PAGE)
    assert client.fails(vcpu, ioctls.KVM_PRE_FAULT_MEMORY, what) == 0
    assert (what.gpa, what.size) == (3 * PAGE, 2 * PAGE)
    assert client.fails(vcpu, ioctls.KVM_PRE_FAULT_MEMORY, what) == errno.ENOENT
    assert (what.gpa, what.size) == (3 * PAGE, 2 * PAGE)


def test_pre_fault_reports_a_memory_fault(vcpu: Vcpu, client: FakeClient, native: FakeNative) -> None:
    def fault(cpu: int, gpa: int) -> int:
        state = vcpu.state
        state[S.EXIT], state[S.FAULT_ERRNO] = S.EXIT_MEMORY_FAULT, errno.EFAULT
        state[S.FAULT_GPA], state[S.FAULT_SIZE], state[S.FAULT_FLAGS] = gpa, PAGE, 8
        return mmu.TO_FAULT

    native.present = fault
    assert client.fails(vcpu, ioctls.KVM_PRE_FAULT_MEMORY, PreFaultMemory(gpa=PAGE, size=PAGE)) == errno.EFAULT
    run = vcpu.run
    assert (run.exit_reason, run.memory_fault.gpa, run.memory_fault.size, run.memory_fault.flags) == (39, PAGE, PAGE, 8)


# What KVM_RUN comes to Python for


def test_synchronized_registers(vcpu: Vcpu) -> None:
    state, run = vcpu.state, vcpu.run
    run.s.regs.regs.rbx = 0xBEEF
    run.s.regs.regs.rip = 0x4000
    run.kvm_dirty_regs = 1
    state[Cpu.NEEDS] = W.NEEDS_SYNC_IN
    assert service.serve(vcpu, FakeClient()) is None
    assert (state[S.RBX], run.kvm_dirty_regs, state[Cpu.PHASE]) == (0xBEEF, 0, W.PHASE_SYNCED)

    run.kvm_valid_regs = 7
    run.s.regs.regs.rbx = 0
    state[Cpu.NEEDS] = W.NEEDS_SYNC_OUT
    service.serve(vcpu, FakeClient())
    assert (run.s.regs.regs.rbx, run.s.regs.sregs.apic_base) == (0xBEEF, 0xFEE00900)


@pytest.mark.parametrize("dirty", [2, 4])
def test_synchronized_registers_refused(vcpu: Vcpu, dirty: int) -> None:
    run = vcpu.run
    run.s.regs.sregs.cr0 = 1 << 40
    run.s.regs.events.flags = 1 << 31
    run.kvm_dirty_regs = dirty
    vcpu.state[Cpu.NEEDS] = W.NEEDS_SYNC_IN
    service.serve(vcpu, FakeClient())
    assert vcpu.state[Cpu.PHASE] == W.PHASE_ENDING
    assert vcpu.state[Cpu.RESULT] == (1 << 64) - errno.EINVAL
    assert run.kvm_dirty_regs == dirty


@pytest.mark.parametrize(
    ("enabled", "gpa", "pages", "cpl", "result"),
    [
        (True, PAGE, 1, 0, None),
        (False, PAGE, 1, 0, -1000),
        (True, 1, 1, 0, -22),
        (True, PAGE, 0, 0, -22),
        (True, PAGE, 1 << 63, 0, None),
        (True, (1 << 64) - PAGE, (1 << 64) - 1, 0, -22),
        (True, PAGE, 1, 3, -1),
    ],
)
def test_map_gpa_range(
    vcpu: Vcpu, client: FakeClient, enabled: bool, gpa: int, pages: int, cpl: int, result: int | None
) -> None:
    if enabled:
        client.call(vcpu.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXIT_HYPERCALL, args=(1 << 12,)))
    state, run = vcpu.state, vcpu.run
    state[S.EFER], state[S.CS + S.ATTR], state[S.CPL] = 1 << 10, 0xA09B, cpl
    state[S.RAX], state[S.RBX], state[S.RCX], state[S.RDX] = 12, gpa, pages, 16
    state[S.RIP], state[S.INSN_LENGTH] = 0x1000, 3
    state[Cpu.NEEDS] = W.NEEDS_HYPERCALL
    service.serve(vcpu, FakeClient())
    if result is None:
        assert (run.exit_reason, run.hypercall.nr, tuple(run.hypercall.args[:3])) == (3, 12, (gpa, pages, 16))
        assert (state[S.RIP], state[Cpu.COMPLETION]) == (0x1000, W.COMPLETE_HYPERCALL)
    else:
        assert state[S.RAX] == result & (1 << 64) - 1
        assert state[S.RIP] == 0x1003


def test_the_run_page_is_what_the_client_maps(vcpu: Vcpu) -> None:
    import os

    vcpu.run.exit_reason = 5
    assert Run.from_buffer_copy(os.pread(vcpu.memfd, sizeof(Run), 0)).exit_reason == 5
    assert os.fstat(vcpu.memfd).st_size == vcpu.size == 3 * PAGE
