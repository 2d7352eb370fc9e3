"""PIC, I/O APIC and PIT as their ioctls see them. What runs is in chips.py and its parts."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kvmfs.abi.irqchip import (
    KVM_IOAPIC_NUM_PINS,
    KVM_PIT_FLAGS_HPET_LEGACY,
    KVM_PIT_SPEAKER_DUMMY,
    IoapicState,
    PicState,
    PitState,
    PitState2,
)
from kvmfs.abi.routing import IrqRoutingEntry
from kvmfs.irqchip.routes import build_table, default_routes
from kvmfs.irqchip.words import Board as Words

if TYPE_CHECKING:
    from kvmfs.irqchip.board import Board
    from kvmfs.kvm.native import Native

IOAPIC_DEFAULT_BASE_ADDRESS: Final = 0xFEC00000
IOAPIC_MASKED: Final = 1 << 16
ELCR_MASKS: Final = (0xF8, 0xDE)
NO_MODE: Final = 0xFF


class Chips:
    """The controllers of one VM, once KVM_CREATE_IRQCHIP has made them."""

    def __init__(self, native: Native, board: Board) -> None:
        self._native, self._board, self._block = native, board, board.block
        self.routes: list[IrqRoutingEntry] = []
        self.has_pit = False
        for number, mask in enumerate(ELCR_MASKS):
            self._block.write(Words.PICS + 16 * number, bytes(PicState(elcr_mask=mask)))
        ioapic = IoapicState(base_address=IOAPIC_DEFAULT_BASE_ADDRESS)
        for pin in range(KVM_IOAPIC_NUM_PINS):
            ioapic.redirtbl[pin].bits = IOAPIC_MASKED
        self._block.write(Words.IOAPIC, bytes(ioapic))
        self._block[Words.ON_EOI], self._block[Words.ON_SCAN] = (
            native.address("chips_eoi"),
            native.address("chips_scan"),
        )
        self.route(default_routes())

    def route(self, entries: list[IrqRoutingEntry]) -> None:
        """KVM_SET_GSI_ROUTING, checked."""
        with self._board.lock:
            self._board.publish(Words.ROUTES, build_table(entries))
            self.routes = entries

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._native.call("board_lock", self._board.address)
        try:
            yield
        finally:
            self._native.call("board_unlock", self._board.address)

    # PIC -----

    def get_pic(self, number: int) -> PicState:
        return PicState.from_buffer_copy(self._block.read(Words.PICS + 16 * number, ctypes.sizeof(PicState)))

    def set_pic(self, number: int, state: PicState) -> None:
        with self._locked():
            self._block.write(Words.PICS + 16 * number, bytes(state))
            self._native.call("pic_restored", self._board.address)

    # I/O APIC -----

    def get_ioapic(self) -> IoapicState:
        """Without the edges that have been delivered."""
        with self._locked():
            state = IoapicState.from_buffer_copy(self._block.read(Words.IOAPIC, ctypes.sizeof(IoapicState)))
            state.irr &= ~self._block[Words.IOAPIC_DELIVERED] & 0xFFFF_FFFF
            return state

    def set_ioapic(self, state: IoapicState) -> None:
        with self._locked():
            self._block.write(Words.IOAPIC, bytes(state))
            self._native.call("ioapic_restored", self._board.address)

    # PIT -----

    def create_pit(self, flags: int) -> None:
        """kvm_create_pit, kvm_pit_reset: three channels in no mode, only the speaker's gate closed."""
        state = PitState()
        for number, channel in enumerate(state.channels):
            channel.mode, channel.gate = NO_MODE, number != 2
        self._block[Words.PIT_REINJECT] = 1
        self._load_pit(state, 0)
        self._native.call("pit_reset_reinject", self._board.address)
        self._block[Words.SPEAKER] = bool(flags & KVM_PIT_SPEAKER_DUMMY)
        self._block[Words.PIT] = 1
        self.has_pit = True

    def get_pit(self) -> PitState:
        with self._locked():
            return PitState.from_buffer_copy(self._block.read(Words.PIT_CHANNELS, ctypes.sizeof(PitState)))

    def set_pit(self, state: PitState) -> None:
        self._load_pit(state, self._block[Words.PIT_FLAGS])

    def get_pit2(self) -> PitState2:
        return PitState2(channels=self.get_pit().channels, flags=self._block[Words.PIT_FLAGS])

    def set_pit2(self, state: PitState2) -> None:
        """Entering the HPET's legacy mode stops channel 0, but its mode stays to be come back to."""
        old = self._block[Words.PIT_FLAGS]
        entering = state.flags & KVM_PIT_FLAGS_HPET_LEGACY and not old & KVM_PIT_FLAGS_HPET_LEGACY
        self._load_pit(PitState(channels=state.channels), state.flags, stop=bool(entering))

    def _load_pit(self, state: PitState, flags: int, *, stop: bool = False) -> None:
        with self._locked():
            mode = state.channels[0].mode
            if stop:
                state.channels[0].mode = NO_MODE
            self._block.write(Words.PIT_CHANNELS, bytes(state))
            self._block[Words.PIT_FLAGS] = flags
            for number, channel in enumerate(state.channels):
                self._native.call("pit_load", self._board.address, number, channel.count)
            if stop:
                now = PitState.from_buffer_copy(self._block.read(Words.PIT_CHANNELS, ctypes.sizeof(PitState)))
                now.channels[0].mode = mode
                self._block.write(Words.PIT_CHANNELS, bytes(now))

    def set_reinject(self, reinject: bool) -> None:
        """kvm_pit_set_reinject."""
        if reinject and not self._block[Words.PIT_REINJECT]:
            self._native.call("pit_reset_reinject", self._board.address)
        self._block[Words.PIT_REINJECT] = reinject
        self._native.call("board_synchronize", self._board.address)
