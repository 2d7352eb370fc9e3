"""A VM with compiled code behind it whose client is this very process: KVM_RUN without FUSE."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import Any

from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid import Cpuid2, CpuidEntry2
from kvmfs.abi.memory import UserspaceMemoryRegion2
from kvmfs.abi.run import Run
from kvmfs.abi.vcpu import Regs, Sregs
from kvmfs.abi.vm import EnableCap
from kvmfs.client.fds import eventfd_id
from kvmfs.kvm.caller import Backing, Kind, Node
from kvmfs.kvm.cpuid import supported_cpuid
from kvmfs.kvm.vm import create_vm
from kvmfs.kvm.words import SERVICE

PAGE = 4096
MAP_FIXED = 0x10
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MEMORY = 2 << 20  # guest memory, from gpa 0 on
CODE, STACK, DATA = 0x1000, 0x8000, 0x9000
TABLES = 0x10000
MMIO = 1 << 30  # a linear address that is mapped to itself, where there is no memory


class ThisProcess:
    """kvmfs.kvm.caller.Caller."""

    def __init__(self) -> None:
        self.tid = self.tgid = os.getpid()
        self.nodes: dict[int, Node] = {}
        self._files: list[tuple[int, int, int]] = []
        self._kept: list[Any] = []

    def memory(self, size: int, *, shared: bool = True) -> int:
        """The address of new memory, of a kind that can be mapped, or of one that cannot."""
        fd = os.memfd_create("memory")
        os.ftruncate(fd, size)
        pages = mmap.mmap(fd, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        self._kept.append(pages)
        self._files.append((address if shared else 0, size, fd))
        return address

    def map_file(self, size: int, at: int = 0) -> int:
        """The address of new memory that nobody but the test unmaps; `at`: in place of what is there."""
        fd = os.memfd_create("memory")
        os.ftruncate(fd, size)
        how = mmap.MAP_SHARED | (MAP_FIXED if at else 0)
        address = libc.mmap(at or None, size, mmap.PROT_READ | mmap.PROT_WRITE, how, fd, 0)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        self._files.append((address, size, fd))
        return int(address)

    def forget(self, address: int, now: int = 0) -> None:
        """What was mapped at `address` is there no more, but at `now` if it was moved."""
        for index, (start, size, fd) in enumerate(self._files):
            if start == address:
                self._files[index] = (now, size, fd)

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def getfd(self, number: int) -> int:
        return os.dup(number)

    def eventfd(self, number: int) -> tuple[int, int]:
        fd = os.dup(number)
        try:
            return fd, eventfd_id(fd)
        except OSError:
            os.close(fd)
            raise

    def schedstat(self, *, own: bool) -> int:
        return os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def node_of(self, number: int) -> Node | None:
        return self.nodes[number]

    def install(self, node: Node) -> int:
        self.nodes[len(self.nodes)] = node
        return len(self.nodes) - 1

    def backing(self, address: int, length: int) -> list[Backing]:
        for start, size, fd in self._files:
            if start <= address and address + length <= start + size:
                return [Backing(address, length, Kind.SHARED, os.dup(fd), address - start)]
        return [Backing(address, length, Kind.HOLE)]

    def adopt(self, address: int, length: int) -> int:
        raise NotImplementedError


class Machine:
    """One vCPU in 64-bit mode at CODE, MEMORY bytes and the 1 GiB above MMIO mapped one to one."""

    def __init__(
        self,
        code: str,
        *,
        kind: int = 0,
        irqchip: bool = False,
        shared: bool = True,
        ring: int = 0,
        client: ThisProcess | None = None,
    ) -> None:
        self.client = client or ThisProcess()
        self.vm = create_vm(kind=kind, client=os.getpid(), passthrough=True, reads=True)
        if ring:
            self.call(self.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.DIRTY_LOG_RING_ACQ_REL, args=(ring,)))
        if irqchip:
            self.call(self.vm, ioctls.KVM_CREATE_IRQCHIP)
        number = self.call(self.vm, ioctls.KVM_CREATE_VCPU)
        self.vcpu: Any = self.client.nodes[number]
        self.page: Run = self.vcpu.run
        self.memory = self.client.memory(MEMORY, shared=shared)
        self.set_slot(0, 0, self.memory, MEMORY)
        self.put(CODE, bytes.fromhex(code))
        for at, entry in (
            (0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x1008, TABLES + 0x3003), (0x2000, 0x83),
            (0x3000, MMIO | 0x83), (0x3008, MMIO + (2 << 20) | 0x83),
        ):  # fmt: skip
            self.put(TABLES + at, entry.to_bytes(8, "little"))
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(self.vcpu.enter)
        self.set_cpuid(self.vcpu)
        self.call(self.vcpu, ioctls.KVM_SET_SREGS, self._long_mode())
        self.set_regs(rip=CODE, rsp=STACK, rflags=2)

    def set_cpuid(self, vcpu: Any, changes: dict[int, dict[str, int]] | None = None) -> None:
        """KVM_SET_CPUID2: all that is supported, but for registers of leaves that are to be others."""
        entries = [CpuidEntry2.from_buffer_copy(entry) for entry in supported_cpuid().entries]
        for entry in entries:
            for name, value in (changes or {}).get(entry.function, {}).items():
                setattr(entry, name, value)
        table = ctypes.create_string_buffer(bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries)))
        vcpu.ioctl(self.client, ioctls.KVM_SET_CPUID2.number, ctypes.addressof(table))

    def _long_mode(self) -> Sregs:
        sregs = self.get(ioctls.KVM_GET_SREGS, Sregs)
        sregs.cr3, sregs.cr4, sregs.efer = TABLES, S.CR4_PAE, B.EFER_LME | B.EFER_LMA
        sregs.cr0 = S.CR0_PE | S.CR0_PG | S.CR0_ET | S.CR0_NE
        sregs.idt.limit = 0  # an exception is a triple fault
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            is_code = name == "cs"
            segment.base, segment.limit, segment.selector = 0, 0xFFFFFFFF, 8 if is_code else 16
            segment.type, segment.s, segment.present, segment.g = 11 if is_code else 3, 1, 1, 1
            segment.l, segment.db, segment.dpl = is_code, not is_code, 0
        return sregs

    def call(self, node: Any, row: ioctls.Ioctl, argument: Any = 0) -> int:
        address = argument if isinstance(argument, int) else ctypes.addressof(argument)
        return int(node.ioctl(self.client, row.number, address))

    def get(self, row: ioctls.Ioctl, kind: Any) -> Any:
        value = kind()
        self.call(self.vcpu, row, value)
        return value

    def put(self, gpa: int, data: bytes) -> None:
        ctypes.memmove(self.memory + gpa, data, len(data))

    def at(self, gpa: int, size: int) -> bytes:
        return ctypes.string_at(self.memory + gpa, size)

    def set_slot(self, slot: int, gpa: int, address: int, size: int, flags: int = 0, **more: int) -> None:
        self.call(
            self.vm,
            ioctls.KVM_SET_USER_MEMORY_REGION2,
            UserspaceMemoryRegion2(
                slot=slot, flags=flags, guest_phys_addr=gpa, memory_size=size, userspace_addr=address, **more
            ),
        )

    @property
    def regs(self) -> Regs:
        regs: Regs = self.get(ioctls.KVM_GET_REGS, Regs)
        return regs

    def set_regs(self, **values: int) -> None:
        regs = self.regs
        for name, value in values.items():
            setattr(regs, name, value)
        self.call(self.vcpu, ioctls.KVM_SET_REGS, regs)

    def run(self) -> int:
        """KVM_RUN: 0 or -errno."""
        while (result := self._enter(self.vcpu.context)) == SERVICE:
            self.vcpu.service(self.client)
        return int(result)

    @property
    def pio(self) -> Any:
        """The page of port data."""
        return (ctypes.c_uint8 * PAGE).from_address(self.vcpu.page + PAGE)


def finish(machine: Machine) -> int:
    """Complete the exit without running on."""
    machine.page.immediate_exit = 1
    result = machine.run()
    machine.page.immediate_exit = 0
    return result


def run_in_thread(machine: Machine) -> tuple[threading.Thread, list[int]]:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(machine.run()))
    thread.start()
    return thread, results
