"""The client's memory as compiled code reaches it: faulting pages in, and copying what cannot be mapped.

Fault resolution calls these with the vCPU out of the guest, so they may take as long as the client's userfaultfd
handler does. process_vm_readv and process_vm_writev go through the client's page tables as its own loads and stores
would: missing pages are faulted in, protections and userfaultfd are honoured, and all that can go wrong is EFAULT.

Faulting in must not change memory. For reading, one byte of the page is read. For writing, nothing of the sort
exists: writing back what was read would undo a store that the client makes in between. But the pages that we map are
shared, so there is no copy-on-write to break, and all that a write fault would find out is whether the client may write
there: that is asked of its mapping (PROCMAP_QUERY on /proc/PID/maps, Linux 6.11). Older kernels cannot be asked; there
a slot keeps the permission that its memory had when it was registered.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Any, Final

from kvmfs.jit.build import Group, compiled
from kvmfs.jit.mmu.layout import CLIENT
from kvmfs.jit.raw import I8, I64, PLAIN, load64, memset, store64, syscall
from kvmfs.kvm.client_maps import PROCMAP_QUERY
from kvmfs.kvm.words import Vm

group = Group("client_memory", __name__)

SYS_IOCTL: Final = 16
SYS_PROCESS_VM_READV: Final = 310
SYS_PROCESS_VM_WRITEV: Final = 311

# struct procmap_query of include/uapi/linux/fs.h
QUERY_SIZE: Final = 104
QUERY_ADDRESS: Final = 16
VMA_FLAGS: Final = 40
VMA_WRITABLE: Final = 2

EFAULT, EINTR, ESRCH, EPERM = errno.EFAULT, errno.EINTR, errno.ESRCH, errno.EPERM
ENOENT, ENOTTY = errno.ENOENT, errno.ENOTTY
VM_MAPS_FD = Vm.MAPS_FD


def _stack_space(size: int) -> Any:
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


iovecs = _stack_space(32)
query = _stack_space(QUERY_SIZE)


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
def is_writable(vm, client):  # type: ignore[no-untyped-def]
    """Whether the client has a writable mapping at `client`, as far as it can be known."""
    fd = load64(vm + VM_MAPS_FD)
    if fd == 0:
        return 1
    q = query()
    memset(q, 0, QUERY_SIZE)
    store64(q, QUERY_SIZE)
    store64(q + QUERY_ADDRESS, client)
    result = syscall(SYS_IOCTL, fd - 1, PROCMAP_QUERY, q, 0, 0, 0)
    if result < 0:
        return 0 if result == -ENOENT else 1
    return 1 if load64(q + VMA_FLAGS) & VMA_WRITABLE else 0


@group.add
def client_fault_in(vm, client, gfn, write):  # type: ignore[no-untyped-def]
    """Make the client's page at `client` present, for writing if `write`: 0 or -errno."""
    byte = iovecs()
    result = copy(SYS_PROCESS_VM_READV, vm, client, byte, 1)
    if result == 0 and write and not is_writable(vm, client):
        return -EFAULT
    return result
