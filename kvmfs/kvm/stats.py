"""KVM_GET_STATS_FD: files with the statistics of a VM or a vCPU in binary (virt/kvm/binary_stats.c)."""

from __future__ import annotations

import errno
import itertools
import stat
from collections.abc import Callable
from ctypes import sizeof
from typing import TYPE_CHECKING

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.stats import KVM_STATS_BASE_POW10, KVM_STATS_NAME_SIZE, StatsDesc, StatsHeader
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.stat_table import VCPU_STAT, VCPU_STATS, VM_STAT, VM_STATS, Stat
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.vcpu import Vcpu
    from kvmfs.kvm.vm import Vm

vm_table: Table[Vm] = Table(Fd.VM)
vcpu_table: Table[Vcpu] = Table(Fd.VCPU)

_numbers = itertools.count()


def _describe(stats: tuple[Stat, ...], identity: str) -> bytes:
    """All that comes before the data."""
    description = sizeof(StatsDesc) + KVM_STATS_NAME_SIZE
    first = sizeof(StatsHeader) + KVM_STATS_NAME_SIZE
    parts = [
        bytes(
            StatsHeader(
                name_size=KVM_STATS_NAME_SIZE,
                num_desc=len(stats),
                id_offset=sizeof(StatsHeader),
                desc_offset=first,
                data_offset=first + description * len(stats),
            )
        ),
        identity.encode().ljust(KVM_STATS_NAME_SIZE, b"\0"),
    ]
    for one in stats:
        flags = one.type | one.unit | KVM_STATS_BASE_POW10
        parts.append(bytes(StatsDesc(flags=flags, exponent=one.exponent, size=one.size, offset=one.offset)))
        parts.append(one.name.encode().ljust(KVM_STATS_NAME_SIZE, b"\0"))
    return b"".join(parts)


class StatsFile:
    """A Node that can be read."""

    mode = stat.S_IFREG | 0o400

    def __init__(self, stats: tuple[Stat, ...], identity: str, data: Callable[[], bytes]) -> None:
        self.name = f"stats{next(_numbers)}"
        self._description = _describe(stats, identity)
        self._data = data
        self.size = 0

    def read(self, offset: int, size: int) -> bytes:
        return (self._description + self._data())[offset : offset + size]

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        fail(errno.ENOTTY)

    def released(self) -> None:
        """It keeps the VM, as a vCPU does."""


def vm_data(vm: Vm) -> bytes:
    """The data block of a VM."""
    flushes = vm.block[mmu.GENERATION]
    vm.counters[VM_STAT["remote_tlb_flush"]] = vm.counters[VM_STAT["remote_tlb_flush_requests"]] = flushes
    vm.counters[VM_STAT["pages_4k"]] = vm.memory.count_touched()
    return vm.counters.read(0, vm.counters.size)


def vcpu_data(vcpu: Vcpu) -> bytes:
    """The data block of a vCPU: what kvmfs.kvm counts, and what the processor does."""
    counters, state = vcpu.counters, vcpu.state
    for name, at in (
        ("exits", S.EXITS),
        ("halt_exits", S.HALTS),
        ("irq_injections", S.IRQS_TAKEN),
        ("nmi_injections", S.NMIS_TAKEN),
        ("tlb_flush", S.TLB_FLUSHES),
        ("blocking", Cpu.WAITING),
    ):
        counters[VCPU_STAT[name]] = state[at]
    return counters.read(0, counters.size)


def _can_be_read(vm: Vm) -> None:
    if not vm.reads:
        fail(errno.ENOTTY)


@vm_table.ioctl(ioctls.KVM_GET_STATS_FD)
def get_vm_stats_fd(vm: Vm, caller: Caller, arg: int) -> int:
    _can_be_read(vm)
    return caller.install(StatsFile(VM_STATS, f"kvm-{vm.client}", lambda: vm_data(vm)))


@vcpu_table.ioctl(ioctls.KVM_GET_STATS_FD)
def get_vcpu_stats_fd(vcpu: Vcpu, caller: Caller, arg: int) -> int:
    _can_be_read(vcpu.vm)
    identity = f"kvm-{vcpu.vm.client}/vcpu-{vcpu.id}"
    return caller.install(StatsFile(VCPU_STATS, identity, lambda: vcpu_data(vcpu)))
