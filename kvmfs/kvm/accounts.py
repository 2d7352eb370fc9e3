"""The scheduler's accounts of the threads that a VM's vCPUs run on, for compiled code to read (steal.py); and the MSR.

An account is /proc/PID/task/TID/schedstat, held open: how long the thread ran, how long it waited for a processor, both
in ns. A worker has no file system, so whoever carries its requests opens them (Caller.schedstat).
"""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvmfs.abi import para as P
from kvmfs.jit.layout import Layout
from kvmfs.kvm.block import Block
from kvmfs.kvm.msr_rules import Unsupported, reads, require, writes
from kvmfs.kvm.words import Cpu

if TYPE_CHECKING:
    from kvmfs.kvm.caller import Caller
    from kvmfs.kvm.vcpu import Vcpu

NO_FILE: Final = -1


class Account:
    """Of one thread: byte offsets."""

    _l = Layout()
    TID = _l.u64()
    FD = _l.u64()  # of its schedstat file, NO_FILE: it could not be opened
    LAST = _l.u64()  # run_delay when it was looked at last
    SIZE = 3 * 8


class Table:
    """COUNT accounts from FIRST on."""

    MAX: Final = 16384
    COUNT, FIRST = 0, 8
    SIZE: Final = FIRST + MAX * Account.SIZE


@cache
def are_kept() -> bool:
    """Whether this kernel has such accounts (CONFIG_SCHED_INFO; KVM's sched_info_on())."""
    return Path("/proc/self/schedstat").exists()


def run_delay(fd: int) -> int:
    """OSError(ESRCH): the thread has ended."""
    return int(os.pread(fd, 64, 0).split()[1])


class Accounts:
    """Of one VM. Any thread may add; the place of a thread that has ended is another's later."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._table = Block(Table.SIZE)
        self._files: dict[int, int] = {}  # by tid
        self._places: dict[int, int] = {}
        self._free = list(range(Table.FIRST, Table.SIZE, Account.SIZE))[::-1]
        self.address = self._table.address

    def provide(self, caller: Caller) -> None:
        """For the calling threads: the client's and our own."""
        with self._lock:
            self._sweep()
            for tid, own in ((caller.tid, False), (threading.get_native_id(), True)):
                if tid not in self._files:
                    self._add(tid, caller, own)

    def _sweep(self) -> None:
        for tid, fd in list(self._files.items()):
            try:
                if fd != NO_FILE:
                    run_delay(fd)
            except OSError:
                self._remove(tid)

    def _remove(self, tid: int) -> None:
        place, fd = self._places.pop(tid), self._files.pop(tid)
        self._table[place + Account.TID] = 0
        self._free.append(place)
        if fd != NO_FILE:
            os.close(fd)

    def _add(self, tid: int, caller: Caller, own: bool) -> None:
        fd, last = NO_FILE, 0
        try:
            fd = caller.schedstat(own=own)
            last = run_delay(fd)
        except OSError:
            pass  # no broker, or a /proc that shows nothing: what cannot be told is not counted
        if not self._free:
            self._remove(next(iter(self._files)))  # it will be back
        place = self._free.pop()
        self._files[tid], self._places[tid] = fd, place
        self._table[place + Account.FD], self._table[place + Account.LAST] = fd, last
        self._table[place + Account.TID] = tid  # now it is whole
        self._table[Table.COUNT] = max(self._table[Table.COUNT], (place - Table.FIRST) // Account.SIZE + 1)


# The MSR -----


@reads(P.MSR_KVM_STEAL_TIME)
def _read_steal_time(vcpu: Vcpu, number: int, host: bool) -> int:
    if not vcpu.pv_has(P.KVM_FEATURE_STEAL_TIME):
        raise Unsupported
    return vcpu.state[Cpu.STEAL]


@writes(P.MSR_KVM_STEAL_TIME)
def _write_steal_time(vcpu: Vcpu, number: int, value: int, host: bool) -> None:
    if not vcpu.pv_has(P.KVM_FEATURE_STEAL_TIME):
        raise Unsupported
    require(are_kept() and not value & P.KVM_STEAL_RESERVED_MASK)
    vcpu.state[Cpu.STEAL], vcpu.state[Cpu.STEAL_DUE] = value, 1
