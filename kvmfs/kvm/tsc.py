"""The guest's time stamp counter: the host's, scaled and shifted (arch/x86/kvm/x86.c, kvm_synchronize_tsc).

guest TSC = (host TSC * ratio >> 32) + offset. Clients write the TSC of each vCPU in turn and mean them to be equal: a
value within a second of what the last one written would be by now takes over that one's offset.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kvmfs.jit import state as S
from kvmfs.kvm.block import Block
from kvmfs.kvm.words import Cpu

RATIO_ONE: Final = 1 << 32
MAX_RATIO: Final = (1 << 40) - 1  # 8 bits before the point, as AMD's TSC_RATIO MSR has
TOLERANCE_PPM: Final = 250  # KVM's tsc_tolerance_ppm: so near the host's rate nothing is scaled
_MASK: Final = (1 << 64) - 1
_CALIBRATION_NS: Final = 20_000_000


def sample(rdtsc: Callable[[], int], clock: int = time.CLOCK_MONOTONIC_RAW) -> tuple[int, int]:
    """The host's TSC and a clock's nanoseconds at the same time: of a few tries, the one that took least."""

    def attempt() -> tuple[int, int, int]:
        before, tsc, after = time.clock_gettime_ns(clock), rdtsc(), time.clock_gettime_ns(clock)
        return after - before, tsc, (before + after) // 2

    return min(attempt() for _ in range(5))[1:]


def measure_khz(rdtsc: Callable[[], int]) -> int:
    """The host's TSC frequency, by CLOCK_MONOTONIC_RAW: takes 20 ms, and is a few parts in a million off."""

    start_tsc, start_ns = sample(rdtsc)
    time.sleep(_CALIBRATION_NS / 1e9)
    end_tsc, end_ns = sample(rdtsc)
    return (end_tsc - start_tsc) * 1_000_000 // (end_ns - start_ns)


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


@dataclass(slots=True)
class TscGeneration:
    """What was last written to any vCPU's TSC of a VM."""

    khz: int = 0
    written: int = 0
    at_ns: int = 0
    offset: int = 0
    by_client: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # kvm->arch.tsc_write_lock


def max_khz(host_khz: int) -> int:
    """kvm_caps.max_guest_tsc_khz: what no guest's rate reaches."""
    return min(0x7FFF_FFFF, host_khz * MAX_RATIO >> 32)


class GuestTsc:
    """Of one vCPU, whose block holds ratio and offset."""

    def __init__(self, state: Block, rdtsc: Callable[[], int], generation: TscGeneration, host_khz: int) -> None:
        self._state, self._rdtsc, self._generation, self._host_khz = state, rdtsc, generation, host_khz
        self.changed: Callable[[], None] = lambda: None  # called when ratio or offset are others
        self.set_khz(host_khz)

    def _scaled(self) -> int:
        return self._rdtsc() * self._state[S.TSC_RATIO] >> 32

    def now(self) -> int:
        return self.at(self._rdtsc())

    def at(self, host_tsc: int) -> int:
        """What the guest's counter shows when the host's shows that (kvm_read_l1_tsc)."""
        return ((host_tsc * self._state[S.TSC_RATIO] >> 32) + self._state[S.TSC_OFFSET]) & _MASK

    def set_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ, with 0 < khz < max_khz(): the counter's rate changes, and with it its value."""
        self.khz = self._state[Cpu.TSC_KHZ] = khz
        low, high = (self._host_khz * (1_000_000 + ppm) // 1_000_000 for ppm in (-TOLERANCE_PPM, TOLERANCE_PPM))
        self._state[S.TSC_RATIO] = RATIO_ONE if low <= khz <= high else khz * RATIO_ONE // self._host_khz
        self.changed()

    @property
    def offset(self) -> int:
        return self._state[S.TSC_OFFSET]

    def set_offset(self, value: int) -> None:
        """KVM_VCPU_TSC_OFFSET: what is written afterwards may be meant to agree with it."""
        with self._generation.lock:
            self._write((self._scaled() + value) & _MASK, value, _now())
            self._generation.by_client = True

    def set(self, value: int) -> int:
        """The guest writes its TSC: how much was added."""
        added = value - self.now()
        self.adjust(added)
        return added

    def adjust(self, added: int) -> None:
        self._state[S.TSC_OFFSET] = (self._state[S.TSC_OFFSET] + added) & _MASK
        self.changed()

    def synchronize(self, value: int | None) -> None:
        """The client writes the TSC; None: a vCPU is born."""
        with self._generation.lock:
            last, now_ns, wanted = self._generation, _now(), value or 0
            if wanted:
                expected = last.written + (now_ns - last.at_ns) * self.khz // 1_000_000
                together = last.by_client and abs(wanted - expected) < self.khz * 1000
            else:
                together = True
            together = together and last.khz == self.khz
            self._write(wanted, last.offset if together else (wanted - self._scaled()) & _MASK, now_ns)
            last.by_client = last.by_client or value is not None

    def _write(self, value: int, offset: int, now_ns: int) -> None:
        """__kvm_synchronize_tsc."""
        last = self._generation
        last.khz, last.written, last.at_ns, last.offset = self.khz, value, now_ns, offset
        self._state[S.TSC_OFFSET] = offset
        self.changed()
