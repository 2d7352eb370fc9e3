"""A VM seen through its inspection file: counters, registers, the fault log. The VM does not notice."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvmfs.abi.ioctls import Fd, lookup
from kvmfs.inspect import stats
from kvmfs.jit import state as S
from kvmfs.kvm import faults, inspection
from kvmfs.kvm.cpu_state import GENERAL, SEGMENTS, CpuState
from kvmfs.kvm.faults import Record
from kvmfs.kvm.inject.rules import FALLOCATE
from kvmfs.kvm.inspection import Header, Seen
from kvmfs.kvm.words import Cpu, Vm

_SEALED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_CONTROL: Final = (
    ("cr0", S.CR0), ("cr2", S.CR2), ("cr3", S.CR3), ("cr4", S.CR4), ("cr8", S.CR8), ("efer", S.EFER),
    ("apic_base", S.APIC_BASE), ("xcr0", S.XCR0), ("dr6", S.DR6), ("dr7", S.DR7),
)  # fmt: skip
MP_STATES: Final = ("runnable", "uninitialized", "init received", "halted", "sipi received", "stopped")


@dataclass(frozen=True, slots=True)
class Fault:
    """A record of the fault log: an access that left the fast path. `number`: of the VM's, from 1. `time`: seconds
    since 1970. `vcpu`, `gva`, `slot`: None if there is none. `access`: read, write or fetch. `rule`, `ordinal`: what
    made it so (kvmfs inject), else None. `ioctl`: its name where `outcome` is "ioctl"."""

    number: int
    time: float
    ns: int
    vcpu: int | None
    gva: int | None
    gpa: int
    access: str
    private: bool
    slot: int | None
    outcome: str
    rip: int
    rule: int | None
    ordinal: int | None
    ioctl: str | None

    @property
    def is_memory_fault(self) -> bool:
        """KVM_RUN ended with KVM_EXIT_MEMORY_FAULT; `private` is its flag."""
        return self.outcome.startswith("memory fault")


class _Words:
    """Words from an offset in the file on."""

    def __init__(self, words: memoryview, at: int) -> None:
        self._words, self._at = words, at

    def __getitem__(self, offset: int) -> int:
        word: int = self._words[self._at + offset >> 3]
        return word


class Vcpu(_Words):
    """A vCPU block, read-only; `id` as the client gave it."""

    @property
    def id(self) -> int:
        return self[Cpu.ID]

    @property
    def statistics(self) -> dict[str, int]:
        return {name: statistic(self) for name, statistic in stats.VCPU.items()}

    @property
    def state(self) -> str:
        if self[S.MODE]:
            return "in guest"
        mp_state = self[Cpu.MP_STATE]
        return MP_STATES[mp_state] if mp_state < len(MP_STATES) else str(mp_state)

    @property
    def exits(self) -> dict[int, int]:
        """Returns to the client by exit reason, where there were any."""
        counts = ((reason, self[Seen.EXITED + 8 * reason]) for reason in range(inspection.NO_EXIT))
        return {reason: count for reason, count in counts if count}

    @property
    def registers(self) -> dict[str, Any]:
        """As they are in the middle of things while the guest runs: RIP is that of the running block's start."""
        seen: Any = self  # has the words that these functions ask for
        registers: dict[str, Any] = {name: self[at] for name, at in GENERAL}
        registers["rip"] = self[S.RIP]
        registers["rflags"] = CpuState.rflags.fget(seen)  # type: ignore[attr-defined]
        registers |= {name: self[at] for name, at in _CONTROL}
        for name, at in SEGMENTS:
            registers[name] = {
                "selector": self[at + S.SEL],
                "base": self[at + S.BASE],
                "limit": self[at + S.LIMIT],
                "attributes": self[at + S.ATTR],
            }
        return registers


class Inspected:
    """A VM's inspection file, mapped. ValueError: it is not one, or of another version of kvmfs."""

    def __init__(self, fd: int) -> None:
        """`fd` is closed."""
        try:
            # Whoever holds the other end, a file that cannot shrink cannot kill us (SIGBUS).
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALED != _SEALED or os.fstat(fd).st_size != inspection.SIZE:
                raise ValueError("not an inspection file")
            self._map = mmap.mmap(fd, inspection.SIZE, prot=mmap.PROT_READ)
        except OSError as error:
            raise ValueError(f"not an inspection file: {error}") from None
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        self.vm = _Words(self._words, inspection.VM_BLOCK)
        if self.vm[Header.MAGIC] != inspection.MAGIC or self.vm[Header.LAYOUT] != inspection.LAYOUT:
            self.close()
            raise ValueError("served by another version of kvmfs")

    def __enter__(self) -> Inspected:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._words.release()
        self._map.close()

    @property
    def vcpus(self) -> list[Vcpu]:
        """In order of creation."""
        count = min(self.vm[Vm.VCPU_COUNT], (inspection.SIZE - inspection.VCPUS) // inspection.VCPU)
        return [Vcpu(self._words, inspection.VCPUS + index * inspection.VCPU) for index in range(count)]

    @property
    def statistics(self) -> dict[str, int]:
        """The VM's own and the sums of its vCPUs'."""
        total = dict.fromkeys(stats.VCPU, 0)
        for vcpu in self.vcpus:
            for name, value in vcpu.statistics.items():
                total[name] += value
        return total | {name: statistic(self.vm) for name, statistic in stats.VM.items()}

    def seconds(self, tsc: int) -> float:
        """When the host's counter showed this, since 1970."""
        vm = self.vm
        return vm[Header.CLOCK] / 1e9 + (tsc - vm[Header.TSC]) / max(vm[Header.TSC_KHZ], 1) / 1000

    def faults(self, after: int = 0) -> Iterator[Fault]:
        """Those with numbers above `after` that are still there, oldest first."""
        khz = max(self.vm[Header.TSC_KHZ], 1)
        for record in faults.read(self.vm, after):
            yield Fault(
                record.number, self.seconds(record.start), max(record.end - record.start, 0) * 1_000_000 // khz,
                record.vcpu, record.gva, record.gpa, record.access, record.private, record.slot, record.outcome,
                record.rip, record.rule, record.ordinal,
                _call(record) if record.outcome == "ioctl" else None,
            )  # fmt: skip


def _call(record: Record) -> str:
    """What the record of an ioctl is about."""
    if not record.detail:
        return FALLOCATE
    row = lookup(Fd.VM if record.vcpu is None else Fd.VCPU, record.detail)
    return row.name if row else f"{record.detail:#x}"
