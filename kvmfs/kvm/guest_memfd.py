"""guest_memfd files (virt/kvm/guest_memfd.c of 6.12).

The fd answers as KVM's: fallocate to allocate or punch holes, a size, and nothing else. The memory is a memfd of our
own, mapped where a memslot binds a range of it. A binding does not keep the file alive: when the client's last fd goes,
slots lose their pages.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.layout import PAGE_SIZE
from kvmfs.abi.memory import CreateGuestMemfd
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.fallocate import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from kvmfs.kvm.mapping import Mapping

if TYPE_CHECKING:
    from kvmfs.kvm.slots import MemorySlot
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

_SIGN: Final = 1 << 63


@dataclass(slots=True)
class Binding:
    """Pages start to end - 1 of the file are the private side of `slot`."""

    start: int
    end: int
    slot: MemorySlot


class GuestMemfd:
    """A Node with a size; `size` in bytes is fixed at birth."""

    mode = stat.S_IFREG | 0o600

    def __init__(self, vm: Vm, number: int, size: int) -> None:
        self.vm = vm
        self.name = f"gmem{number}"
        self.size = size
        self._memfd = os.memfd_create("kvm-gmem", os.MFD_CLOEXEC)
        self._bindings: list[Binding] = []
        self._lock = threading.Lock()
        try:
            os.ftruncate(self._memfd, size)
        except OSError:
            os.close(self._memfd)
            raise

    @property
    def allocated(self) -> int:
        """Bytes of it that have pages."""
        return os.fstat(self._memfd).st_blocks * 512

    # Memslots, under the VM's slots lock

    def bind(self, slot: MemorySlot, offset: int) -> Mapping:
        """kvm_gmem_bind: make a range of the file the slot's private side. OSError(EINVAL)."""
        length = slot.npages * PAGE_SIZE
        if offset % PAGE_SIZE or offset + length > self.size:
            fail(errno.EINVAL)
        start = offset // PAGE_SIZE
        if any(start < binding.end and binding.start < start + slot.npages for binding in self._bindings):
            fail(errno.EINVAL)
        mapping = Mapping(self._memfd, offset, length)
        self._bindings.append(Binding(start, start + slot.npages, slot))
        return mapping

    def unbind(self, slot: MemorySlot) -> None:
        self._bindings = [binding for binding in self._bindings if binding.slot is not slot]

    # The node

    def ioctl(self, caller: Caller, cmd: int, arg: int) -> int:
        fail(errno.ENOTTY)

    def fallocate(self, caller: Caller, mode: int, offset: int, length: int) -> None:
        """kvm_gmem_fallocate. Guests see a hole's pages as 0 from then on; their translations lead to the file."""
        if not mode & FALLOC_FL_KEEP_SIZE or mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            fail(errno.EOPNOTSUPP)
        if offset % PAGE_SIZE or length % PAGE_SIZE:
            fail(errno.EINVAL)
        punch = bool(mode & FALLOC_FL_PUNCH_HOLE)
        if not punch and offset + length > self.size:
            fail(errno.EINVAL)
        if offset < self.size:
            fallocate(self._memfd, mode, offset, min(length, self.size - offset))
        self.vm.log.write("punch_hole" if punch else "fallocate", offset=offset, length=length)

    def released(self) -> None:
        """kvm_gmem_release: slots that are bound have no private memory any more."""
        with self.vm.slots_lock:
            bindings, self._bindings = self._bindings, []
            self.vm.memory.lose_gmem([binding.slot for binding in bindings])
        self.vm.gmems.remove(self)
        os.close(self._memfd)


@table.ioctl(ioctls.KVM_CREATE_GUEST_MEMFD)
def create_guest_memfd(vm: Vm, caller: Caller, arg: CreateGuestMemfd) -> int:
    if arg.flags:
        fail(errno.EINVAL)
    if arg.size == 0 or arg.size >= _SIGN or arg.size % PAGE_SIZE:
        fail(errno.EINVAL)
    with vm.lock:
        vm.gmem_count += 1
        number = vm.gmem_count - 1
    gmem = GuestMemfd(vm, number, arg.size)
    vm.gmems.append(gmem)
    try:
        return caller.install(gmem)
    except BaseException:
        gmem.released()
        raise
