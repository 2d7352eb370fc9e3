"""KVM_CHECK_EXTENSION: the values that Linux 6.12 gives, on /dev/kvm and on VMs of either kind."""

from __future__ import annotations

import errno
import os

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.system import System
from kvmfs.kvm.vm import Vm
from tests.unit.kvm.fakes import FakeClient

VALUES = {
    # more than yes
    Cap.NR_VCPUS: os.cpu_count(), Cap.MAX_VCPUS: 1024, Cap.MAX_VCPU_ID: 4096, Cap.NR_MEMSLOTS: 32764, Cap.MCE: 32,
    Cap.COALESCED_MMIO: 2, Cap.IRQ_ROUTING: 4096, Cap.ADJUST_CLOCK: 2 | 4 | 8, Cap.SYNC_REGS: 7, Cap.X2APIC_API: 3,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: 3, Cap.EXIT_HYPERCALL: 1 << 12, Cap.SET_GUEST_DEBUG2: 0x1F0002,
    Cap.DIRTY_LOG_RING: 1 << 20, Cap.DIRTY_LOG_RING_ACQ_REL: 1 << 20, Cap.X86_APIC_BUS_CYCLES_NS: 1, Cap.VM_TYPES: 3,
    # yes, and monitors count on exactly 1 (crosvm)
    Cap.IMMEDIATE_EXIT: 1, Cap.KVMCLOCK_CTRL: 1, Cap.READONLY_MEM: 1, Cap.TSC_DEADLINE_TIMER: 1, Cap.USER_MEMORY2: 1,
    Cap.CLOCKSOURCE: 1, Cap.HALT_POLL: 1, Cap.IOAPIC_POLARITY_IGNORED: 1, Cap.STEAL_TIME: 1, Cap.SPLIT_IRQCHIP: 1,
    # no: obsolete, other architectures', or not offered
    Cap.PV_MMU: 0, Cap.IOMMU: 0, Cap.DIRTY_LOG_RING_WITH_BITMAP: 0, Cap.PTP_KVM: 0, Cap.ASYNC_PF: 0, Cap.X86_SMM: 0,
    Cap.MULTI_ADDRESS_SPACE: 0, Cap.NESTED_STATE: 0, Cap.VAPIC: 0, Cap.HYPERV: 0, Cap.XEN_HVM: 0,
}  # fmt: skip


@pytest.mark.parametrize("cap", VALUES, ids=lambda cap: cap.name)
def test_values(client: FakeClient, system: System, vm: Vm, protected: Vm, cap: Cap) -> None:
    answers = {client.call(node, ioctls.KVM_CHECK_EXTENSION, cap) for node in (system, vm, protected)}
    assert answers == {VALUES[cap]}


@pytest.mark.parametrize(("cap", "value"), [(Cap.GUEST_MEMFD, 1), (Cap.MEMORY_ATTRIBUTES, 8)])
def test_private_memory_is_for_vms_that_have_it(
    client: FakeClient, system: System, vm: Vm, protected: Vm, cap: Cap, value: int
) -> None:
    assert client.call(system, ioctls.KVM_CHECK_EXTENSION, cap) == value
    assert client.call(protected, ioctls.KVM_CHECK_EXTENSION, cap) == value
    assert client.call(vm, ioctls.KVM_CHECK_EXTENSION, cap) == 0


@pytest.mark.parametrize("number", [239, 1 << 20, 0xFFFF_FFFF])
def test_what_is_not_known_is_not_there(client: FakeClient, system: System, vm: Vm, number: int) -> None:
    assert client.call(system, ioctls.KVM_CHECK_EXTENSION, number) == 0
    assert client.call(vm, ioctls.KVM_CHECK_EXTENSION, number) == 0


def test_a_bound_on_polling(client: FakeClient, vm: Vm) -> None:
    enable = EnableCap(cap=Cap.HALT_POLL, args=(200_000,))
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, enable) == 0
    enable.args[0] = 1 << 32
    assert client.fails(vm, ioctls.KVM_ENABLE_CAP, enable) == errno.EINVAL
