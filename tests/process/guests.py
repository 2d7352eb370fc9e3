"""Small guests of real workers."""

from __future__ import annotations

import ctypes
import fcntl
import mmap

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.memory import UserspaceMemoryRegion
from kvmfs.abi.run import Run
from kvmfs.abi.vcpu import Regs, Sregs
from kvmfs.abi.vm import EnableCap
from tests.process.harness import create_vcpu, create_vm, map_run

LOAD = 0x1000


class Guest:
    """A VM with 64 KiB of memory and one vCPU in real mode at LOAD."""

    def __init__(self, kvm: int, code: bytes, *, slot_flags: int = 0, ring: int = 0) -> None:
        self.vm = create_vm(kvm)
        if ring:
            self.enable(Cap.DIRTY_LOG_RING_ACQ_REL, ring)
        self.memory = mmap.mmap(-1, 1 << 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory[LOAD : LOAD + len(code)] = code
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.set_slot(0, slot_flags, 0, len(self.memory), self.address)
        self.vcpu = create_vcpu(self.vm)
        self.page = map_run(self.vcpu)
        self.run = Run.from_buffer(self.page)
        sregs = Sregs()
        fcntl.ioctl(self.vcpu, ioctls.KVM_GET_SREGS.number, sregs)
        sregs.cs.base = sregs.cs.selector = 0
        fcntl.ioctl(self.vcpu, ioctls.KVM_SET_SREGS.number, bytes(sregs))
        fcntl.ioctl(self.vcpu, ioctls.KVM_SET_REGS.number, bytes(Regs(rip=LOAD, rflags=2)))

    @property
    def rip(self) -> int:
        regs = Regs()
        fcntl.ioctl(self.vcpu, ioctls.KVM_GET_REGS.number, regs)
        return int(regs.rip)

    def enable(self, cap: Cap, value: int) -> None:
        fcntl.ioctl(self.vm, ioctls.KVM_ENABLE_CAP.number, bytes(EnableCap(cap=cap, args=(value,))))

    def set_slot(self, slot: int, flags: int, gpa: int, size: int, address: int) -> None:
        region = UserspaceMemoryRegion(slot, flags, gpa, size, address)
        fcntl.ioctl(self.vm, ioctls.KVM_SET_USER_MEMORY_REGION.number, bytes(region))

    def set_data_base(self, base: int) -> None:
        """Where DS begins."""
        sregs = Sregs()
        fcntl.ioctl(self.vcpu, ioctls.KVM_GET_SREGS.number, sregs)
        sregs.ds.base = base
        fcntl.ioctl(self.vcpu, ioctls.KVM_SET_SREGS.number, bytes(sregs))
