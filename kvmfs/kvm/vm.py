"""A virtual machine."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE, u64
from kvmfs.abi.limits import KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS
from kvmfs.abi.vm import KVM_X86_SW_PROTECTED_VM
from kvmfs.irqchip import eventfds
from kvmfs.irqchip import ioctls as irqchip_ioctls
from kvmfs.irqchip.board import Board
from kvmfs.irqchip.chips_state import Chips
from kvmfs.irqchip.eventfds import Eventfds
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm import attributes, caps, clock, coalesced, dirty, guest_memfd, msr_filter, report, slots, stats, vfio
from kvmfs.kvm.accounts import Accounts
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.client_changes import ClientChanges
from kvmfs.kvm.client_maps import ClientMaps
from kvmfs.kvm.clock import Clock
from kvmfs.kvm.coalesced import Coalesced
from kvmfs.kvm.dirty import DirtyTracking
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.eventlog import EventLog, FaultEvents
from kvmfs.kvm.faults import note_ioctl
from kvmfs.kvm.inject.ioctls import Fired
from kvmfs.kvm.inject.memory import MemoryRules
from kvmfs.kvm.inject.rules import Rule
from kvmfs.kvm.inspection import Inspection, Seen
from kvmfs.kvm.msr_filter import MsrFilter
from kvmfs.kvm.native import Native
from kvmfs.kvm.publish import Publisher
from kvmfs.kvm.slots import Memory
from kvmfs.kvm.tracer import Tracer, VmTrace
from kvmfs.kvm.tsc import TscGeneration, max_khz
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.words import Vm as Words

own: Table[Vm] = Table(Fd.VM)

KVM_MIN_ALLOC_MMU_PAGES: Final = 64
TSS_PAGES: Final = 3


class Vm:
    """`kind`: KVM_CREATE_VM's argument. `client`: the process that may use it; any other gets EIO, as one with another
    mm does from KVM. `shared_pages`: what the client maps of a vCPU's file is our memory, not a page cache.
    `reads`: files of ours can be read."""

    name = "vm"

    def __init__(self, native: Native, kind: int, client: int, shared_pages: bool = True, reads: bool = True) -> None:
        self.native = native
        self.kind = kind
        self.client = client
        self.shared_pages, self.reads = shared_pages, reads
        self.has_private_mem = kind == KVM_X86_SW_PROTECTED_VM
        self.log = EventLog(f"{client}-{os.getpid()}")

        self.lock = threading.Lock()
        """kvm->lock: what there is in the VM."""
        self.slots_lock = threading.Lock()
        """kvm->slots_lock: memslots and attributes."""

        self.inspection = Inspection(kind, native.host_khz, native.rdtsc())
        self.block = self.inspection.vm
        self._fault_events = FaultEvents(self.log, self.block)
        self._vcpu_table = Block(8 * KVM_MAX_VCPUS)
        self.block[Words.VCPUS] = self._vcpu_table.address
        self.block[mmu.PRIVATE_MEMORY] = mmu.PRIVATE_BY_ATTRIBUTE if self.has_private_mem else mmu.PRIVATE_NEVER
        self.block[mmu.CLIENT] = client
        self.maps = ClientMaps(client)
        self.block[Words.MAPS_FD] = self.maps.fd + 1
        native.prepare_vm(self.block.address)
        self.publisher = Publisher(self.block, native)
        self.rules = MemoryRules(self.block, native, self.publisher)
        self.memory = Memory(self)
        self.dirty = DirtyTracking(self)
        self.changes = ClientChanges(self)
        self.coalesced = Coalesced(self)
        self.counters = self.inspection.counters

        self.vcpus: dict[int, Vcpu] = {}  # by id
        self.created_vcpus = 0
        self.max_vcpu_ids = 0
        self.bsp_id = 0
        self.gmem_count = 0
        self.gmems: list[guest_memfd.GuestMemfd] = []
        self.board = Board(native, self.block.address)
        self.block[Words.BOARD] = self.board.address
        self.eventfds = Eventfds(self.board)
        self.x2apic_format = False
        self.chips: Chips | None = None
        self.guest_can_read_platform_info = True
        self.hypercall_exits = 0
        self.hlt_in_guest = False
        self.msr_filter = MsrFilter()
        self.user_space_msrs = 0
        """KVM_MSR_EXIT_REASON_*: refusals that are the client's to answer (KVM_CAP_X86_USER_SPACE_MSR)."""
        self.tss_address = 0
        self.identity_map_address = 0
        self.tsc_generation = TscGeneration()
        self.tsc_khz = native.host_khz
        self.clock = Clock(self)
        self.accounts = Accounts()
        self.block[Words.ACCOUNTS] = self.accounts.address
        self.traced = VmTrace(native)
        self.vfio: vfio.VfioDevice | None = None

    def has_quirk(self, quirk: int) -> bool:
        """kvm_check_has_quirk."""
        return not self.block[Words.DISABLED_QUIRKS] & quirk

    def set_irqchip(self, kind: int, chips: Chips | None) -> None:
        """KVM_CREATE_IRQCHIP, or KVM_CAP_SPLIT_IRQCHIP without chips: vCPUs to come have an APIC."""
        self.chips = chips
        self.block[Words.IRQCHIP] = kind
        self.board.start(self)

    def online(self, vcpu: Vcpu) -> None:
        """Let compiled code see the vCPU: from now on it is asked to drop translations."""
        if not self.vcpus:
            self.coalesced.show_in(vcpu)
        vcpu.state[Seen.TRACE] = self.traced.address
        self._vcpu_table[8 * vcpu.index] = vcpu.context
        self.board.online(vcpu.id, vcpu.context)
        self.vcpus[vcpu.id] = vcpu
        self.block[Words.VCPU_COUNT] = len(self.vcpus)
        vcpu.tsc.changed = self.clock.renew
        self.clock.renew()

    # Those who look on -----

    def inspect(self, what: str) -> object:
        """What the VM says of itself (kvmfs.kvm.report). OSError(ENOENT)."""
        return report.report(self, what)

    def trace(self, ring: int | None) -> Tracer | None:
        """Have vCPUs write to this ring from their next exit on; None: to none any more."""
        with self.lock:
            tracer = None if ring is None else self.traced.begin(ring)
            if tracer is None:
                self.traced.end()
            for vcpu in self.vcpus.values():
                vcpu.state[Seen.STARTED], vcpu.state[Seen.TRACE] = 0, self.traced.address
            return tracer

    def log_faults(self) -> None:
        """Bring the event log up to date with the fault log."""
        self._fault_events.write()

    # Faults on purpose -----

    def inject(self, rules: Sequence[tuple[int, Rule]]) -> None:
        """More rules, those about memory accesses; vCPUs obey them when this returns."""
        with self.slots_lock:
            self.rules.add(rules)

    def stop_injecting(self) -> None:
        with self.slots_lock:
            self.rules.clear()

    def injected(self) -> dict[int, tuple[int, int]]:
        """Matches and fires by a rule's number."""
        return self.rules.counts()

    def note_injection(self, fired: Fired) -> None:
        """Log what befell an ioctl."""
        note_ioctl(self.block, self.native, fired)
        self.log_faults()

    # The node -----

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        if caller.tgid != self.client:
            fail(errno.EIO)
        return TABLE.call(self, caller, cmd, arg)

    def released(self) -> None:
        """vCPUs and guest_memfd files keep the VM; when the last of them goes, so does the process."""


def preload() -> None:
    """What is the same for all VMs, takes time, or needs files: once, in the process that workers are forked from."""
    from kvmfs.kvm.compiled import compiled
    from kvmfs.kvm.msrs import feature_msrs, index_list

    compiled()
    Publisher.preload()
    index_list()
    feature_msrs()


def create_vm(*, kind: int, client: int, passthrough: bool, reads: bool) -> Vm:
    """The worker's VM, with compiled code behind it."""
    from kvmfs.kvm import bus_error
    from kvmfs.kvm.compiled import compiled

    vm = Vm(compiled(), kind, client, shared_pages=passthrough, reads=reads)
    bus_error.install(vm.native, vm.block.address)
    return vm


@own.ioctl(ioctls.KVM_CREATE_VCPU)
def create_vcpu(vm: Vm, caller: Caller, arg: int) -> int:
    """kvm_vm_ioctl_create_vcpu."""
    if arg >= KVM_MAX_VCPU_IDS:
        fail(errno.EINVAL)
    with vm.lock:
        if vm.created_vcpus >= KVM_MAX_VCPUS:
            fail(errno.EINVAL)
        vm.max_vcpu_ids = vm.max_vcpu_ids or KVM_MAX_VCPU_IDS
        if arg >= vm.max_vcpu_ids:
            fail(errno.EINVAL)
        if arg in vm.vcpus:
            fail(errno.EEXIST)
        vcpu = Vcpu(vm, arg, index=len(vm.vcpus))
        try:
            number = caller.install(vcpu)
        except BaseException:
            vcpu.close()
            raise
        vm.created_vcpus += 1
        vm.online(vcpu)
        return number


@own.ioctl(ioctls.KVM_SET_BOOT_CPU_ID)
def set_boot_cpu_id(vm: Vm, caller: Caller, arg: int) -> None:
    with vm.lock:
        if vm.created_vcpus:
            fail(errno.EBUSY)
        if arg > KVM_MAX_VCPU_IDS or (vm.max_vcpu_ids and arg > vm.max_vcpu_ids):
            fail(errno.EINVAL)
        vm.bsp_id = arg


@own.ioctl(ioctls.KVM_SET_TSS_ADDR)
def set_tss_addr(vm: Vm, caller: Caller, arg: int) -> None:
    """Where VMX without unrestricted guests keeps a TSS; kept, and not needed."""
    if arg > (-TSS_PAGES * PAGE_SIZE & 0xFFFF_FFFF):
        fail(errno.EINVAL)
    vm.tss_address = arg


@own.ioctl(ioctls.KVM_SET_IDENTITY_MAP_ADDR, raw=True)
def set_identity_map_addr(vm: Vm, caller: Caller, arg: int) -> None:
    with vm.lock:
        if vm.created_vcpus:  # looked at before the argument is read
            fail(errno.EINVAL)
        vm.identity_map_address = u64.from_buffer_copy(caller.read(arg, 8)).value


@own.ioctl(ioctls.KVM_SET_NR_MMU_PAGES)
def set_nr_mmu_pages(vm: Vm, caller: Caller, arg: int) -> None:
    """Bounds the shadow pages of KVM's MMU; this one has none."""
    if arg < KVM_MIN_ALLOC_MMU_PAGES:
        fail(errno.EINVAL)


@own.ioctl(ioctls.KVM_GET_TSC_KHZ)
def get_tsc_khz(vm: Vm, caller: Caller, arg: int) -> int:
    return vm.tsc_khz


@own.ioctl(ioctls.KVM_SET_TSC_KHZ)
def set_tsc_khz(vm: Vm, caller: Caller, arg: int) -> None:
    """The frequency of vCPUs to come."""
    khz = arg & 0xFFFF_FFFF
    if khz >= max_khz(vm.native.host_khz):
        fail(errno.EINVAL)
    vm.tsc_khz = khz or vm.native.host_khz


TABLE: Final[Table[Vm]] = Table(
    Fd.VM,
    own,
    slots.table,
    dirty.table,
    coalesced.table,
    stats.vm_table,
    attributes.table,
    guest_memfd.table,
    caps.table,
    msr_filter.table,
    irqchip_ioctls.table,
    clock.table,
    eventfds.table,
    vfio.vm_table,
)
