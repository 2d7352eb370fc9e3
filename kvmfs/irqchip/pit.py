"""The i8254 (arch/x86/kvm/i8254.c): state only, nothing counts."""

from __future__ import annotations

import time
from typing import Final

from kvmfs.abi.irqchip import PitState, PitState2

_RESET_MODE: Final = 0xFF


class Pit:
    """As after kvm_pit_reset: three channels in no mode, only the speaker's gate closed."""

    def __init__(self, flags: int) -> None:
        self.config = flags
        self.reinject = True
        self._state = PitState2()
        for number, channel in enumerate(self._state.channels):
            channel.mode = _RESET_MODE
            channel.gate = number != 2
            self._load(number, 0)

    def _load(self, number: int, count: int) -> None:
        """pit_load_count: 0 means the full range."""
        channel = self._state.channels[number]
        channel.count = count or 0x10000
        channel.count_load_time = time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def get(self) -> PitState:
        return PitState(channels=self._state.channels)

    def set(self, state: PitState) -> None:
        self._state.channels = state.channels
        for number, channel in enumerate(state.channels):
            self._load(number, channel.count)

    def get2(self) -> PitState2:
        return PitState2(channels=self._state.channels, flags=self._state.flags)

    def set2(self, state: PitState2) -> None:
        self._state.flags = state.flags
        self.set(PitState(channels=state.channels))
