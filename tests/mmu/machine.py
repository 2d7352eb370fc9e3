"""Compiled MMU functions over a machine made of raw memory: a vCPU block, a VM block, memslots."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from errno import EFAULT

from kvmfs.jit import build
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.mmu import tables
from kvmfs.jit.mmu.group import group
from kvmfs.jit.raw import PLAIN, s64, u64

from . import naive

PAGE = 4096
CLIENT_STRIDE = 1 << 40  # the client's address of slot n is (n + 1) times this
RULES = {
    "never": M.PRIVATE_NEVER,
    "attribute": M.PRIVATE_BY_ATTRIBUTE,
    "private bit": M.PRIVATE_BY_BIT,
    "shared bit": M.SHARED_BY_BIT,
}

_I64 = ctypes.c_int64
FAULT_IN = ctypes.CFUNCTYPE(_I64, _I64, _I64, _I64, _I64)
REMOTE = ctypes.CFUNCTYPE(_I64, _I64, _I64, _I64, _I64)
LOG = ctypes.CFUNCTYPE(_I64, _I64, _I64, _I64, _I64)
INJECT = ctypes.CFUNCTYPE(_I64, _I64, _I64, _I64)


@functools.cache
def function_table() -> ctypes.Array:
    """A function table that has this group only: the others need not compile for these tests."""
    table = (_I64 * build.TABLE_SLOTS)()
    if not PLAIN:
        group.fill()(ctypes.addressof(table))
    return table


@functools.cache
def function(name: str) -> Callable[..., int]:
    """A compiled function, or itself under NUMBA_DISABLE_JIT."""
    if PLAIN:
        return group.members[name]
    arity = group.members[name].py_func.__code__.co_argcount
    return ctypes.CFUNCTYPE(_I64, *[_I64] * arity)(function_table()[group.slot(name)])


class Block:
    """Raw, page-aligned memory of whole pages; words by byte offset."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, max(size, 1))
        self._buffer = (ctypes.c_char * len(self.map)).from_buffer(self.map)
        self.address = ctypes.addressof(self._buffer)

    def __getitem__(self, offset: int) -> int:
        return _I64.from_address(self.address + offset).value

    def __setitem__(self, offset: int, value: int) -> None:
        _I64.from_address(self.address + offset).value = s64(value)

    def read(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.address + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self.address + offset, data, len(data))


class Machine:
    """One vCPU over the slots, attributes and client of `memory`, whose contents are copied into mappings of its own.

    vcpu, vm: the blocks. calls: what was asked of the client. hook: called in each of these calls, if set.
    """

    def __init__(self, memory: naive.Memory | None = None, log_dirty: bool = True) -> None:
        self.memory = memory or naive.Memory([])
        self.vcpu, self.vm, self.tlb = Block(S.SIZE), Block(M.VM_SIZE), Block(M.TLB_BYTES)
        self.calls: list[tuple] = []
        self.hook: Callable[[], None] | None = None
        self.client_error = EFAULT
        self.pages_had = 1  # at most, when pages are wanted ahead
        self.log: list[tuple[int, int, int, int, int]] = []
        """gpa, access, outcome, slot, linear address."""
        self._functions = (FAULT_IN(self._fault_in), REMOTE(self._read), REMOTE(self._write), LOG(self._log))
        for field, callback in zip((M.FAULT_IN, M.REMOTE_READ, M.REMOTE_WRITE, M.LOG), self._functions, strict=True):
            self.vm[field] = ctypes.cast(callback, ctypes.c_void_p).value or 0
        self.vm[M.PRIVATE_MEMORY] = RULES[self.memory.rule]
        self.vm[M.PRIVATE_BIT] = self.memory.bit
        self.vcpu[S.VM] = self.vm.address
        self.vcpu[S.FUNCTIONS] = ctypes.addressof(function_table())
        self.vcpu[S.TLB_BASE] = self.tlb.address
        self.vcpu[S.MAXPHYADDR] = 46
        self.vcpu[S.MODE] = 1
        self.shared: list[Block | None] = []
        self.private: list[Block | None] = []
        self.dirty: list[Block] = []
        self.touched: list[Block] = []
        self.records: list[ctypes.Array] = []
        for number, slot in enumerate(self.memory.slots):
            self._add(number, slot, log_dirty)
        self.publish()
        self("tlb_init")

    def _add(self, number: int, slot: naive.Slot, log_dirty: bool) -> None:
        def block(data: bytearray | None) -> Block | None:
            if data is None:
                return None
            made = Block(slot.npages * PAGE)
            made.write(0, bytes(data))
            return made

        self.shared.append(block(slot.shared))
        self.private.append(block(slot.private))
        self.dirty.append(Block(tables.dirty_bytes(slot.npages)))
        self.touched.append(Block(tables.touched_bytes(slot.npages)))
        shared, private = self.shared[number], self.private[number]
        record = tables.slot_record(
            slot.base,
            slot.npages,
            host=0 if slot.remote or shared is None else shared.address,
            client=(number + 1) * CLIENT_STRIDE,
            private=private.address if private else 0,
            flags=(M.SLOT_READONLY if slot.readonly else 0)
            | (M.SLOT_HAS_GMEM if private else 0)
            | (M.SLOT_ANONYMOUS if slot.anonymous else 0),
            slot_id=number,
            touched=self.touched[number].address,
            dirty=self.dirty[number].address if log_dirty else 0,
        )
        self.records.append(record)

    def publish(self) -> None:
        """Tables of all slots and attributes."""
        self.slot_table = tables.table(
            (slot.base, ctypes.addressof(record)) for slot, record in zip(self.memory.slots, self.records, strict=True)
        )
        self.attribute_table = tables.table()
        for gfn, value in self.memory.attributes.items():
            self.attribute_table = tables.with_attributes(self.attribute_table, gfn, gfn + 1, value)
        self.vm[M.SLOTS] = tables.address(self.slot_table)
        self.vm[M.ATTRIBUTES] = tables.address(self.attribute_table)

    def __call__(self, name: str, *args: int) -> int:
        return function(name)(self.vcpu.address, *(s64(arg) for arg in args))

    # The client

    def _page(self, client: int) -> tuple[int, int]:
        return client // CLIENT_STRIDE - 1, client % CLIENT_STRIDE

    def _denied(self, number: int, offset: int, write: int) -> bool:
        slot, page = self.memory.slots[number], offset // PAGE
        return page in slot.missing or bool(write and page in slot.unwritable)

    def _enter(self, *call) -> None:
        assert self.vcpu[S.MODE] == 0, "the client is called while translations are held"
        self.calls.append(call)
        if self.hook:
            self.hook()

    def _fault_in(self, vm: int, client: int, host: int, request: int) -> int:
        number, offset = self._page(client)
        pages, write = request >> 1, request & 1
        self._enter("fault_in", self.memory.slots[number].base + offset // PAGE, write, *([pages] if pages > 1 else []))
        return -self.client_error if self._denied(number, offset, write) else min(pages, self.pages_had)

    def _read(self, vm: int, client: int, buffer: int, size: int) -> int:
        number, offset = self._page(client)
        self._enter("read", number, offset, size)
        if self._denied(number, offset, 0):
            return -EFAULT
        ctypes.memmove(buffer, self.shared[number].address + offset, size)
        return 0

    def _write(self, vm: int, client: int, buffer: int, size: int) -> int:
        number, offset = self._page(client)
        self._enter("write", number, offset, size)
        if self._denied(number, offset, 1):
            return -EFAULT
        ctypes.memmove(self.shared[number].address + offset, buffer, size)
        return 0

    def _log(self, vcpu: int, gpa: int, access: int, outcome: int) -> int:
        assert self.vcpu[S.MODE] == 1
        self.log.append((gpa, access, outcome, self.vcpu[S.LOG_SLOT] - 1, self.vcpu[S.XLAT_LINEAR]))
        return 0

    @property
    def faults(self) -> list[tuple[int, int, int]]:
        """What of the log is no success: gpa, access, outcome."""
        return [entry[:3] for entry in self.log if entry[2] not in (M.HAD_PAGE, M.WENT_REMOTE)]

    def inject(self, decide: Callable[[int, int], int] | None) -> None:
        """Have accesses (gpa, access) decided upon by INJECT_*."""
        self._inject = INJECT(lambda vcpu, gpa, access: decide(gpa, access)) if decide else None
        self.vm[M.INJECT] = ctypes.cast(self._inject, ctypes.c_void_p).value or 0 if self._inject else 0

    # Outcomes

    def place(self, host: int) -> naive.Outcome:
        """The naive name of a host address."""
        for side in ("shared", "private"):
            for number, block in enumerate(getattr(self, side)):
                if block and block.address <= host < block.address + len(block.map):
                    return ("host", number, side, host - block.address)
        raise AssertionError(f"host address {host:#x} is nobody's")

    def outcome(self, host: int) -> naive.Outcome:
        """What a function that returned `host` came to."""
        if host:
            return self.place(host)
        kind, leave, v = self.vcpu[S.XLAT_KIND], self.vcpu[S.LEAVE], self.vcpu
        if kind == M.TO_MMIO:
            return ("mmio", u64(v[S.XLAT_GPA]))
        if kind == M.TO_REMOTE:
            number, offset = self._page(v[S.XLAT_CLIENT])
            return ("remote", number, offset)
        if kind == M.TO_EXCEPTION:
            assert leave == S.LEAVE_EXCEPTION
            assert v[S.EXC_HAS_ERROR] == v[S.EXC_PENDING] == 1
            return ("exception", v[S.EXC_VECTOR], v[S.EXC_ERROR], u64(v[S.EXC_PAYLOAD]))
        if kind == M.TO_RETRY:
            assert leave == S.LEAVE_RETRY
            return ("retry",)
        assert kind == M.TO_FAULT
        assert leave == S.LEAVE_EXIT
        if v[S.EXIT] == S.EXIT_EFAULT:
            return ("efault", v[S.FAULT_ERRNO])
        assert v[S.EXIT] == S.EXIT_MEMORY_FAULT
        assert (v[S.FAULT_SIZE], v[S.FAULT_ERRNO]) == (PAGE, EFAULT)
        return ("memory_fault", v[S.FAULT_GPA], v[S.FAULT_FLAGS])

    def resolve(self, gpa: int, write: bool = False) -> naive.Outcome:
        self.vcpu[S.LEAVE] = S.LEAVE_NEXT
        return self.outcome(self("resolve", gpa, int(write)))

    def translate(self, la: int, access: naive.Access | None = None) -> naive.Outcome:
        self.vcpu[S.LEAVE] = S.LEAVE_NEXT
        return self.outcome(self("translate", la, flags_of(access or naive.Access())))

    def dirty_pages(self, number: int) -> set[int]:
        """Which pages of a slot its dirty bitmap has."""
        data = int.from_bytes(
            self.dirty[number].read(0, tables.dirty_bytes(self.memory.slots[number].npages)), "little"
        )
        return {page for page in range(data.bit_length()) if data >> page & 1}

    def set_cpu(self, cpu: naive.Cpu) -> None:
        """Give the vCPU block the state that the naive CPU has."""
        v = self.vcpu
        v[S.CR0] = S.CR0_PE | (S.CR0_PG if cpu.paging else 0) | (S.CR0_WP if cpu.wp else 0)
        bits = {
            S.CR4_PAE: cpu.pae,
            S.CR4_LA57: cpu.la57,
            S.CR4_PSE: cpu.pse,
            S.CR4_PGE: cpu.pge,
            S.CR4_SMEP: cpu.smep,
            S.CR4_SMAP: cpu.smap,
            S.CR4_PKE: cpu.pke,
        }
        v[S.CR4] = sum(bit for bit, on in bits.items() if on)
        v[S.EFER] = (S.EFER_LMA | S.EFER_LME if cpu.long else 0) | (S.EFER_NX if cpu.nxe else 0)
        v[S.HFLAGS] = S.MODE_CODE64 if cpu.long else S.MODE_CODE32
        v[S.RFLAGS] = 2 | (S.AC if cpu.ac else 0)
        v[S.CPL], v[S.CR3], v[S.PKRU], v[S.MAXPHYADDR] = cpu.cpl, cpu.cr3, cpu.pkru, cpu.maxphyaddr
        for i, value in enumerate(cpu.pdpte):
            v[S.PDPTE + 8 * i] = value
        self("select_tlb")


def flags_of(access: naive.Access) -> int:
    """The access argument of translate()."""
    kind = M.FETCH if access.fetch else M.WRITE if access.write else M.READ
    return kind | (M.IMPLICIT_SUPERVISOR if access.implicit else 0) | (M.STACK if access.stack else 0)
