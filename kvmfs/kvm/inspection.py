"""What others may see of a VM without asking it: its own memory, in a memfd that can be mapped read-only.

The VM block, the vCPU blocks and a page of counters beside each lie in one sparse file. Looking at them costs the VM
nothing, and cannot hold it up; there is no lock, so words that belong together may be a moment apart. Once the worker
has its mapping, the file is sealed: nobody else can ever write to it, nor change its size under a reader.

Byte offsets in the file:
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
import zlib
from typing import Final

import kvmfs
from kvmfs.abi.limits import KVM_MAX_VCPUS
from kvmfs.jit import state
from kvmfs.jit.layout import Layout
from kvmfs.jit.mmu import layout as mmu
from kvmfs.kvm.block import Block
from kvmfs.kvm.mapping import Mapping
from kvmfs.kvm.stat_table import VCPU_STATS, VM_STATS, size_of

PAGE: Final = 4096
MAGIC: Final = 0x3176_7366_6D76_6B00  # "\0kvmfsv1"
SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10  # F_SEAL_FUTURE_WRITE

VM_BLOCK: Final = 0
"""The VM block (kvmfs.jit.mmu.layout, kvmfs.kvm.words.Vm)."""


class Header:
    """Of the file; its words never change after the VM was made, but for FAULT_COUNT."""

    _l = Layout()
    _at = PAGE
    MAGIC = _at + _l.u64()
    LAYOUT = _at + _l.u64()  # of the program that wrote it, LAYOUT below: another program's offsets may be others
    KIND = _at + _l.u64()  # KVM_CREATE_VM's argument
    TSC_KHZ = _at + _l.u64()  # of the host's counter, in which times are
    TSC = _at + _l.u64()  # when it showed this,
    CLOCK = _at + _l.u64()  # the real time was this, in ns
    FAULT_COUNT = _at + _l.u64()  # records that were ever made; the last of them are in FAULTS
    COUNTERS = _at + _l.bytes(size_of(VM_STATS))  # the VM's own statistics (stat_table.py)
    assert _l.size <= PAGE


class Fault:
    """A record in FAULTS: what became of an access that left the fast path. COUNT is written last."""

    _l = Layout()
    COUNT = _l.u64()  # records up to and with this one
    START, END = _l.u64(), _l.u64()  # host TSC
    VCPU = _l.u64()  # id; NOBODY: an ioctl of the VM's
    LINEAR = _l.u64()  # NOT_LINEAR: the access was to a guest-physical address
    GPA = _l.u64()
    ACCESS = _l.u64()  # kvmfs.jit.mmu.layout: READ, WRITE, FETCH, ATTRIBUTE_PRIVATE
    SLOT = _l.u64()  # id + 1; 0: none
    OUTCOME = _l.u64()  # OUTCOMES below, by position
    RIP = _l.u64()
    RULE = _l.u64()  # what made it so was rule number this (kvmfs.kvm.inject), 0: no rule
    ORDINAL = _l.u64()  # the rule's so-manieth match
    DETAIL = _l.u64()  # of an ioctl that a rule is about: its number; 0 for fallocate
    SIZE = 128
    assert _l.size <= SIZE


NOT_LINEAR: Final = (1 << 64) - 1
NOBODY: Final = (1 << 64) - 1

WENT_TO_MMIO: Final = mmu.OUTCOMES
DELAYED: Final = mmu.OUTCOMES + 1
IOCTL: Final = mmu.OUTCOMES + 2
OUTCOMES: Final = {
    mmu.HAD_PAGE: "page",
    mmu.FAULT_DISAGREES: "memory fault: attribute",
    mmu.FAULT_NO_SLOT: "memory fault: no slot",
    mmu.FAULT_NO_GMEM: "memory fault: no guest_memfd",
    mmu.FAULT_NO_PAGE: "EFAULT",
    mmu.FAULT_INJECTED: "memory fault: injected",
    mmu.FAULT_POISONED: "EHWPOISON",
    mmu.GAVE_UP: "interrupted",
    mmu.TO_DO_AGAIN: "again",
    mmu.WENT_REMOTE: "copied",
    WENT_TO_MMIO: "MMIO",
    DELAYED: "delayed",
    IOCTL: "ioctl",
}
MEMORY_FAULTS: Final = frozenset(code for code, name in OUTCOMES.items() if name.startswith("memory fault"))

FAULTS: Final = 2 * PAGE
FAULT_ROOM: Final = 1 << 15
"""Records that are kept, the oldest overwritten first."""

VCPUS: Final = FAULTS + FAULT_ROOM * Fault.SIZE


class Seen:
    """Words beside a vCPU block, at these offsets from its start."""

    _l = Layout()
    _at = state.SIZE
    EXITED = _at + _l.u64(64)  # returns to the client by exit reason; NO_EXIT: KVM_RUN failed without one
    TRACE = _at + _l.u64()  # address of our mapping of a ring (kvmfs.kvm.ring), 0: nobody traces
    COUNTERS = _at + _l.bytes(size_of(VCPU_STATS))  # KVM's statistics of a vCPU (stat_table.py)
    STARTED = _at + _l.u64()  # host TSC at the beginning of the KVM_RUN that is traced
    assert _l.size <= PAGE


NO_EXIT: Final = 63

VCPU: Final = state.SIZE + PAGE
SIZE: Final = VCPUS + KVM_MAX_VCPUS * VCPU
assert VCPUS % PAGE == 0
assert mmu.VM_SIZE <= PAGE

_OFFSETS: Final = [(name, value) for name, value in sorted(vars(state).items()) if isinstance(value, int)]
_SIZES: Final = (mmu.VM_SIZE, VCPU, Fault.SIZE, FAULT_ROOM)
LAYOUT: Final = zlib.crc32(repr((kvmfs.__version__, _SIZES, VM_STATS, VCPU_STATS, _OFFSETS)).encode())
"""Differs when any offset does."""


class _Mapped(Mapping):
    """Goes with the last block in it."""

    def __del__(self) -> None:
        self.close()


class Inspection:
    """A VM's file, and the blocks in it."""

    def __init__(self, kind: int, khz: int, tsc: int) -> None:
        self.fd = os.memfd_create("kvmfs-inspection", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, SIZE)
        os.fchmod(self.fd, 0o400)
        self._map = _Mapped(self.fd, 0, SIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
        self.vm = Block(VCPUS, self._map, VM_BLOCK)
        self._used = 0
        header = self.vm
        header[Header.MAGIC], header[Header.LAYOUT], header[Header.KIND] = MAGIC, LAYOUT, kind
        header[Header.TSC_KHZ], header[Header.TSC], header[Header.CLOCK] = khz, tsc, time.time_ns()

    def __del__(self) -> None:
        os.close(self.fd)

    @property
    def counters(self) -> Block:
        """The VM's own statistics."""
        return Block(size_of(VM_STATS), self._map, Header.COUNTERS)

    def vcpu(self, index: int) -> tuple[Mapping, int]:
        """Where vCPU `index` lies, zeroed."""
        at = VCPUS + index * VCPU
        if index < self._used:  # of one that was not to be
            ctypes.memset(self.vm.address + at, 0, VCPU)
        self._used = max(self._used, index + 1)
        return self._map, at
