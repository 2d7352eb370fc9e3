"""A whole processor with memory: 64-bit mode, identity-mapped by 2 MiB pages."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features, optable
from kvmfs.jit.cpu.block import TABLE_ENTRIES
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.mmu import tables
from kvmfs.jit.raw import s64, u64

RAM = 4 << 20
PAGE_TABLES = 0x1000
BLOCK_ARENA = 1 << 20


LACKING = ("FDP_EXCPTN_ONLY", "ZERO_FCS_FDS")  # "features" that say what is not kept


@functools.cache
def _opcodes() -> ctypes.Array:
    return optable.build_tables()


@functools.cache
def _function(name: str) -> Callable[..., int]:
    return build.function(name, 1)


class Block:
    """Zeroed page-aligned memory."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size)
        self._view = (ctypes.c_char * size).from_buffer(self._map)
        self.address = ctypes.addressof(self._view)


class Guest:
    """One vCPU with `size` bytes of memory at guest-physical 0, which is linear 0 too."""

    size = RAM

    def __init__(self) -> None:
        self.ram, self.cpu, self.vm = Block(self.size), Block(S.SIZE), Block(4096)
        self._tlb, self._table, self._arena = Block(M.TLB_BYTES), Block(8 * TABLE_ENTRIES), Block(BLOCK_ARENA)
        self._remote = Block(8192)
        pages = self.size >> 12
        self._touched = ctypes.create_string_buffer(b"\xff" * tables.touched_bytes(pages))
        record = tables.slot_record(
            0, pages, host=self.ram.address, client=self.ram.address, touched=ctypes.addressof(self._touched)
        )
        self._keep = [record, tables.table([(0, ctypes.addressof(record))]), tables.table([(0, 0)])]
        self._poke(self.vm.address + M.SLOTS, tables.address(self._keep[1]))
        self._poke(self.vm.address + M.ATTRIBUTES, tables.address(self._keep[2]))
        self[S.FUNCTIONS], self[S.VM], self[S.TLB_BASE] = build.load(), self.vm.address, self._tlb.address
        self[S.OPCODES] = ctypes.addressof(_opcodes())
        self[S.BLOCK_TABLE], self[S.REMOTE_CODE] = self._table.address, self._remote.address
        self[S.BLOCK_ARENA] = self[S.BLOCK_NEXT] = self._arena.address
        self[S.BLOCK_END] = self._arena.address + BLOCK_ARENA
        self[S.TSC_RATIO], self[S.MAXPHYADDR] = 1 << 32, 48
        for word in range(4):  # every feature
            self[S.FEATURES + 8 * word] = -1
        for name in LACKING:
            self[S.FEATURES + features.word(name)] &= ~features.mask(name)
        self.enter_long_mode()

    def _poke(self, address: int, value: int) -> None:
        ctypes.c_int64.from_address(address).value = s64(value)

    def __getitem__(self, field: int) -> int:
        return u64(ctypes.c_int64.from_address(self.cpu.address + field).value)

    def __setitem__(self, field: int, value: int) -> None:
        self._poke(self.cpu.address + field, value)

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(self.ram.address + address, size)

    def write(self, address: int, data: bytes) -> None:
        assert address + len(data) <= self.size
        ctypes.memmove(self.ram.address + address, data, len(data))

    def read_cpu(self, field: int, size: int) -> bytes:
        return ctypes.string_at(self.cpu.address + field, size)

    def write_cpu(self, field: int, data: bytes) -> None:
        ctypes.memmove(self.cpu.address + field, data, len(data))

    def words_cpu(self, field: int, count: int) -> list[int]:
        return [self[field + 8 * i] for i in range(count)]

    def share(self, other: Guest) -> None:
        """Be another processor of `other`'s machine."""
        self.vm, self.ram, self._others = other.vm, other.ram, other
        self[S.VM] = other.vm.address
        self.function("tlb_init")

    def map(self, address: int) -> None:
        """Map 1 GiB of guest-physical addresses at themselves; beyond RAM they are MMIO."""
        self.write(PAGE_TABLES + 0x1000 + 8 * (address >> 30), (address | 0x87).to_bytes(8, "little"))

    def answer(self, data: bytes) -> None:
        """Complete an MMIO read."""
        slot = S.MMIO_CACHE + 24 * self[S.MMIO_READS]
        self[slot], self[slot + 8] = self[S.MMIO_GPA], self[S.MMIO_SIZE]
        self.write_cpu(slot + 16, data)
        self[S.MMIO_READS] += 1

    def enter_long_mode(self) -> None:
        entries = [PAGE_TABLES + 0x1000 | 7, PAGE_TABLES + 0x2000 | 7]
        for level, entry in enumerate(entries):
            self.write(PAGE_TABLES + 0x1000 * level, entry.to_bytes(8, "little"))
        for i in range(RAM >> 21):
            self.write(PAGE_TABLES + 0x2000 + 8 * i, ((i << 21) | 0x87).to_bytes(8, "little"))
        self[S.CR0], self[S.CR3], self[S.CR4] = 0x80010033, PAGE_TABLES, S.CR4_PAE | S.CR4_OSFXSR | S.CR4_OSXMMEXCPT
        self[S.EFER] = S.EFER_SCE | S.EFER_LME | S.EFER_LMA | S.EFER_NX
        self.segment(S.CS, 0x08, 0xA09B)
        for seg in (S.DS, S.ES, S.SS, S.FS, S.GS):
            self.segment(seg, 0x10, 0xC093)
        self.segment(S.TR, 0, 0x8B)
        self[S.LDTR + S.ATTR] = 1 << 16
        self[S.RFLAGS] = 2
        self.function("tlb_init")
        self.derive()

    def segment(self, seg: int, selector: int, attributes: int) -> None:
        self[seg + S.SEL], self[seg + S.BASE], self[seg + S.LIMIT] = selector, 0, 0xFFFFFFFF
        self[seg + S.ATTR] = attributes

    def function(self, name: str) -> int:
        """Call a compiled function of the vCPU block alone."""
        return _function(name)(self.cpu.address)

    def derive(self) -> None:
        self.function("derive")

    def run(self) -> int:
        """Until an exit, which is returned."""
        return self.function("run")

    def step(self) -> int:
        """One instruction: EXIT_DEBUG, or what it left with."""
        self[S.SINGLE_STEP] = 1
        self.derive()
        reason = self.run()
        self[S.SINGLE_STEP] = 0
        return reason

    @property
    def rflags(self) -> int:
        """The whole register (cpu/flags.py)."""
        result, aux = self[S.FLAG_RESULT], self[S.FLAG_AUX]
        carry, overflow = aux >> 63, (aux >> 63 ^ aux >> 62) & 1
        parity = ((result ^ aux >> 8) & 0xFF).bit_count() & 1 ^ 1
        sign = (result >> 63 ^ aux) & 1
        lazy = carry | parity << 2 | (aux >> 3 & 1) << 4 | (result == 0) << 6 | sign << 7 | overflow << 11
        return self[S.RFLAGS] | lazy

    @rflags.setter
    def rflags(self, value: int) -> None:
        self[S.RFLAGS] = value & ~S.ARITHMETIC | 2
        carry, overflow = value & 1, value >> 11 & 1
        self[S.FLAG_RESULT] = 0 if value & S.ZF else 0x100
        fixes = (0 if value & S.PF else 1) << 8 | value >> 7 & 1
        self[S.FLAG_AUX] = carry << 63 | (carry ^ overflow) << 62 | (value >> 4 & 1) << 3 | fixes
