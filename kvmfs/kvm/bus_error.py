"""A client's file cut short under a guest that uses it: SIGBUS, which becomes EFAULT out of KVM_RUN.

In KVM the page would be gone from the guest's page tables, and the next access would fault and find nothing. Here the
processor stumbles over it in the middle of an instruction. The handler puts a page of zeros there so that the
instruction can end, and makes the vCPU leave; KVM_RUN fails with EFAULT, and from then on the memory is reached through
the client's page tables, which know what is there and what is not.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import ctypes
import errno
import mmap
import signal
from typing import TYPE_CHECKING, Final

from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.mmu.layout import SLOT_HOST, SLOT_NPAGES, SLOTS, TABLE_CAPACITY, TABLE_COUNT, TABLE_HEADER
from kvmfs.jit.raw import atomic_or, load64, store64, syscall, ult
from kvmfs.kvm.block import Block
from kvmfs.kvm.words import Cpu, Vm

if TYPE_CHECKING:
    from kvmfs.kvm.native import Native

SYS_MMAP, SYS_RT_SIGACTION, SYS_GETTID = 9, 13, 186
EINVAL = errno.EINVAL
SIGBUS: Final = int(signal.SIGBUS)
SI_ADDR: Final = 16  # in siginfo_t
PAGE_PROTECTION: Final = mmap.PROT_READ | mmap.PROT_WRITE
PAGE_KIND: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
SIGSET_SIZE: Final = 8
HUGE: Final = (1 << 12, 1 << 21, 1 << 30)

VCPUS, VCPU_COUNT = Vm.VCPUS, Vm.VCPU_COUNT
THREAD, BUS_ERROR = Cpu.THREAD, Cpu.BUS_ERROR


class Closure:
    """What the handler gets beside the kernel's arguments: the VM block, and what the signal did before (kernel's
    struct sigaction)."""

    VM, BEFORE, SIZE = 0, 8, 40


CLOSURE_VM, CLOSURE_BEFORE = Closure.VM, Closure.BEFORE


@compiled
def this_thread():
    return syscall(SYS_GETTID, 0, 0, 0, 0, 0, 0)


@compiled
def is_guest_memory(vm, address):
    """Whether a memslot's shared side is mapped at `address`."""
    table = load64(vm + SLOTS)
    records = table + TABLE_HEADER + 8 * load64(table + TABLE_CAPACITY)
    for index in range(load64(table + TABLE_COUNT)):
        record = load64(records + 8 * index)
        host = load64(record + SLOT_HOST) if record != 0 else 0
        if host != 0 and ult(address - host, load64(record + SLOT_NPAGES) << 12):
            return 1
    return 0


@compiled
def put_page(address):
    """Zeros in place of the page at `address`, or of the huge page: 1, or 0."""
    for size in HUGE:
        result = syscall(SYS_MMAP, address & -size, size, PAGE_PROTECTION, PAGE_KIND, -1, 0)
        if result != -EINVAL:  # a mapping of huge pages is not cut
            return 1 if result > 0 else 0
    return 0


def on_bus_error(number, information, context, closure):
    """The signal handler, in enter.py's group. What is not the guest's doing goes to who had the signal before."""
    vm, address, thread = load64(closure + CLOSURE_VM), load64(information + SI_ADDR), this_thread()
    for index in range(load64(vm + VCPU_COUNT)):
        s = load64(load64(vm + VCPUS) + 8 * index)
        running = load64(s + THREAD) == thread and load64(s + S.MODE) != 0
        if running and is_guest_memory(vm, address) and put_page(address):
            store64(s + BUS_ERROR, address)
            atomic_or(s + S.REQUEST, S.REQ_KICK)
            return 0
    syscall(SYS_RT_SIGACTION, SIGBUS, closure + CLOSURE_BEFORE, 0, SIGSET_SIZE, 0, 0)
    return 0


# Installing it -----


class _Action(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


SA_SIGINFO: Final = 4
_kept: list[object] = []


def install(native: Native, vm: int) -> None:
    """Have SIGBUS handled for the VM whose block is at `vm`: one a process, for as long as it lives."""
    closure = Block(mmap.PAGESIZE)
    closure[Closure.VM] = vm
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_void_p(closure.address + Closure.BEFORE)
    libc.syscall(SYS_RT_SIGACTION, SIGBUS, None, before, ctypes.c_size_t(SIGSET_SIZE))
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    # The kernel passes three arguments; this adds the fourth: mov rcx, closure; mov rax, handler; jmp rax
    target = native.address("on_bus_error")
    code.write(b"\x48\xb9" + closure.address.to_bytes(8, "little") + b"\x48\xb8" + target.to_bytes(8, "little"))
    code.write(b"\xff\xe0")
    entry = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if libc.mprotect(ctypes.c_void_p(entry), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "mprotect")
    if libc.sigaction(SIGBUS, ctypes.byref(_Action(handler=entry, flags=SA_SIGINFO)), None):
        raise OSError(ctypes.get_errno(), "sigaction")
    _kept.extend((closure, code))
