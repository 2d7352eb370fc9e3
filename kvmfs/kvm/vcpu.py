"""A virtual CPU: its state as a client sees it, and its place in the compiled run loop.

The transport runs it: it calls the compiled function at `enter` with `context` for KVM_RUN, sets the bits `stop` in the
word at `request` to interrupt that, and calls service() when enter() says SERVICE. The run page is `memfd`, mapped here
at `page`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi import msr_index as M
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import CpuidEntry2
from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf7Ecx
from kvmfs.abi.debug import DB_VECTOR, PF_VECTOR
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.limits import VCPU_MMAP_SIZE
from kvmfs.abi.run import Run
from kvmfs.abi.vcpu import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED
from kvmfs.abi.vm import (
    KVM_X86_QUIRK_CD_NW_CLEARED,
    KVM_X86_QUIRK_FIX_HYPERCALL_INSN,
    KVM_X86_QUIRK_LINT0_REENABLED,
    KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_STUFF_FEATURE_MSRS,
    EnableCap,
)
from kvmfs.irqchip.lapic_state import Lapic
from kvmfs.jit import state as S
from kvmfs.kvm import (
    clock,
    events,
    fpu,
    guest_cpuid,
    guest_debug,
    lapic_ioctls,
    msrs,
    prefault,
    regs,
    service,
    stats,
    translate,
    tsc_ioctls,
)
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.clock import VcpuClock
from kvmfs.kvm.cpu_state import RFLAGS_FIXED, CpuState
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.dirty import RING_OFFSET
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.guest_cpuid import GuestCpuid
from kvmfs.kvm.hostcpu import host_cpu
from kvmfs.kvm.inspection import Seen
from kvmfs.kvm.mce import MachineCheck
from kvmfs.kvm.stat_table import VCPU_STATS, size_of
from kvmfs.kvm.tsc import GuestTsc
from kvmfs.kvm.words import IRQCHIP_KERNEL, IRQCHIP_NONE, PHASE_ENDING, Cpu
from kvmfs.kvm.words import Vm as Words
from kvmfs.kvm.xstate import FP

if TYPE_CHECKING:
    from kvmfs.kvm.vm import Vm

own: Table[Vcpu] = Table(Fd.VCPU)

RESET_CODE: Final = 0x9B  # present, code, readable, accessed
RESET_DATA: Final = 0x93
RESET_LDT: Final = 0x82
RESET_TSS: Final = 0x8B
DEFAULT_SIGNATURE: Final = 0x600  # in RDX when there is no CPUID
EVENTS: Final = (
    S.EXC_PENDING, S.EXC_INJECTED, S.INTR_INJECTED, S.INTR_SHADOW, S.INTR_REQUEST, S.NMI_INJECTED, S.NMI_PENDING,
    S.NMI_MASKED, S.DEBUG_DUE, S.HELD_DEBUG, S.EXC_PAYLOAD_USE,
)  # fmt: skip


class Vcpu:
    def __init__(self, vm: Vm, vcpu_id: int, index: int) -> None:
        self.vm = vm
        self.id = vcpu_id
        self.index = index
        self.name = f"vcpu{vcpu_id}"
        self.size = RING_OFFSET + vm.dirty.ring_size if vm.dirty.ring_size else VCPU_MMAP_SIZE
        self.memfd = os.memfd_create(f"kvm-vcpu:{vcpu_id}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, self.size)
        # A client may have this very file: it must not take our memory away.
        fcntl.fcntl(self.memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._page = mmap.mmap(self.memfd, self.size)
        self._page_pin = ctypes.c_char.from_buffer(self._page)
        self.page = ctypes.addressof(self._page_pin)
        self.run = Run.from_buffer(self._page)

        native = vm.native
        memory, at = vm.inspection.vcpu(index)
        self.state = CpuState(native.derive, memory, at)
        self.context = self.state.address
        self.enter = native.address("enter")
        self.request, self.stop = self.context + S.REQUEST, S.REQ_STOP
        self.caller = self.context + Cpu.CALLER

        self.counters = Block(size_of(VCPU_STATS), memory, at + Seen.COUNTERS)
        self.cpuid = GuestCpuid()
        self.pv_enforced = False
        self._cpuid_table: Block | None = None
        self.msr: dict[int, int] = {}
        self.mce = MachineCheck()
        self.is_reset_bsp = vm.bsp_id == vcpu_id
        has_apic = vm.block[Words.IRQCHIP] != IRQCHIP_NONE
        self.lapic = Lapic(native, self.state, vm.board.address, vcpu_id) if has_apic else None
        self.tsc = GuestTsc(self.state, native.rdtsc, vm.tsc_generation, native.host_khz)
        self.tsc.set_khz(vm.tsc_khz)
        self.clock = VcpuClock(self)
        self._create()
        native.prepare(self.context, vm.block.address)
        self.reset()

    # Birth -----

    def _create(self) -> None:
        """kvm_arch_vcpu_create: what reset does not touch."""
        state = self.state
        state[Cpu.ID], state[S.VCPU_INDEX] = self.id, self.index
        state[Cpu.RUN] = self.page
        state[Cpu.LAPIC] = self.lapic is not None
        waits = self.lapic is not None and not self.is_reset_bsp
        state[Cpu.MP_STATE] = KVM_MP_STATE_UNINITIALIZED if waits else KVM_MP_STATE_RUNNABLE
        state[Cpu.EVENT_LOG] = self.vm.log.enabled
        state[Cpu.STATS] = self.counters.address
        self.vm.dirty.give_ring(self)
        if self.vm.has_quirk(KVM_X86_QUIRK_STUFF_FEATURE_MSRS):
            self.msr[M.MSR_IA32_ARCH_CAPABILITIES] = msrs.ARCH_CAPABILITIES
            self.msr[M.MSR_PLATFORM_INFO] = B.MSR_PLATFORM_INFO_CPUID_FAULT
        self.msr[M.MSR_IA32_UCODE_REV] = 0x100000000
        state[S.MSR_EXITS] = not self.vm.msr_filter.is_empty
        state[Cpu.HLT_IN_GUEST] = self.vm.hlt_in_guest
        self.apply_quirks()
        self._apply_cpuid()

    def reset(self, *, init: bool = False) -> None:
        """kvm_vcpu_reset: the state after RESET, or after INIT (SDM vol. 3, table 10-1)."""
        state = self.state
        for at in range(S.GPR, S.GPR + 16 * 8, 8):
            state[at] = 0
        signature = self.cpuid.find(1)
        state[S.RDX] = signature.eax if signature else DEFAULT_SIGNATURE
        state[S.RIP], state.rflags = 0xFFF0, RFLAGS_FIXED
        for at in (S.CS, S.SS, S.DS, S.ES, S.FS, S.GS, S.LDTR, S.TR):
            state[at + S.SEL], state[at + S.BASE], state[at + S.LIMIT] = 0, 0, 0xFFFF
            state[at + S.ATTR] = RESET_DATA
        state[S.CS + S.SEL], state[S.CS + S.BASE], state[S.CS + S.ATTR] = 0xF000, 0xFFFF0000, RESET_CODE
        state[S.LDTR + S.ATTR], state[S.TR + S.ATTR] = RESET_LDT, RESET_TSS
        state[S.GDTR_BASE] = state[S.IDTR_BASE] = 0
        state[S.GDTR_LIMIT] = state[S.IDTR_LIMIT] = 0xFFFF
        caches = state[S.CR0] if init else S.CR0_NW | S.CR0_CD
        if self.vm.has_quirk(KVM_X86_QUIRK_CD_NW_CLEARED):
            caches = 0
        state[S.CR0] = S.CR0_ET | caches & (S.CR0_NW | S.CR0_CD)
        state[S.CR2] = state[S.CR3] = state[S.CR4] = state[S.CR8] = state[S.EFER] = 0
        state[S.DR6], state[S.DR7] = regs.DR6_ACTIVE_LOW, regs.DR7_FIXED_1
        for at in (*range(S.DR, S.DR + 32, 8), *EVENTS):
            state[at] = 0
        if self.lapic:
            self.lapic.reset(lint0_extint=self._lint0_extint, init=init)
        if init:
            self.flush_translations()
        else:
            state[S.XCR0] = FP
            state[S.PAT] = B.MSR_IA32_CR_PAT_DEFAULT
            state[S.MISC_ENABLE] = B.MSR_IA32_MISC_ENABLE_PEBS_UNAVAIL | B.MSR_IA32_MISC_ENABLE_BTS_UNAVAIL
            bsp = B.MSR_IA32_APICBASE_BSP if self.is_reset_bsp else 0
            state[S.APIC_BASE] = B.APIC_DEFAULT_PHYS_BASE | B.MSR_IA32_APICBASE_ENABLE | bsp
            fpu.reset(state)
            self.tsc.synchronize(None)
        state[Cpu.STEAL] = self.clock.msr = 0
        self.arm_breakpoints()

    @property
    def _lint0_extint(self) -> bool:
        return self.is_reset_bsp and self.vm.has_quirk(KVM_X86_QUIRK_LINT0_REENABLED)

    def close(self) -> None:
        """Undo the making of a vCPU that nobody ever had."""
        del self.run
        os.close(self.memfd)

    def __repr__(self) -> str:
        return f"<vCPU {self.id} at {self.state[S.RIP]:#x}>"

    # What other modules ask -----

    @property
    def has_run(self) -> bool:
        """kvm_vcpu_has_run: the guest has been entered."""
        return bool(self.state[Cpu.HAS_RUN])

    @property
    def single_stepping(self) -> bool:
        return bool(self.state[S.SINGLE_STEP])

    @property
    def max_virtual_bits(self) -> int:
        """Of an address that a register keeps, whatever the guest's paging mode (max_host_virt_addr_bits)."""
        return 57 if supported_cpuid().has(Leaf7Ecx.LA57) else 48

    def is_legal_gpa(self, gpa: int) -> bool:
        return not gpa >> self.cpuid.max_physical_bits

    def pv_has(self, feature: int) -> bool:
        """guest_pv_has: whether the guest may use a paravirtual feature (KVM_FEATURE_*)."""
        return not self.pv_enforced or bool(self.cpuid.pv_features >> feature & 1)

    def is_valid_cr4(self, cr4: int) -> bool:
        return not cr4 & self.state[S.CR4_RESERVED]

    @property
    def efer_reserved_by_kvm(self) -> int:
        return guest_cpuid.efer_reserved_by_kvm()

    def is_valid_efer(self, efer: int) -> bool:
        """kvm_valid_efer."""
        return not efer & self.state[S.EFER_RESERVED]

    def set_apic_base(self, value: int, host: bool) -> bool:
        """kvm_apic_set_base: whether the value was allowed."""
        state = self.state
        old = state[S.APIC_BASE]
        x2apic, enable = B.X2APIC_ENABLE, B.MSR_IA32_APICBASE_ENABLE
        reserved = (1 << 64) - (1 << self.cpuid.max_physical_bits) | 0x2FF
        if not self.cpuid.has(Leaf1Ecx.X2APIC):
            reserved |= x2apic
        if value & reserved or value & (x2apic | enable) == x2apic:
            return False
        if not host:
            leaves_x2apic = old & x2apic and value & (x2apic | enable) == enable
            skips_xapic = not old & enable and value & x2apic
            if leaves_x2apic or skips_xapic:
                return False
        state[S.APIC_BASE] = value
        if (old ^ value) & enable:
            self.update_cpuid_runtime()
        if self.lapic:
            self.lapic.base_changed(old, value, enable)
        return True

    @property
    def pv_eoi(self) -> int:
        """MSR_KVM_PV_EOI_EN."""
        return self.lapic.pv_eoi if self.lapic else 0

    @pv_eoi.setter
    def pv_eoi(self, value: int) -> None:
        if self.lapic:
            self.lapic.pv_eoi = value

    def set_cr8(self, value: int) -> None:
        """kvm_set_cr8; reserved bits leave it as it is."""
        if not value & regs.CR8_RESERVED:
            self.state[S.CR8] = value
            if self.lapic:
                self.lapic.set_tpr(value << 4)

    def queue_interrupt(self, vector: int) -> None:
        """kvm_queue_interrupt."""
        state = self.state
        state[S.INTR_INJECTED], state[S.INTR_SOFT], state[S.INTR_VECTOR] = 1, 0, vector

    def queue_exception(self, vector: int, error: int | None = None) -> None:
        """kvm_queue_exception, without the merging of a second one into a double fault."""
        state = self.state
        state[S.EXC_PENDING], state[S.EXC_INJECTED], state[S.EXC_VECTOR] = 1, 0, vector
        state[S.EXC_HAS_ERROR], state[S.EXC_ERROR] = error is not None, error or 0
        state[S.EXC_PAYLOAD_USE], state[S.EXC_PAYLOAD] = S.PAYLOAD_DONE, 0

    @property
    def has_payload(self) -> bool:
        """The pending exception has yet to bring its payload into CR2 or DR6."""
        use = self.state[S.EXC_PAYLOAD_USE]
        if use == S.PAYLOAD_BY_VECTOR:
            return bool(self.state[S.EXC_PENDING]) and self.state[S.EXC_VECTOR] in (DB_VECTOR, PF_VECTOR)
        return bool(use == S.PAYLOAD_APPLIES)

    def retire(self) -> None:
        """kvm_skip_emulated_instruction."""
        self.vm.native.retire(self.context)

    def end_run(self, result: int) -> None:
        """Have enter() return `result` to the client."""
        self.state[Cpu.RESULT], self.state[Cpu.PHASE] = result, PHASE_ENDING

    def arm_breakpoints(self) -> None:
        """To be called after any change of debug registers; does what derive() does."""
        self.vm.native.arm_breakpoints(self.context)

    def apply_quirks(self) -> None:
        """Tell the processor about those of the VM that it has to know."""
        has, personality = self.vm.has_quirk, 0
        if host_cpu().is_amd:
            personality |= S.PERSONALITY_VMMCALL
        if has(KVM_X86_QUIRK_FIX_HYPERCALL_INSN):
            personality |= S.PERSONALITY_PATCHES
        if has(KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS):
            personality |= S.PERSONALITY_MWAIT
        self.state[S.PERSONALITY] = personality

    def flush_translations(self) -> None:
        self.vm.native.flush(self.context)

    def reload_pdptrs(self) -> None:
        """load_pdptrs: the PDPTE registers from where CR3 points; they stay as they are if that is not right."""
        self.vm.native.reload_pdptes(self.context)

    def read_guest(self, gpa: int, into: ctypes.Structure | ctypes.c_uint32) -> bool:
        """Fill a struct from guest memory, with the vCPU at rest or in its own thread: whether there is memory."""
        size = ctypes.sizeof(into)
        return not self.vm.native.read_phys(self.context, gpa, size, ctypes.addressof(into))

    def write_guest(self, gpa: int, data: ctypes.Structure | ctypes.c_uint32) -> bool:
        """The other way; what is written is dirty."""
        size = ctypes.sizeof(data)
        return not self.vm.native.write_phys(self.context, gpa, size, ctypes.addressof(data))

    # CPUID -----

    def set_cpuid(self, cpuid: GuestCpuid) -> None:
        """kvm_set_cpuid: a new table, and what the guest may do changes."""
        self.cpuid = cpuid
        self._apply_cpuid()
        self.flush_translations()

    def update_cpuid_runtime(self) -> None:
        """kvm_update_cpuid_runtime."""
        guest_cpuid.update_runtime(self, self.cpuid)
        self._publish_cpuid()

    def _apply_cpuid(self) -> None:
        """kvm_vcpu_after_set_cpuid."""
        state, cpuid = self.state, self.cpuid
        if cpuid.entries:
            cr4 = guest_cpuid.cr4_reserved() | guest_cpuid.cr4_reserved(cpuid)
            efer = guest_cpuid.efer_reserved_by_kvm() | guest_cpuid.efer_reserved_by_guest(cpuid)
        else:  # until there is a table, the processor shows all that it has
            cr4 = guest_cpuid.cr4_reserved()
            efer = guest_cpuid.efer_reserved_by_kvm() | guest_cpuid.efer_reserved_by_guest(cpuid)
        state[S.IS_AMD] = cpuid.is_amd
        state[S.CR4_RESERVED], state[S.EFER_RESERVED] = cr4, efer
        state[S.MAXPHYADDR] = cpuid.max_physical_bits
        state[S.XCR0_SUPPORTED] = cpuid.supported_xcr0
        if self.lapic:
            self.lapic.allow(
                deadline_timer=cpuid.has(Leaf1Ecx.TSC_DEADLINE_TIMER),
                directed_eoi=cpuid.has(Leaf1Ecx.X2APIC) and self.vm.block[Words.IRQCHIP] != IRQCHIP_KERNEL,
            )
        self._publish_cpuid()

    def publish_pv_features(self) -> None:
        """Tell compiled hypercalls which of them the guest may use."""
        self.state[Cpu.PV_FEATURES] = self.cpuid.pv_features if self.pv_enforced else 0xFFFF_FFFF

    def _publish_cpuid(self) -> None:
        """Give the processor the entries: its CPUID instruction looks them up by itself."""
        entries = self.cpuid.entries
        shown = self.cpuid if entries else GuestCpuid(list(supported_cpuid().entries))
        for index, word in enumerate(shown.feature_words()):
            self.state[S.FEATURES + 8 * index] = word
        if entries:
            needed = ctypes.sizeof(CpuidEntry2) * len(entries)
            if self._cpuid_table is None or self._cpuid_table.size < needed:
                self._cpuid_table = Block(max(needed, 4096))
            self._cpuid_table.write(0, b"".join(map(bytes, entries)))
            self.state[S.CPUID_ENTRIES] = self._cpuid_table.address
        self.state[S.CPUID_COUNT] = len(entries)
        self.publish_pv_features()

    # The node -----

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        if caller.tgid != self.vm.client:
            fail(errno.EIO)
        if cmd >> 8 & 0xFF != ioctls.KVMIO:
            fail(errno.EINVAL)
        return TABLE.call(self, caller, cmd, arg)

    def service(self, caller: Caller) -> int | None:
        """Do what enter() came back for."""
        return service.serve(self, caller)

    def released(self) -> None:
        """The guest stays: KVM keeps a vCPU as long as its VM."""


@own.ioctl(ioctls.KVM_ENABLE_CAP)
def enable_cap(vcpu: Vcpu, caller: Caller, arg: EnableCap) -> None:
    """KVM_CAP_ENFORCE_PV_FEATURE_CPUID hides paravirtual features that the guest's CPUID does not name."""
    if arg.flags or arg.cap != Cap.ENFORCE_PV_FEATURE_CPUID:
        fail(errno.EINVAL)
    vcpu.pv_enforced = bool(arg.args[0])
    vcpu.publish_pv_features()


TABLE: Final[Table[Vcpu]] = Table(
    Fd.VCPU,
    own,
    regs.table,
    fpu.table,
    events.table,
    guest_debug.table,
    msrs.table,
    guest_cpuid.table,
    lapic_ioctls.table,
    tsc_ioctls.table,
    clock.vcpu_table,
    translate.table,
    prefault.table,
    stats.vcpu_table,
)
