"""KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR."""

from __future__ import annotations

import ctypes
import errno

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls, msrs
from kvmfs.abi import msr_index as M
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.msrs import MsrFilter
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm import msr_filter
from kvmfs.kvm.msr_filter import READ, WRITE, Range
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import BAD, BASE, FakeClient
from tests.unit.kvm.inprocess import CODE, Machine, finish

RDMSR, WRMSR, HLT = "0f32", "0f30", "f4"
INVALID, UNKNOWN, FILTERED = (
    msrs.KVM_MSR_EXIT_REASON_INVAL, msrs.KVM_MSR_EXIT_REASON_UNKNOWN, msrs.KVM_MSR_EXIT_REASON_FILTER,
)  # fmt: skip
NOWHERE = 0xBAD


def filter_of(*ranges: tuple[int, int, int, int], deny: bool = False) -> MsrFilter:
    """Ranges: flags, nmsrs, base, address of the bitmap."""
    arg = MsrFilter(flags=int(deny))
    for entry, given in zip(arg.ranges, ranges, strict=False):
        entry.flags, entry.nmsrs, entry.base, entry.bitmap = given
    return arg


@pytest.mark.parametrize(
    ("ranges", "flags", "error"),
    [
        ((), 0, 0),
        ((), 1, errno.EINVAL),  # denies everything without saying so
        ((), 2, errno.EINVAL),
        (((1, 64, 0, BASE),), 1, 0),
        (((0, 64, 0, BASE),), 0, errno.EINVAL),
        (((4, 64, 0, BASE),), 0, errno.EINVAL),
        (((3, 0x600 * 8, 0, BASE),), 0, 0),
        (((3, 0x600 * 8 + 1, 0, BASE),), 0, errno.EINVAL),
        (((3, 64, 0, BAD),), 0, errno.EFAULT),
        (((0, 0, 0, BAD),), 0, 0),  # not looked at
    ],
)
def test_what_is_a_filter(vm: Vm, client: FakeClient, ranges: tuple, flags: int, error: int) -> None:
    arg = filter_of(*ranges)
    arg.flags = flags
    before = vm.msr_filter
    at = client.put(arg, BASE + 0x8000)
    try:
        result = vm.ioctl(client, ioctls.KVM_X86_SET_MSR_FILTER.number, at)
    except OSError as refused:
        result = refused.errno
    assert result == error
    assert (vm.msr_filter is before) == bool(error)


def test_first_range_decides() -> None:
    """The bitmap of the first that is about this kind of access; then the default; never x2APIC."""
    denied = msr_filter.MsrFilter(
        False, (Range(range(0x10, 0x12), READ, b"\x02"), Range(range(0x10, 0x20), READ | WRITE, b"\xff\x00"))
    )
    assert {number for number in range(0x10, 0x22) if denied.allows(number, READ)} == set(range(0x11, 0x18))
    assert [denied.allows(number, WRITE) for number in (0x10, 0x18)] == [True, False]
    assert denied.allows(0x830, WRITE)
    assert msr_filter.MsrFilter().is_empty
    assert not denied.is_empty


def test_a_range_that_wraps_is_empty(vm: Vm, client: FakeClient) -> None:
    at = client.put(filter_of((3, 64, 0xFFFF_FFF0, BASE)), BASE + 0x8000)
    vm.ioctl(client, ioctls.KVM_X86_SET_MSR_FILTER.number, at)
    assert vm.msr_filter.allows(0xFFFF_FFFF, READ)


def test_processor_asks_while_there_is_a_filter(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    for arg, exits in ((filter_of((1, 1, 0, BASE)), 1), (filter_of(), 0), (filter_of((1, 1, 0, BASE)), 1)):
        vm.ioctl(client, ioctls.KVM_X86_SET_MSR_FILTER.number, client.put(arg, BASE + 0x8000))
        assert vm.vcpus[0].state[S.MSR_EXITS] == exits
    client.call(vm, ioctls.KVM_CREATE_VCPU, 1)
    assert vm.vcpus[1].state[S.MSR_EXITS] == 1


def deny(machine: Machine, number: int) -> None:
    bitmap = ctypes.c_uint64(0)
    arg = filter_of((READ | WRITE, 1, number, ctypes.addressof(bitmap)))
    machine.call(machine.vm, ioctls.KVM_X86_SET_MSR_FILTER, arg)


def want(machine: Machine, reasons: int) -> None:
    machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.X86_USER_SPACE_MSR, args=(reasons,)))


@pytest.mark.parametrize(
    ("number", "value", "reason"),
    [(M.MSR_GS_BASE, 5, FILTERED), (NOWHERE, 5, UNKNOWN), (M.MSR_EFER, 1 << 63, INVALID)],
)
def test_write_that_is_refused(number: int, value: int, reason: int) -> None:
    machine = Machine(WRMSR + HLT)
    if reason == FILTERED:
        deny(machine, number)
    want(machine, reason)
    machine.set_regs(rcx=number, rax=value & 0xFFFF_FFFF, rdx=value >> 32)
    assert machine.run() == 0
    msr = machine.page.msr
    assert (machine.page.exit_reason, msr.reason, msr.index, msr.data) == (Exit.X86_WRMSR, reason, number, value)
    assert (msr.error, bytes(msr.pad), machine.regs.rip) == (0, bytes(7), CODE)
    assert finish(machine) == -errno.EINTR
    assert machine.regs.rip == CODE + 2


@pytest.mark.parametrize("reason", [FILTERED, UNKNOWN])
def test_client_answers_a_read(reason: int) -> None:
    machine = Machine(RDMSR + HLT)
    number = M.MSR_FS_BASE if reason == FILTERED else NOWHERE
    deny(machine, M.MSR_FS_BASE)
    want(machine, reason)
    machine.set_regs(rcx=number)
    assert machine.run() == 0
    assert (machine.page.exit_reason, machine.page.msr.data) == (Exit.X86_RDMSR, 0)
    machine.page.msr.data = 0x1122_3344_5566_7788
    machine.run()
    assert machine.page.exit_reason == Exit.HLT
    assert (machine.regs.rax, machine.regs.rdx) == (0x5566_7788, 0x1122_3344)


def test_client_refuses() -> None:
    machine = Machine(RDMSR + HLT)
    want(machine, UNKNOWN)
    machine.set_regs(rcx=NOWHERE, rax=1, rdx=2)
    machine.run()
    machine.page.msr.error = 1
    assert finish(machine) == -errno.EINTR
    state = machine.vcpu.state
    assert (state[S.EXC_PENDING], state[S.EXC_VECTOR], state[S.EXC_HAS_ERROR]) == (1, 13, 1)
    assert (machine.regs.rip, machine.regs.rax, machine.regs.rdx) == (CODE, 1, 2)


def test_reasons_that_nobody_asked_for() -> None:
    """#GP, here a triple fault."""
    machine = Machine(RDMSR + HLT)
    want(machine, INVALID | FILTERED)
    machine.set_regs(rcx=NOWHERE)
    machine.run()
    assert machine.page.exit_reason == Exit.SHUTDOWN


def test_unknown_reasons() -> None:
    with pytest.raises(OSError, match="Invalid"):
        want(Machine(HLT), 8)
