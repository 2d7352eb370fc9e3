"""Events, MSRs, CPUID, FPU, local APIC, TSC: the rest of a vCPU's state."""

from __future__ import annotations

import errno
import struct
from ctypes import sizeof
from typing import Any

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu

from kvmfs.abi import ioctls, vcpu
from kvmfs.abi import msr_index as M
from kvmfs.abi.apic import LapicState
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.debug import X86Mce
from kvmfs.abi.fpu import Fpu, Xcr, Xcrs
from kvmfs.abi.layout import u64
from kvmfs.abi.memory import PreFaultMemory
from kvmfs.abi.msrs import MsrEntry, Msrs
from kvmfs.abi.run import Run
from kvmfs.abi.vcpu import Interrupt, MpState, VcpuEvents
from kvmfs.abi.vm import DeviceAttr, EnableCap
from kvmfs.kvm import fpu, service
from kvmfs.kvm import words as W
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.vcpu import TABLE, Vcpu
from kvmfs.kvm.vm import Vm
from kvmfs.kvm.words import Cpu
from tests.unit.kvm.fakes import BAD, BASE, PAGE, FakeClient, FakeNative

GET_EVENTS, SET_EVENTS = ioctls.KVM_GET_VCPU_EVENTS, ioctls.KVM_SET_VCPU_EVENTS
STATE_FIRST = {"KVM_GET_LAPIC", "KVM_SET_LAPIC"}  # EINVAL without a local APIC


def get(client: FakeClient, node: Vcpu, row: ioctls.Ioctl, kind: Any) -> Any:
    value = kind()
    client.call(node, row, value)
    return value


def enable(client: FakeClient, vm: Vm, cap: Cap) -> None:
    client.call(vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=cap, args=(1,)))


@pytest.mark.parametrize(
    "row",
    [entry.row for entry in TABLE.entries.values() if entry.row.argument.name in ("IN", "OUT", "INOUT")],
    ids=lambda row: row.name,
)
def test_bad_pointer(vcpu: Vcpu, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(vcpu, row, BAD) == (errno.EINVAL if row.name in STATE_FIRST else errno.EFAULT)


# Events


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"flags": 1 << 6}, errno.EINVAL),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_PAYLOAD}, errno.EINVAL),  # not enabled
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_TRIPLE_FAULT}, errno.EINVAL),
        ({"exception.injected": 1, "exception.nr": 32}, errno.EINVAL),
        ({"exception.injected": 1, "exception.nr": 2}, errno.EINVAL),  # an NMI is no exception
        ({"exception.pending": 1, "exception.nr": 255}, 0),  # ignored without the payload capability
        ({"exception.injected": 1, "exception.nr": 31}, 0),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SMM, "smi.smm": 1}, errno.EINVAL),  # there is no SMM
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SMM}, 0),
        ({"flags": vcpu.KVM_VCPUEVENT_VALID_SHADOW, "interrupt.shadow": 3}, 0),
    ],
)
def test_set_events(vcpu: Vcpu, client: FakeClient, fields: dict[str, int], error: int) -> None:
    events = VcpuEvents()
    for name, value in fields.items():
        *path, last = name.split(".")
        setattr(getattr(events, path[0]) if path else events, last, value)
    assert client.fails(vcpu, SET_EVENTS, events) == error


def test_events_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    enable(client, vcpu.vm, Cap.EXCEPTION_PAYLOAD)
    enable(client, vcpu.vm, Cap.X86_TRIPLE_FAULT_EVENT)
    events = get(client, vcpu, GET_EVENTS, VcpuEvents)
    assert events.flags == 1 | 4 | 8 | 16 | 32
    events.exception.pending, events.exception.nr, events.exception.has_error_code = 1, 14, 1
    events.exception.error_code, events.exception_has_payload, events.exception_payload = 7, 1, 0xDEAD000
    events.interrupt.injected, events.interrupt.nr, events.interrupt.shadow = 1, 0x80, 2
    events.nmi.pending, events.nmi.masked = 1, 1
    events.triple_fault.pending = 1
    client.call(vcpu, SET_EVENTS, events)
    assert bytes(get(client, vcpu, GET_EVENTS, VcpuEvents)) == bytes(events)
    assert vcpu.state[Cpu.TRIPLE_FAULT] == 1


def test_without_payload_a_pending_exception_counts_as_injected(vcpu: Vcpu, client: FakeClient) -> None:
    vcpu.queue_exception(14, 2)
    vcpu.state[Cpu.EXC_HAS_PAYLOAD], vcpu.state[S.EXC_PAYLOAD] = 1, 0x5000
    events = get(client, vcpu, GET_EVENTS, VcpuEvents)
    assert (events.exception.injected, events.exception.pending, events.exception.nr) == (1, 1, 14)
    assert (events.exception_has_payload, vcpu.state[S.CR2]) == (0, 0x5000)


def test_nmis_queue_up_to_two(vcpu: Vcpu, client: FakeClient) -> None:
    for _ in range(3):
        client.call(vcpu, ioctls.KVM_NMI)
    assert get(client, vcpu, GET_EVENTS, VcpuEvents).nmi.pending == 2
    vcpu.state[S.NMI_MASKED] = 1
    assert get(client, vcpu, GET_EVENTS, VcpuEvents).nmi.pending == 1


def test_interrupt(vm: Vm, vcpu: Vcpu, client: FakeClient) -> None:
    assert client.fails(vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=256)) == errno.EINVAL
    client.call(vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=255))
    assert (vcpu.state[S.INTR_INJECTED], vcpu.state[S.INTR_VECTOR]) == (1, 255)


def test_interrupt_with_our_pic(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(vm.vcpus[0], ioctls.KVM_INTERRUPT, Interrupt(irq=32)) == errno.ENXIO


@pytest.mark.parametrize(
    ("state", "plain", "with_lapic"), [(0, 0, 0), *((n, 22, 0) for n in (1, 2, 3, 4, 9)), (5, 22, 22)]
)
def test_mp_state(vm: Vm, client: FakeClient, state: int, plain: int, with_lapic: int) -> None:
    client.call(vm, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(vm.vcpus[0], ioctls.KVM_SET_MP_STATE, MpState(mp_state=state)) == plain
    other = Vm(vm.native, 0, vm.client)
    client.call(other, ioctls.KVM_CREATE_IRQCHIP)
    client.call(other, ioctls.KVM_CREATE_VCPU, 0)
    assert client.fails(other.vcpus[0], ioctls.KVM_SET_MP_STATE, MpState(mp_state=state)) == with_lapic
    if not with_lapic:
        assert get(client, other.vcpus[0], ioctls.KVM_GET_MP_STATE, MpState).mp_state == (0 if state == 4 else state)


# MSRs


def set_msr(client: FakeClient, vcpu: Vcpu, number: int, value: int) -> int:
    client.put(MsrEntry(index=number, data=value), BASE + sizeof(Msrs))
    return client.call(vcpu, ioctls.KVM_SET_MSRS, Msrs(nmsrs=1))


def get_msr(client: FakeClient, vcpu: Vcpu, number: int) -> int | None:
    client.put(MsrEntry(index=number), BASE + sizeof(Msrs))
    if not client.call(vcpu, ioctls.KVM_GET_MSRS, Msrs(nmsrs=1)):
        return None
    return MsrEntry.from_buffer_copy(client.memory, sizeof(Msrs)).data


def cpuid_of_all(client: FakeClient, vcpu: Vcpu, change: dict[int, dict[str, int]] | None = None) -> int:
    """KVM_SET_CPUID2 of what is supported, leaves changed: the errno."""
    entries = [CpuidEntry2.from_buffer_copy(entry) for entry in supported_cpuid().entries]
    for entry in entries:
        for name, value in (change or {}).get(entry.function, {}).items():
            setattr(entry, name, value)
    client.write(BASE + 4096, bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries)))
    return client.fails(vcpu, ioctls.KVM_SET_CPUID2, BASE + 4096)


def test_every_listed_msr_is_saved_and_restored(vcpu: Vcpu, client: FakeClient) -> None:
    from kvmfs.kvm.msrs import index_list

    for number in index_list():
        value = get_msr(client, vcpu, number)
        assert value is not None, hex(number)
        assert set_msr(client, vcpu, number, value) == 1, hex(number)


@pytest.mark.parametrize(
    ("number", "value", "ok"),
    [
        (M.MSR_STAR, 0x1234_5678_9ABC_DEF0, True),
        (M.MSR_LSTAR, 0xFFFF_8000_0000_0000, True),
        (M.MSR_LSTAR, 0x8000_0000_0000, False),  # not canonical
        (M.MSR_KERNEL_GS_BASE, 1 << 62, False),
        (M.MSR_FS_BASE, 0x7FFF_FFFF_FFFF, True),
        (M.MSR_IA32_CR_PAT, 0x0007_0406_0007_0406, True),
        (M.MSR_IA32_CR_PAT, 2, False),
        (M.MSR_IA32_CR_PAT, 8, False),
        (M.MSR_MTRRdefType, 0xC06, True),
        (M.MSR_MTRRdefType, 0xC02, False),
        (M.MSR_MTRRdefType, 0x1000, False),
        (M.MSR_MTRRfix64K_00000, 0x0606060606060606, True),
        (M.MSR_MTRRfix64K_00000, 0x0606060606060602, False),
        (0x200, 0x8000_0006, True),
        (0x200, 0x8000_0106, False),
        (0x201, 0x8000_0800, True),
        (0x201, 0x8000_0400, False),
        (0x210, 0, False),  # there are eight
        (M.MSR_IA32_MCG_STATUS, 5, True),
        (M.MSR_IA32_MC0_CTL, (1 << 64) - 1, True),
        (M.MSR_IA32_MC0_CTL, 5, False),
        (M.MSR_IA32_MC0_STATUS, 5, True),
        (M.MSR_IA32_MC0_CTL + 4 * 32, 0, False),  # beyond the last bank
        (M.MSR_IA32_APICBASE, 0xFEE00900, True),
        (M.MSR_IA32_APICBASE, 0xFEE00901, False),
        (M.MSR_EFER, 1, True),
        (M.MSR_EFER, 2, False),
        (M.MSR_IA32_XSS, 1, False),
        (M.MSR_PLATFORM_INFO, 0xFF00, True),
        (M.MSR_IA32_PERF_STATUS, 1, False),
        (0xBAD, 0, False),
    ],
)
def test_set_msr(vcpu: Vcpu, client: FakeClient, number: int, value: int, ok: bool) -> None:
    assert set_msr(client, vcpu, number, value) == ok
    if ok:
        assert get_msr(client, vcpu, number) == value


def test_the_guest_has_fewer_rights(vcpu: Vcpu) -> None:
    from kvmfs.kvm.msr_rules import Invalid, Unsupported
    from kvmfs.kvm.msrs import read_msr, write_msr

    assert read_msr(vcpu, M.MSR_PLATFORM_INFO, host=False) == 1 << 31
    vcpu.vm.guest_can_read_platform_info = False
    with pytest.raises(Invalid):
        read_msr(vcpu, M.MSR_PLATFORM_INFO, host=False)
    for number in (M.MSR_PLATFORM_INFO, M.MSR_IA32_ARCH_CAPABILITIES, M.MSR_SMI_COUNT):
        with pytest.raises(Invalid):
            write_msr(vcpu, number, 1 << 31, host=False)
    with pytest.raises(Unsupported):
        read_msr(vcpu, 0xBAD, host=False)


def test_feature_msrs_do_not_change_under_a_guest(vcpu: Vcpu, client: FakeClient) -> None:
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 1) == 1
    vcpu.state[Cpu.HAS_RUN] = 1
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 1) == 1
    assert set_msr(client, vcpu, M.MSR_IA32_ARCH_CAPABILITIES, 2) == 0
    assert set_msr(client, vcpu, M.MSR_IA32_UCODE_REV, 2) == 1


@pytest.mark.parametrize(
    ("cap", "error"), [(0, 22), (10, 0), (32, 0), (33, 22), (10 | 1 << 8 | 1 << 24, 0), (10 | 1 << 10, 22)]
)
def test_setup_mce(vcpu: Vcpu, client: FakeClient, cap: int, error: int) -> None:
    assert client.fails(vcpu, ioctls.KVM_X86_SETUP_MCE, u64(cap)) == error


def test_uncorrected_error_without_a_handler_shuts_down(vcpu: Vcpu, client: FakeClient) -> None:
    client.call(vcpu, ioctls.KVM_X86_SETUP_MCE, u64(10 | 1 << 8))
    assert client.fails(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=10, status=1 << 63)) == errno.EINVAL
    assert client.fails(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=0, status=0)) == errno.EINVAL
    status = 1 << 63 | 1 << 61 | 1 << 57
    client.call(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=1, status=status, mcg_status=5))
    assert vcpu.state[Cpu.TRIPLE_FAULT] == 1
    vcpu.state[S.CR4] = S.CR4_MCE
    client.call(vcpu, ioctls.KVM_X86_SET_MCE, X86Mce(bank=1, status=status, mcg_status=5))
    assert (vcpu.state[S.EXC_PENDING], vcpu.state[S.EXC_VECTOR]) == (1, 18)
    assert get_msr(client, vcpu, M.MSR_IA32_MC0_STATUS + 4) == status


# CPUID


def test_cpuid_comes_back(vcpu: Vcpu, client: FakeClient) -> None:
    assert cpuid_of_all(client, vcpu) == 0
    count = len(supported_cpuid().entries)
    header = Cpuid2(nent=count - 1)
    assert client.fails(vcpu, ioctls.KVM_GET_CPUID2, header) == errno.E2BIG
    assert header.nent == count - 1
    header.nent = count + 5
    client.call(vcpu, ioctls.KVM_GET_CPUID2, header)
    assert header.nent == count
    assert client.fails(vcpu, ioctls.KVM_SET_CPUID2, Cpuid2(nent=257)) == errno.E2BIG


def test_cpuid_follows_the_state(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    leaf = vcpu.cpuid.find(1)
    assert leaf
    assert leaf.edx >> 9 & 1  # the APIC is on
    assert set_msr(client, vcpu, M.MSR_IA32_APICBASE, 0xFEE00100) == 1
    assert not leaf.edx >> 9 & 1
    table = vcpu.state[S.CPUID_ENTRIES]
    assert table
    assert vcpu.state[S.CPUID_COUNT] == len(vcpu.cpuid.entries)


@pytest.mark.parametrize(("eax", "error"), [(48 << 8 | 40, 0), (57 << 8 | 40, 0), (40, 0), (47 << 8 | 40, 22)])
def test_linear_addresses_have_48_or_57_bits(vcpu: Vcpu, client: FakeClient, eax: int, error: int) -> None:
    assert cpuid_of_all(client, vcpu, {0x80000008: {"eax": eax}}) == error


def test_cpuid_of_a_guest_that_has_run(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    vcpu.state[Cpu.HAS_RUN] = 1
    assert cpuid_of_all(client, vcpu) == 0
    assert cpuid_of_all(client, vcpu, {7: {"ebx": 0}}) == errno.EINVAL
    assert cpuid_of_all(client, vcpu, {0x80000008: {"eax": 30}}) == errno.EINVAL


def test_a_guest_without_a_feature_cannot_use_it(vcpu: Vcpu, client: FakeClient) -> None:
    cpuid_of_all(client, vcpu)
    everything = vcpu.state[S.FEATURES]
    assert not vcpu.state[S.CR4_RESERVED] & S.CR4_SMEP
    cpuid_of_all(client, vcpu, {7: {"ebx": 0}})
    assert vcpu.state[S.FEATURES] != everything
    assert vcpu.state[S.CR4_RESERVED] & S.CR4_SMEP


# FPU


def test_fpu_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    value = get(client, vcpu, ioctls.KVM_GET_FPU, Fpu)
    assert value.fcw == 0x37F
    value.fsw, value.ftwx, value.last_opcode, value.last_ip, value.last_dp = 3 << 11, 0x55, 0x123, 1 << 40, 1 << 41
    for register in range(8):
        value.fpr[register][:10] = bytes(range(register, register + 10))
    for register in range(16):
        value.xmm[register][:] = bytes([register + 1] * 16)
    client.call(vcpu, ioctls.KVM_SET_FPU, value)
    assert bytes(get(client, vcpu, ioctls.KVM_GET_FPU, Fpu)) == bytes(value)
    # ST0 is the register that TOP names
    assert vcpu.state.read(S.ST + 16 * 3, 10) == bytes(range(10))


def test_xsave_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    size = fpu.uabi_size()
    client.call(vcpu, ioctls.KVM_GET_XSAVE2, BASE)
    area = bytearray(client.read(BASE, size))
    assert struct.unpack_from("<Q", area, 512)[0] & 3 == 3
    assert struct.unpack_from("<I", area, 24)[0] == 0x1F80
    area[160:416] = bytes(range(256))
    struct.pack_into("<I", area, 24, 0x1FA0)
    client.write(BASE, bytes(area))
    client.call(vcpu, ioctls.KVM_SET_XSAVE, BASE)
    client.call(vcpu, ioctls.KVM_GET_XSAVE2, BASE)
    assert client.read(BASE, size) == bytes(area)


def test_xsave_of_components_not_in_use_are_initial(vcpu: Vcpu, client: FakeClient) -> None:
    client.call(vcpu, ioctls.KVM_SET_FPU, Fpu(fcw=0x123))
    client.write(BASE, bytes(fpu.uabi_size()))
    client.call(vcpu, ioctls.KVM_SET_XSAVE, BASE)
    assert get(client, vcpu, ioctls.KVM_GET_FPU, Fpu).fcw == 0x37F
    assert vcpu.state[S.MXCSR] == 0x1F80


@pytest.mark.parametrize(
    ("at", "word"), [(512, 1 << 63), (520, 1 << 63), (528, 1), (568, 1)], ids=["component", "compacted", "pad", "pad"]
)
def test_xsave_refused(vcpu: Vcpu, client: FakeClient, at: int, word: int) -> None:
    area = bytearray(fpu.uabi_size())
    struct.pack_into("<Q", area, at, word)
    client.write(BASE, bytes(area))
    assert client.fails(vcpu, ioctls.KVM_SET_XSAVE, BASE) == errno.EINVAL


def test_mxcsr_has_reserved_bits(vcpu: Vcpu, client: FakeClient) -> None:
    area = bytearray(fpu.uabi_size())
    struct.pack_into("<I", area, 24, 1 << 16)
    struct.pack_into("<Q", area, 512, 2)
    client.write(BASE, bytes(area))
    assert client.fails(vcpu, ioctls.KVM_SET_XSAVE, BASE) == errno.EINVAL


def test_xcrs(vcpu: Vcpu, client: FakeClient) -> None:
    if not client.call(vcpu.vm, ioctls.KVM_CHECK_EXTENSION, Cap.XCRS):
        assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs()) == errno.EINVAL
        return
    cpuid_of_all(client, vcpu)
    xcrs = get(client, vcpu, ioctls.KVM_GET_XCRS, Xcrs)
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) == (1, 0, 1)
    for value, error in ((3, 0), (0, errno.EINVAL), (1 << 62 | 1, errno.EINVAL)):
        xcrs.xcrs[0] = Xcr(xcr=0, value=value)
        assert client.fails(vcpu, ioctls.KVM_SET_XCRS, xcrs) == error
    assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs(nr_xcrs=17)) == errno.EINVAL
    assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs(flags=1)) == errno.EINVAL


# Local APIC, TSC, signal mask


def test_lapic(vm: Vm, client: FakeClient) -> None:
    client.call(vm, ioctls.KVM_CREATE_IRQCHIP)
    for number in range(2):
        client.call(vm, ioctls.KVM_CREATE_VCPU, number)
    boot, other = (get(client, vm.vcpus[number], ioctls.KVM_GET_LAPIC, LapicState) for number in range(2))
    word = lambda state, at: int.from_bytes(bytes(state.regs[at : at + 4]), "little")  # noqa: E731
    assert (word(boot, 0x20), word(other, 0x20)) == (0, 1 << 24)
    assert word(boot, 0x30) == 0x14 | 5 << 16
    assert (word(boot, 0x350), word(other, 0x350)) == (0x700, 0x10000)  # LINT0: ExtINT at the boot processor
    assert (word(boot, 0xE0), word(boot, 0xF0)) == (0xFFFFFFFF, 0xFF)
    other.regs[0x80] = 0x50
    client.call(vm.vcpus[1], ioctls.KVM_SET_LAPIC, other)
    assert vm.vcpus[1].state[S.CR8] == 5
    assert word(get(client, vm.vcpus[1], ioctls.KVM_GET_LAPIC, LapicState), 0xA0) == 0x50


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


def test_signal_mask(vcpu: Vcpu, client: FakeClient) -> None:
    row = ioctls.KVM_SET_SIGNAL_MASK
    client.write(BASE, (8).to_bytes(4, "little") + b"12345678")
    assert client.fails(vcpu, row, BASE) == 0
    assert vcpu.signal_mask == b"12345678"
    assert client.fails(vcpu, row, 0) == 0
    assert vcpu.signal_mask is None
    client.write(BASE, (16).to_bytes(4, "little"))
    assert client.fails(vcpu, row, BASE) == errno.EINVAL


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
    assert service.serve(vcpu) is None
    assert (state[S.RBX], run.kvm_dirty_regs, state[Cpu.PHASE]) == (0xBEEF, 0, W.PHASE_SYNCED)

    run.kvm_valid_regs = 7
    run.s.regs.regs.rbx = 0
    state[Cpu.NEEDS] = W.NEEDS_SYNC_OUT
    service.serve(vcpu)
    assert (run.s.regs.regs.rbx, run.s.regs.sregs.apic_base) == (0xBEEF, 0xFEE00900)


@pytest.mark.parametrize("dirty", [2, 4])
def test_synchronized_registers_refused(vcpu: Vcpu, dirty: int) -> None:
    run = vcpu.run
    run.s.regs.sregs.cr0 = 1 << 40
    run.s.regs.events.flags = 1 << 31
    run.kvm_dirty_regs = dirty
    vcpu.state[Cpu.NEEDS] = W.NEEDS_SYNC_IN
    service.serve(vcpu)
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
    service.serve(vcpu)
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
