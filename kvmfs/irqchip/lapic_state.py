"""A vCPU's local APIC as its ioctls see it: reset, KVM_GET_LAPIC, KVM_SET_LAPIC. What runs is in lapic.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kvmfs.abi import apic as A
from kvmfs.abi.msr_bits import X2APIC_ENABLE
from kvmfs.irqchip.words import Apic
from kvmfs.kvm.block import Block
from kvmfs.kvm.words import APIC_EVENT_INIT, Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.native import Native

APIC_VERSION: Final = 0x14
MASK32: Final = 0xFFFF_FFFF


class Lapic:
    """`state`: the vCPU's block, `board`: address of the VM's."""

    def __init__(self, native: Native, state: Block, board: int, vcpu_id: int) -> None:
        self._native, self._state, self._id = native, state, vcpu_id
        self._block = Block(Apic.SIZE)
        self.address = self._block.address
        self._block[Apic.VCPU], self._block[Apic.BOARD], self._block[Apic.ID] = state.address, board, vcpu_id
        self._block[Apic.LVT_COUNT] = 6
        self._block[Apic.TIMER_MODES] = A.APIC_LVT_TIMER_PERIODIC
        self._x2apic = False
        state[Cpu.APIC] = self.address

    def __getitem__(self, offset: int) -> int:
        """A 32-bit register."""
        return self._block[offset] & MASK32

    def __setitem__(self, offset: int, value: int) -> None:
        self._block[offset] = value & MASK32

    def _call(self, name: str, *arguments: int) -> int:
        return self._native.call(name, self._state.address, *arguments)

    # Events: other threads set them, too -----

    def take_events(self) -> int:
        """INIT and SIPI that wait, APIC_EVENT_*; they are the caller's to accept now."""
        return self._call("take_apic_events")

    def post_event(self, event: int) -> None:
        self._call("post_apic_event", event)

    @property
    def init_latched(self) -> bool:
        return bool(self._state[Cpu.APIC_EVENTS] & APIC_EVENT_INIT)

    @init_latched.setter
    def init_latched(self, latched: bool) -> None:
        self._call("post_apic_event" if latched else "drop_apic_event", APIC_EVENT_INIT)

    @property
    def sipi_vector(self) -> int:
        return self._block[Apic.SIPI_VECTOR]

    @sipi_vector.setter
    def sipi_vector(self, vector: int) -> None:
        self._block[Apic.SIPI_VECTOR] = vector

    def local_deliver(self, lvt: int) -> None:
        """kvm_apic_local_deliver: raise what the LVT says."""
        self._call("apic_local_deliver", lvt)

    # Set-up -----

    def allow(self, *, deadline_timer: bool, directed_eoi: bool) -> None:
        """kvm_vcpu_after_set_cpuid: timer modes, and the version register."""
        modes = A.APIC_LVT_TIMER_PERIODIC | (A.APIC_LVT_TIMER_TSCDEADLINE if deadline_timer else 0)
        self._block[Apic.TIMER_MODES] = modes
        self._set_version(directed_eoi)

    def set_lvt_count(self, count: int) -> None:
        """kvm_apic_after_set_mcg_cap: LVTCMCI is there, or not."""
        if count > self._block[Apic.LVT_COUNT]:
            self[A.APIC_LVTCMCI] = A.APIC_LVT_MASKED
        self._block[Apic.LVT_COUNT] = count
        self._set_version(bool(self[A.APIC_LVR] & A.APIC_LVR_DIRECTED_EOI))

    def _set_version(self, directed_eoi: bool) -> None:
        """kvm_apic_set_version."""
        directed = A.APIC_LVR_DIRECTED_EOI if directed_eoi else 0
        self[A.APIC_LVR] = APIC_VERSION | self._block[Apic.LVT_COUNT] - 1 << 16 | directed

    def reset(self, *, lint0_extint: bool, init: bool) -> None:
        """kvm_lapic_reset. `lint0_extint`: LINT0 takes the PIC's interrupts, as firmware would set it."""
        identity = self[A.APIC_ID] if init else self._id << 24
        version = self[A.APIC_LVR] & A.APIC_LVR_DIRECTED_EOI
        self._call("apic_stop_timer")
        self._block.write(0, bytes(A.KVM_APIC_REG_SIZE))
        self[A.APIC_ID] = identity
        if self._x2apic:
            self[A.APIC_LDR] = self._x2apic_ldr
        self._set_version(bool(version))
        lvts = range(A.APIC_LVTT, A.APIC_LVTERR + 1, 16)
        for at in (*lvts, *((A.APIC_LVTCMCI,) if self._block[Apic.LVT_COUNT] > len(lvts) else ())):
            self[at] = A.APIC_LVT_MASKED
        if lint0_extint:
            self[A.APIC_LVT0] = A.APIC_DM_EXTINT
        self[A.APIC_DFR], self[A.APIC_SPIV] = 0xFFFFFFFF, 0xFF
        for at in (Apic.TIMER_MODE, Apic.PERIOD, Apic.TARGET, Apic.TSC_DEADLINE, Apic.PV_EOI, Apic.PV_EOI_PENDING):
            self._block[at] = 0
        self._block[Apic.DIVIDER] = 2  # TDCR is 0
        self._call("apic_changed")

    def base_changed(self, old: int, new: int, enable: int) -> None:
        """__kvm_apic_set_base: enabling, and entering or leaving x2APIC mode, set the ID."""
        self._x2apic = bool(new & X2APIC_ENABLE)
        if (old ^ new) & (X2APIC_ENABLE | enable) and new & enable:
            self[A.APIC_ID] = self._id if self._x2apic else self._id << 24
            if self._x2apic:
                self[A.APIC_LDR] = self._x2apic_ldr
        self._call("apic_changed")

    @property
    def _x2apic_ldr(self) -> int:
        return self._id >> 4 << 16 | 1 << (self._id & 15)

    # Ioctls -----

    def set_tpr(self, value: int) -> None:
        self._call("apic_set_tpr", value)

    def get_state(self, *, x2apic_format: bool) -> A.LapicState:
        """KVM_GET_LAPIC. Without 32-bit IDs (KVM_CAP_X2APIC_API) the ID is where an xAPIC has it."""
        self[A.APIC_PROCPRI] = self._call("apic_priority")
        state = A.LapicState.from_buffer_copy(self._block.read(0, A.KVM_APIC_REG_SIZE))
        count = self._call("apic_current_count")
        state.regs[A.APIC_TMCCT : A.APIC_TMCCT + 4] = count.to_bytes(4, "little")
        if self._x2apic and not x2apic_format:
            state.regs[A.APIC_ID : A.APIC_ID + 4] = (self._id << 24 & MASK32).to_bytes(4, "little")
        return state

    def set_state(self, state: A.LapicState, *, x2apic_format: bool) -> bool:
        """KVM_SET_LAPIC: False when it has another's ID."""
        regs = bytearray(state)
        if self._x2apic:
            if x2apic_format and int.from_bytes(regs[A.APIC_ID : A.APIC_ID + 4], "little") != self._id:
                return False
            regs[A.APIC_ID : A.APIC_ID + 4] = self._id.to_bytes(4, "little")
            regs[A.APIC_LDR : A.APIC_LDR + 4] = self._x2apic_ldr.to_bytes(4, "little")
        for at in range(0, len(regs), 16):  # the other words are reserved, and compiled code relies on 0
            regs[at + 4 : at + 16] = bytes(12)
        directed = bool(self[A.APIC_LVR] & A.APIC_LVR_DIRECTED_EOI)
        self._call("apic_stop_timer")
        self._block.write(0, regs)
        self._set_version(directed)
        self._call("apic_restored")
        return True

    def read_msr(self, number: int) -> int | None:
        """None: #GP."""
        scratch = Block(8)
        return scratch[0] if self._call("apic_rdmsr", number, scratch.address) == 1 else None

    def write_msr(self, number: int, value: int) -> bool:
        return self._call("apic_wrmsr", number, value - (1 << 64) if value >> 63 else value) == 1

    @property
    def pv_eoi(self) -> int:
        """MSR_KVM_PV_EOI_EN."""
        return self._block[Apic.PV_EOI]

    @pv_eoi.setter
    def pv_eoi(self, value: int) -> None:
        self._block[Apic.PV_EOI] = value

    @property
    def vapic(self) -> int:
        return self._block[Apic.VAPIC]

    @vapic.setter
    def vapic(self, gpa: int) -> None:
        """KVM_SET_VAPIC_ADDR; 0: none."""
        self._block[Apic.VAPIC] = gpa
