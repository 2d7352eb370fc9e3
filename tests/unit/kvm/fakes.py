"""A client whose memory is a dictionary of pages, and compiled functions that do as little as will do."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as mmu
from kvmfs.jit.mmu import tables

from kvmfs.abi.ioctls import Ioctl
from kvmfs.kvm.caller import Backing, Kind, Node
from kvmfs.kvm.system import System
from kvmfs.kvm.vcpu import Vcpu
from kvmfs.kvm.vm import Vm
from kvmfs.kvm.words import Cpu

PAGE = 4096
BASE = 0x7F00_0000_0000
CLIENT = 4242
BAD = 0xDEAD_0000


class FakeClient:
    """`caller` of every request. Memory below BASE + `size` exists; all else is EFAULT."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.tid = self.tgid = CLIENT
        self.memory = bytearray(size)
        self.fds: dict[int, Node | None] = {}
        self.kinds: list[Backing] | None = None
        self.adopted: list[tuple[int, int]] = []
        self._next = 10

    def read(self, address: int, size: int) -> bytes:
        at = address - BASE
        if at < 0 or at + size > len(self.memory):
            raise OSError(errno.EFAULT, "")
        return bytes(self.memory[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        self.read(address, len(data))
        self.memory[address - BASE : address - BASE + len(data)] = data

    def getfd(self, number: int) -> int:
        self.node_of(number)
        return os.open("/dev/null", os.O_RDONLY)

    def node_of(self, number: int) -> Node | None:
        if number not in self.fds:
            raise OSError(errno.EBADF, "")
        return self.fds[number]

    def install(self, node: Node) -> int:
        self._next += 1
        self.fds[self._next] = node
        return self._next

    def close(self, number: int) -> None:
        node = self.fds.pop(number)
        if node is not None and node not in self.fds.values():
            node.released()

    def backing(self, address: int, length: int) -> list[Backing]:
        if self.kinds is not None:
            return self.kinds
        return [Backing(address, length, Kind.HOLE)]

    def adopt(self, address: int, length: int) -> int:
        self.adopted.append((address, length))
        fd = os.memfd_create("adopted")
        os.ftruncate(fd, length)
        return fd

    # Making ioctls

    def put(self, struct: Any, at: int = BASE) -> int:
        self.write(at, bytes(struct))
        return at

    def call(self, node: Any, row: Ioctl, argument: Any = 0) -> int:
        """ioctl(2): the result. A struct is put into memory first, and has what is there afterwards."""
        if isinstance(argument, int):
            return int(node.ioctl(self, row.number, argument))
        at = self.put(argument)
        try:
            return int(node.ioctl(self, row.number, at))
        finally:
            data = self.read(at, ctypes.sizeof(argument))
            ctypes.memmove(ctypes.addressof(argument), data, len(data))

    def fails(self, node: Any, row: Ioctl, argument: Any = 0) -> int:
        """The errno of an ioctl, 0 if it succeeds."""
        try:
            self.call(node, row, argument)
        except OSError as error:
            return error.errno or -1
        return 0


class FakeNative:
    """kvmfs.kvm.native.Native."""

    host_khz = 1_000_000
    table = 0

    def __init__(self) -> None:
        self.flushes = 0
        self.ticks = 1_000_000
        self.present: Callable[[int, int], int] = lambda cpu, gpa: 0

    def address(self, name: str) -> int:
        return 0x1000 + len(name)

    def call(self, name: str, *arguments: int) -> int:
        """APIC events are kept; all else does nothing."""
        if name.endswith("_apic_event") or name == "take_apic_events":
            word = ctypes.c_uint64.from_address(arguments[0] + Cpu.APIC_EVENTS)
            before, event = word.value, arguments[-1]
            word.value = {"post_apic_event": before | event, "drop_apic_event": before & ~event}.get(name, 0)
            return before
        return 0

    def prepare(self, cpu: int, vm: int) -> None:
        ctypes.c_uint64.from_address(cpu + S.VM).value = vm

    def prepare_vm(self, vm: int) -> None:
        pass

    def derive(self, cpu: int) -> int:
        return 0

    def arm_breakpoints(self, cpu: int) -> int:
        return 0

    def retire(self, cpu: int) -> int:
        ctypes.c_uint64.from_address(cpu + S.RIP).value += ctypes.c_uint64.from_address(cpu + S.INSN_LENGTH).value
        return 0

    def flush_translations(self, vm: int) -> int:
        self.flushes += 1
        return 0

    def flush(self, cpu: int) -> int:
        return 0

    def request(self, cpu: int, bits: int) -> int:
        return 0

    def prefault(self, cpu: int, gpa: int) -> int:
        return self.present(cpu, gpa)

    def reload_pdptes(self, cpu: int) -> int:
        return 0

    def translate_debug(self, cpu: int, linear: int) -> int:
        return -1

    def read_phys(self, cpu: int, gpa: int, size: int, buffer: int) -> int:
        return -errno.EFAULT

    def write_phys(self, cpu: int, gpa: int, size: int, buffer: int) -> int:
        return -errno.EFAULT

    def take_dirty(self, bitmap: int, words: int, into: int) -> int:
        found = ctypes.string_at(bitmap, 8 * words)
        ctypes.memmove(into, found, 8 * words)
        ctypes.memset(bitmap, 0, 8 * words)
        return int(any(found))

    def clear_dirty(self, bitmap: int, words: int, mask: int) -> int:
        have, wanted = ((ctypes.c_uint64 * words).from_address(at) for at in (bitmap, mask))
        found = 0
        for i in range(words):
            found |= have[i] & wanted[i]
            have[i] &= ~wanted[i]
        return int(bool(found))

    def reset_ring(self, cpu: int, bitmaps: int, slots: int) -> int:
        return 0

    def add_zone(self, zones: int, address: int, size: int, pio: int) -> int:
        return 0

    def remove_zones(self, zones: int, address: int, size: int, pio: int) -> int:
        return 0

    def ring_reserve(self, ring: int, slots: int) -> int:
        return 0

    def ring_commit(self, ring: int, slot: int) -> int:
        return 0

    def rdtsc(self) -> int:
        self.ticks += 1000
        return self.ticks


def find_slot(vm: Vm, gfn: int) -> dict[str, int] | None:
    """What fault resolution would see of a guest page."""
    for first, address in tables.slots(vm.publisher.slots):
        words = (ctypes.c_int64 * (mmu.SLOT_RECORD // 8)).from_address(address)
        pages = words[mmu.SLOT_NPAGES // 8]
        if first <= gfn < first + pages:
            return {
                "first": first,
                "pages": pages,
                "host": words[mmu.SLOT_HOST // 8],
                "private": words[mmu.SLOT_PRIVATE // 8],
                "client": words[mmu.SLOT_CLIENT // 8],
                "flags": words[mmu.SLOT_FLAGS // 8],
                "dirty": words[mmu.SLOT_DIRTY // 8],
                "touched": words[mmu.SLOT_TOUCHED // 8],
            }
    return None


__all__ = ["BAD", "BASE", "CLIENT", "PAGE", "FakeClient", "FakeNative", "System", "Vcpu", "Vm", "find_slot"]
