"""The two i8259s (arch/x86/kvm/i8259.c)."""

from __future__ import annotations

from kvmfs.abi.irqchip import PicState


class Pic:
    """Master and slave, as after kvm_pic_init: reset, with the edge/level registers' masks of an EISA board."""

    def __init__(self) -> None:
        self.chips = [PicState(elcr_mask=0xF8), PicState(elcr_mask=0xDE)]

    def get(self, chip: int) -> PicState:
        return self.chips[chip]

    def set(self, chip: int, state: PicState) -> None:
        self.chips[chip] = PicState.from_buffer_copy(state)
