"""The I/O APIC (arch/x86/kvm/ioapic.c)."""

from __future__ import annotations

from typing import Final

from kvmfs.abi.irqchip import KVM_IOAPIC_NUM_PINS, IoapicState

DEFAULT_BASE_ADDRESS: Final = 0xFEC00000


class Ioapic:
    def __init__(self) -> None:
        self._state = IoapicState(base_address=DEFAULT_BASE_ADDRESS)
        for pin in range(KVM_IOAPIC_NUM_PINS):
            self._state.redirtbl[pin].fields.mask = 1

    def get(self) -> IoapicState:
        return self._state

    def set(self, state: IoapicState) -> None:
        self._state = IoapicState.from_buffer_copy(state)
