"""The client's memory as compiled code reaches it: faulting pages in, and copying what cannot be mapped.

Fault resolution calls these with the vCPU out of the guest, so they may take as long as the client's userfaultfd
handler does. process_vm_readv and process_vm_writev go through the client's page tables as its own loads and stores
would: missing pages are faulted in, protections and userfaultfd are honoured, and all that can go wrong is EFAULT.

Faulting in must not change memory. For reading, one byte of the page is read. For writing, nothing of the sort
exists: writing back what was read would undo a store that the client makes in between. But the pages that we map are
shared, so there is no copy-on-write to break, and all that a write fault would find out is whether the client may write
there: that is asked of its mapping (PROCMAP_QUERY on /proc/PID/maps, Linux 6.11). Older kernels cannot be asked; there
a slot keeps the permission that its memory had when it was registered.

A guest that goes through anonymous memory of the client gets pages ahead, as the kernel's large folios would give them:
allocated by us in the memfd that the memory was adopted into, without a fault each, here or there. That is only right
where a missing page is nobody's business but the kernel's, so it must be seen not to be a userfaultfd handler's: a page
that was in nobody's page cache (mincore of our mapping) has just been faulted in through the client's page tables
(ru_minflt) without waiting for anybody (ru_nvcsw), and the pages ahead are of the same mapping of the client.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Final

from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.mmu.layout import CLIENT
from kvmfs.jit.raw import I8, I64, PLAIN, load64, lshr, memset, store64, syscall
from kvmfs.kvm.client_maps import PROCMAP_QUERY
from kvmfs.kvm.words import Vm

group = Group("client_memory", __name__)

SYS_IOCTL: Final = 16
SYS_MINCORE: Final = 27
SYS_MADVISE: Final = 28
SYS_GETRUSAGE: Final = 98
SYS_PROCESS_VM_READV: Final = 310
SYS_PROCESS_VM_WRITEV: Final = 311

# struct procmap_query of include/uapi/linux/fs.h
QUERY_SIZE: Final = 104
QUERY_ADDRESS: Final = 16
VMA_END: Final = 32
VMA_FLAGS: Final = 40
VMA_WRITABLE: Final = 2

# struct rusage
RUSAGE_THREAD: Final = 1
RUSAGE_SIZE: Final = 144
MINOR_FAULTS: Final = 64
WAITS: Final = 128

MADV_POPULATE_READ: Final = 22
MADV_POPULATE_WRITE: Final = 23

EFAULT, EINTR, ESRCH, EPERM = errno.EFAULT, errno.EINTR, errno.ESRCH, errno.EPERM
ENOENT, ENOTTY = errno.ENOENT, errno.ENOTTY
VM_MAPS_FD = Vm.MAPS_FD


def stack_space(size: int) -> Any:
    """An intrinsic: the address of `size` bytes on the stack of the function that it is compiled into."""
    if PLAIN:
        kept = []

        def plain() -> int:
            kept.append(ctypes.create_string_buffer(size))
            return ctypes.addressof(kept[-1])

        return plain
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def space(typingctx):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.ptrtoint(cgutils.alloca_once(builder, I8, size), I64)

        return types.int64(), codegen

    return space


iovecs = stack_space(32)
query = stack_space(QUERY_SIZE)
usage = stack_space(RUSAGE_SIZE)


@compiled
def copy(number, vm, client, buffer, size):  # type: ignore[no-untyped-def]
    """0, or -errno."""
    vectors = iovecs()
    store64(vectors, buffer)
    store64(vectors + 8, size)
    store64(vectors + 16, client)
    store64(vectors + 24, size)
    result = syscall(number, load64(vm + CLIENT), vectors, 1, vectors + 16, 1, 0)
    if result == size:
        return 0
    return -EINTR if result == -EINTR else -EFAULT  # also when the client is gone


@group.add
def client_read(vm, client, buffer, size):  # type: ignore[no-untyped-def]
    """Copy from the client's memory."""
    return copy(SYS_PROCESS_VM_READV, vm, client, buffer, size)


@group.add
def client_write(vm, client, buffer, size):  # type: ignore[no-untyped-def]
    """Copy to the client's memory."""
    return copy(SYS_PROCESS_VM_WRITEV, vm, client, buffer, size)


@compiled
def ask_mapping(vm, client, q):  # type: ignore[no-untyped-def]
    """Have the client's mapping at `client` described in `q`: 0, or -errno (ENOTTY and the like: cannot be asked)."""
    fd = load64(vm + VM_MAPS_FD)
    if fd == 0:
        return -ENOTTY
    memset(q, 0, QUERY_SIZE)
    store64(q, QUERY_SIZE)
    store64(q + QUERY_ADDRESS, client)
    return syscall(SYS_IOCTL, fd - 1, PROCMAP_QUERY, q, 0, 0, 0)


@compiled
def touch_page(vm, client):  # type: ignore[no-untyped-def]
    """Read a byte of the client's page: 0, or -errno."""
    byte = iovecs()
    return copy(SYS_PROCESS_VM_READV, vm, client, byte, 1)


@compiled
def is_resident(host):  # type: ignore[no-untyped-def]
    """Whether the page cache has the page of our mapping at `host`; yes if it cannot be told."""
    answer = iovecs()
    store64(answer, 1)
    syscall(SYS_MINCORE, host, PAGE_SIZE, answer, 0, 0, 0)
    return load64(answer) & 1


@compiled
def touch_missing_page(vm, client, host):  # type: ignore[no-untyped-def]
    """touch_page; 1 if that took nothing but the kernel giving a new page."""
    before, after = usage(), usage()
    missing = is_resident(host) == 0
    syscall(SYS_GETRUSAGE, RUSAGE_THREAD, before, 0, 0, 0, 0)
    result = touch_page(vm, client)
    syscall(SYS_GETRUSAGE, RUSAGE_THREAD, after, 0, 0, 0, 0)
    if result < 0:
        return result
    faulted = load64(after + MINOR_FAULTS) != load64(before + MINOR_FAULTS)
    return 1 if missing and faulted and load64(after + WAITS) == load64(before + WAITS) else 0


@group.add
def client_fault_in(vm, client, host, request):  # type: ignore[no-untyped-def]
    """Make the client's page at `client`, ours at `host`, present: how many pages from there on now are, or -errno.

    request: pages * 2 + write; pages: how many are wanted.
    """
    pages, write = request >> 1, request & 1
    plain = touch_missing_page(vm, client, host) if pages > 1 else touch_page(vm, client)
    if plain < 0 or (plain == 0 and write == 0):
        return plain if plain < 0 else 1
    q = query()
    asked = ask_mapping(vm, client, q)
    if asked == -ENOENT or (asked == 0 and write and load64(q + VMA_FLAGS) & VMA_WRITABLE == 0):
        return -EFAULT
    if plain == 0 or asked < 0:
        return 1
    left = lshr(load64(q + VMA_END) - client, 12)
    pages = pages if pages < left else left
    advice = MADV_POPULATE_WRITE if write else MADV_POPULATE_READ
    return pages if syscall(SYS_MADVISE, host, pages << 12, advice, 0, 0, 0) == 0 else 1
