"""The local APIC's registers (arch/x86/kvm/lapic.c, SDM vol. 3, ch. 11)."""

from __future__ import annotations

from typing import Final

from kvmfs.abi.apic import KVM_APIC_REG_SIZE, LapicState
from kvmfs.abi.msr_bits import X2APIC_ENABLE

APIC_ID: Final = 0x20
APIC_LVR: Final = 0x30
APIC_TASKPRI: Final = 0x80
APIC_PROCPRI: Final = 0xA0
APIC_LDR: Final = 0xD0
APIC_DFR: Final = 0xE0
APIC_SPIV: Final = 0xF0
APIC_ISR: Final = 0x100
APIC_ICR: Final = 0x300
APIC_ICR2: Final = 0x310
APIC_LVTT: Final = 0x320
APIC_LVT0: Final = 0x350
APIC_LVTERR: Final = 0x370
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390

APIC_VERSION: Final = 0x14
LVT_COUNT: Final = 6
LVT_MASKED: Final = 1 << 16
LVT_EXTINT: Final = 7 << 8
APIC_LVR_DIRECTED_EOI: Final = 1 << 24


class Lapic:
    """One vCPU's. `init_latched`, `sipi_pending`, `sipi_vector`: INIT and SIPI that wait for it."""

    def __init__(self, vcpu_id: int) -> None:
        self._id = vcpu_id
        self._regs = bytearray(KVM_APIC_REG_SIZE)
        self.init_latched = self.sipi_pending = False
        self.sipi_vector = 0
        self._x2apic = False

    def reset(self, *, lint0_extint: bool, init: bool) -> None:
        """kvm_lapic_reset. `lint0_extint`: LINT0 takes the PIC's interrupts, as firmware would set it."""
        identity = self[APIC_ID] if init else self._id << 24
        self._regs[:] = bytes(KVM_APIC_REG_SIZE)
        self[APIC_ID] = identity
        if self._x2apic:
            self[APIC_LDR] = self._x2apic_ldr
        self.set_version(directed_eoi=False)
        for at in range(APIC_LVTT, APIC_LVTERR + 1, 16):
            self[at] = LVT_MASKED
        if lint0_extint:
            self[APIC_LVT0] = LVT_EXTINT
        self[APIC_DFR], self[APIC_SPIV] = 0xFFFFFFFF, 0xFF

    def __getitem__(self, offset: int) -> int:
        """A 32-bit register."""
        return int.from_bytes(self._regs[offset : offset + 4], "little")

    def __setitem__(self, offset: int, value: int) -> None:
        self._regs[offset : offset + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def set_version(self, directed_eoi: bool) -> None:
        """kvm_apic_set_version."""
        self[APIC_LVR] = APIC_VERSION | (LVT_COUNT - 1) << 16 | (APIC_LVR_DIRECTED_EOI if directed_eoi else 0)

    @property
    def cr8(self) -> int:
        return self[APIC_TASKPRI] >> 4 & 15

    @cr8.setter
    def cr8(self, value: int) -> None:
        self[APIC_TASKPRI] = (value & 15) << 4
        self._update_ppr()

    def _update_ppr(self) -> None:
        """The processor priority: the higher of the task's and that of the highest interrupt in service."""
        in_service = max((bit for bit in range(256) if self[APIC_ISR + bit // 32 * 16] >> bit % 32 & 1), default=0)
        tpr = self[APIC_TASKPRI]
        self[APIC_PROCPRI] = tpr & 0xFF if tpr & 0xF0 >= in_service & 0xF0 else in_service & 0xF0

    def base_changed(self, old: int, new: int, enable: int) -> None:
        """__kvm_apic_set_base: enabling, and entering or leaving x2APIC mode, set the ID."""
        self._x2apic = bool(new & X2APIC_ENABLE)
        if (old ^ new) & (X2APIC_ENABLE | enable) and new & enable:
            self[APIC_ID] = self._id if self._x2apic else self._id << 24
            if self._x2apic:
                self[APIC_LDR] = self._x2apic_ldr

    @property
    def _x2apic_ldr(self) -> int:
        return self._id >> 4 << 16 | 1 << (self._id & 15)

    def get_state(self) -> LapicState:
        """KVM_GET_LAPIC; in x2APIC mode with the ID where an xAPIC has it (no KVM_CAP_X2APIC_API)."""
        state = LapicState.from_buffer_copy(self._regs)
        if self._x2apic:
            state.regs[APIC_ID : APIC_ID + 4] = (self._id << 24 & 0xFFFFFFFF).to_bytes(4, "little")
        return state

    def set_state(self, state: LapicState) -> None:
        """KVM_SET_LAPIC."""
        version = self[APIC_LVR]
        self._regs[:] = bytes(state)
        if self._x2apic:
            self[APIC_ID], self[APIC_LDR] = self._id, self._x2apic_ldr
        self[APIC_LVR] = version
        self[APIC_TMCCT] = 0
        self._update_ppr()
