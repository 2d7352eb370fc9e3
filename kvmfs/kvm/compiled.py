"""The real kvmfs.kvm.native.Native: compiled functions, and the memory that a vCPU needs beside its block.

Imported in workers only. A vCPU's own memory is reserved when it is made and touched when it first runs: a VM may have
a thousand that never do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.cpu import block as code
from kvmfs.jit.cpu import optable
from kvmfs.jit.layout import Layout
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm import client_memory, coalesced_ring, dirty_pages, enter, fault_log
from kvmfs.kvm.block import Block
from kvmfs.kvm.inject import access
from kvmfs.kvm.tsc import measure_khz

ARENA_SIZE: Final = 32 << 20
GROUPS: Final = (
    enter.group,
    client_memory.group,
    dirty_pages.group,
    coalesced_ring.group,
    fault_log.group,
    access.group,
)


class _Memory:
    """Offsets in the memory beside a vCPU block."""

    _l = Layout()
    TLB = _l.bytes(mmu.TLB_BYTES, align=4096)
    BLOCK_TABLE = _l.bytes(8 * code.TABLE_ENTRIES, align=4096)
    REMOTE_CODE = _l.bytes(2 * 4096, align=4096)
    ARENA = _l.bytes(ARENA_SIZE, align=4096)
    SIZE = _l.size


class Compiled:
    def __init__(self) -> None:
        self.table = build.load()
        self._callables: dict[str, Callable[..., int]] = {}
        self._slots = build.slots()
        self._opcodes: Any = optable.build_tables()
        self._kept: list[Block] = []
        for name, arity in (
            ("derive", 1),
            ("arm_breakpoints", 1),
            ("retire", 1),
            ("flush_translations", 1),
            ("request", 2),
            ("prefault", 2),
            ("translate_debug", 2),
            ("reload_pdptes", 1),
            ("read_phys", 4),
            ("write_phys", 4),
            ("take_dirty", 3),
            ("clear_dirty", 3),
            ("reset_ring", 3),
            ("add_zone", 4),
            ("remove_zones", 4),
            ("ring_reserve", 2),
            ("ring_commit", 2),
            ("log_reserve", 1),
        ):
            setattr(self, name, build.function(name, arity))
        self.rdtsc = build.function("host_tsc", 0)
        self.host_khz = measure_khz(self.rdtsc)

    derive: Callable[[int], int]
    arm_breakpoints: Callable[[int], int]
    retire: Callable[[int], int]
    flush_translations: Callable[[int], int]
    request: Callable[[int, int], int]
    prefault: Callable[[int, int], int]
    reload_pdptes: Callable[[int], int]
    translate_debug: Callable[[int, int], int]
    read_phys: Callable[[int, int, int, int], int]
    write_phys: Callable[[int, int, int, int], int]
    take_dirty: Callable[[int, int, int], int]
    clear_dirty: Callable[[int, int, int], int]
    reset_ring: Callable[[int, int, int], int]
    add_zone: Callable[[int, int, int, int], int]
    remove_zones: Callable[[int, int, int, int], int]
    ring_reserve: Callable[[int, int], int]
    ring_commit: Callable[[int, int], int]
    log_reserve: Callable[[int], int]

    def address(self, name: str) -> int:
        return int(ctypes.c_int64.from_address(self.table + 8 * self._slots[name]).value)

    def call(self, name: str, *arguments: int) -> int:
        function = self._callables.get(name)
        if function is None:
            function = self._callables[name] = build.function(name, len(arguments))
        return function(*arguments)

    def flush(self, cpu: int) -> int:
        return self.request(cpu, S.REQ_TLB_FLUSH)

    def prepare(self, cpu: int, vm: int) -> None:
        memory = Block(_Memory.SIZE)
        self._kept.append(memory)
        for at, value in (
            (S.FUNCTIONS, self.table),
            (S.VM, vm),
            (S.OPCODES, ctypes.addressof(self._opcodes)),
            (S.TLB_BASE, memory.address + _Memory.TLB),
            (S.BLOCK_TABLE, memory.address + _Memory.BLOCK_TABLE),
            (S.REMOTE_CODE, memory.address + _Memory.REMOTE_CODE),
            (S.BLOCK_ARENA, memory.address + _Memory.ARENA),
            (S.BLOCK_NEXT, memory.address + _Memory.ARENA),
            (S.BLOCK_END, memory.address + _Memory.ARENA + ARENA_SIZE),
        ):
            ctypes.c_uint64.from_address(cpu + at).value = value

    def prepare_vm(self, vm: int) -> None:
        """Tell fault resolution how to reach the client, and where to log."""
        for at, name in (
            (mmu.FAULT_IN, "client_fault_in"),
            (mmu.REMOTE_READ, "client_read"),
            (mmu.REMOTE_WRITE, "client_write"),
            (mmu.LOG, "log_access"),
        ):
            ctypes.c_uint64.from_address(vm + at).value = self.address(name)


@cache
def compiled() -> Compiled:
    """One a process."""
    return Compiled()
