"""/dev/kvm."""

from __future__ import annotations

import errno
from ctypes import sizeof

import pytest

from kvmfs.abi import ioctls, para
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.layout import u64
from kvmfs.abi.msrs import MsrEntry, MsrList, Msrs
from kvmfs.abi.vm import DeviceAttr
from kvmfs.kvm import hostcpu
from kvmfs.kvm.system import System
from tests.unit.kvm.fakes import BAD, BASE, FakeClient


def cpuid(client: FakeClient, system: System, room: int, row: ioctls.Ioctl = ioctls.KVM_GET_SUPPORTED_CPUID) -> list:
    header = Cpuid2(nent=room)
    client.call(system, row, header)
    return list((CpuidEntry2 * header.nent).from_buffer_copy(client.memory, sizeof(Cpuid2)))


def test_version_and_sizes(system: System, client: FakeClient) -> None:
    assert client.call(system, ioctls.KVM_GET_API_VERSION) == 12
    assert client.call(system, ioctls.KVM_GET_VCPU_MMAP_SIZE) == 3 * 4096


@pytest.mark.parametrize("row", [ioctls.KVM_GET_API_VERSION, ioctls.KVM_GET_VCPU_MMAP_SIZE], ids=lambda row: row.name)
def test_argument_that_must_be_zero(system: System, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(system, row, 1) == errno.EINVAL


def test_unknown_ioctl_is_einval_as_in_kvm(system: System, client: FakeClient) -> None:
    with pytest.raises(OSError, match="not offered") as error:
        system.ioctl(client, 0xAEFF, 0)
    assert error.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "row",
    [row for row in ioctls.ALL if ioctls.Fd.SYSTEM in row.on and row.argument.name in ("IN", "OUT", "INOUT")],
    ids=lambda row: row.name,
)
def test_bad_pointer_is_efault(system: System, client: FakeClient, row: ioctls.Ioctl) -> None:
    assert client.fails(system, row, BAD) in (errno.EFAULT, errno.EINVAL if row.cap == Cap.HYPERV_CPUID else -1)


@pytest.mark.parametrize("kind", [0, 1])
def test_vm_types(system: System, kind: int) -> None:
    system.check_vm_type(kind)


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 31, 32, 1 << 63])
def test_vm_types_that_are_not_there(system: System, kind: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        system.check_vm_type(kind)


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        (Cap.USER_MEMORY2, 1), (Cap.GUEST_MEMFD, 1), (Cap.MEMORY_ATTRIBUTES, 8), (Cap.VM_TYPES, 3),
        (Cap.MEMORY_FAULT_INFO, 1), (Cap.PRE_FAULT_MEMORY, 1), (Cap.NR_MEMSLOTS, 32764), (Cap.MAX_VCPUS, 1024),
        (Cap.MAX_VCPU_ID, 4096), (Cap.SYNC_REGS, 7), (Cap.IRQCHIP, 1), (Cap.IRQFD, 1), (Cap.IRQ_ROUTING, 4096),
        (Cap.S390_PSW, 0), (Cap.NESTED_STATE, 0), (1 << 20, 0), (1 << 40, 0),
    ],
)  # fmt: skip
def test_capabilities(system: System, client: FakeClient, cap: int, value: int) -> None:
    assert client.call(system, ioctls.KVM_CHECK_EXTENSION, int(cap)) == value


# CPUID


def test_cpuid_needs_room(system: System, client: FakeClient) -> None:
    entries = cpuid(client, system, 256)
    count = len(entries)
    assert client.fails(system, ioctls.KVM_GET_SUPPORTED_CPUID, Cpuid2(nent=0)) == errno.E2BIG
    header = Cpuid2(nent=count - 1)
    assert client.fails(system, ioctls.KVM_GET_SUPPORTED_CPUID, header) == errno.E2BIG
    assert header.nent == count - 1
    assert len(cpuid(client, system, count)) == count
    assert len(cpuid(client, system, 1000)) == count  # KVM takes more than it ever fills for 256


def test_cpuid_leaves(system: System, client: FakeClient) -> None:
    by_leaf = {(e.function, e.index): e for e in cpuid(client, system, 256)}
    basic = by_leaf[0, 0]
    assert all((leaf, 0) in by_leaf for leaf in range(basic.eax + 1))
    assert all((leaf, 0) in by_leaf for leaf in range(0x80000000, by_leaf[0x80000000, 0].eax + 1))
    signature = by_leaf[para.KVM_CPUID_SIGNATURE, 0]
    words = (signature.ebx, signature.ecx, signature.edx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == para.KVM_SIGNATURE
    assert signature.eax == para.KVM_CPUID_FEATURES
    assert by_leaf[1, 0].edx >> 25 & 3 == 3  # SSE, SSE2
    assert by_leaf[0x80000001, 0].edx >> 29 & 1  # long mode
    assert by_leaf[7, 0].flags == 1
    assert not by_leaf[1, 0].flags
    assert not by_leaf[1, 0].ecx >> 5 & 1  # no VMX: nested virtualization is not there


def test_emulated_cpuid_wants_clean_padding(system: System, client: FakeClient) -> None:
    assert len(cpuid(client, system, 10, ioctls.KVM_GET_EMULATED_CPUID)) == 3
    client.memory[sizeof(Cpuid2) + 28] = 1  # padding of the first entry
    assert client.fails(system, ioctls.KVM_GET_EMULATED_CPUID, Cpuid2(nent=10)) == errno.EINVAL


# MSRs


@pytest.mark.parametrize(
    "row", [ioctls.KVM_GET_MSR_INDEX_LIST, ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST], ids=lambda row: row.name
)
def test_msr_lists_tell_their_length_when_there_is_no_room(
    system: System, client: FakeClient, row: ioctls.Ioctl
) -> None:
    header = MsrList(nmsrs=0)
    assert client.fails(system, row, header) == errno.E2BIG
    count = header.nmsrs
    assert count > 0
    assert client.fails(system, row, MsrList(nmsrs=count - 1)) == errno.E2BIG
    assert client.call(system, row, MsrList(nmsrs=count)) == 0
    numbers = (ioctls.u32 * count).from_buffer_copy(client.memory, 4)
    assert len(set(numbers)) == count


def test_every_feature_msr_can_be_read(system: System, client: FakeClient) -> None:
    header = MsrList(nmsrs=100)
    client.call(system, ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST, header)
    for number in (ioctls.u32 * header.nmsrs).from_buffer_copy(client.memory, 4):
        client.put(MsrEntry(index=number), BASE + sizeof(Msrs))
        assert client.call(system, ioctls.KVM_GET_MSRS, Msrs(nmsrs=1)) == 1


def test_msr_io_stops_at_the_first_that_is_not_there(system: System, client: FakeClient) -> None:
    for place, number in enumerate((0x8B, 0xBAD, 0x8B)):
        client.put(MsrEntry(index=number), BASE + sizeof(Msrs) + 16 * place)
    assert client.call(system, ioctls.KVM_GET_MSRS, Msrs(nmsrs=3)) == 1
    assert client.fails(system, ioctls.KVM_GET_MSRS, Msrs(nmsrs=256)) == errno.E2BIG


def test_device_attributes(system: System, client: FakeClient) -> None:
    there = DeviceAttr(group=0, attr=0, addr=BASE + 256)
    assert client.call(system, ioctls.KVM_HAS_DEVICE_ATTR, there) == 0
    assert client.call(system, ioctls.KVM_GET_DEVICE_ATTR, there) == 0
    assert u64.from_buffer_copy(client.memory, 256).value & 3 in (0, 3)
    for absent in (DeviceAttr(group=1), DeviceAttr(attr=1)):
        assert client.fails(system, ioctls.KVM_HAS_DEVICE_ATTR, absent) == errno.ENXIO
    assert client.fails(system, ioctls.KVM_GET_DEVICE_ATTR, DeviceAttr(addr=BAD)) == errno.EFAULT


# The host's processor

AMD = """processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 25
model		: 17
model name	: AMD EPYC 9R14
stepping	: 1
microcode	: 0xa10113e
address sizes	: 52 bits physical, 57 bits virtual

processor	: 1
vendor_id	: other
"""


def test_host_cpu() -> None:
    cpu = hostcpu.parse(AMD)
    assert (cpu.vendor, cpu.is_amd, cpu.signature) == ("AuthenticAMD", True, 0x00A10F11)
    assert (cpu.physical_bits, cpu.virtual_bits, cpu.microcode) == (52, 57, 0xA10113E)
    assert cpu.max_gfn == (1 << 40) - 1
    intel = hostcpu.parse("vendor_id : GenuineIntel\ncpu family : 6\nmodel : 143\nstepping : unknown\n")
    assert (intel.is_amd, intel.signature, intel.physical_bits) == (False, 0x000806F0, 40)
