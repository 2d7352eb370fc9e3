"""A VMM of a hundred lines: 64-bit guests, one vCPU, a serial port. What it knows of KVM it takes from kvmfs.abi."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

from kvmfs.abi import cpuid, ioctls, memory, vcpu
from kvmfs.abi.exits import Exit
from kvmfs.abi.run import Run

CODE, TABLES, SIZE = 0x1000, 0x2000, 2 << 20
SERIAL = 0x3F8


class Machine:
    """`device`: /dev/kvm, or another one. `code`: what the guest executes, from CODE on."""

    def __init__(self, device: Path, code: bytes) -> None:
        self.kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        self.vm = self._ioctl(self.kvm, ioctls.KVM_CREATE_VM, 0)
        self.memory = mmap.mmap(-1, SIZE)
        self.memory[CODE : CODE + len(code)] = code
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        region = memory.UserspaceMemoryRegion(memory_size=SIZE, userspace_addr=address)
        self._ioctl(self.vm, ioctls.KVM_SET_USER_MEMORY_REGION, region)
        self.vcpu = self._ioctl(self.vm, ioctls.KVM_CREATE_VCPU, 0)
        size = self._ioctl(self.kvm, ioctls.KVM_GET_VCPU_MMAP_SIZE, 0)
        self.page = mmap.mmap(self.vcpu, size)
        self.state = Run.from_buffer(self.page)
        self._start_in_long_mode()

    def close(self) -> None:
        del self.state
        self.page.close()
        for fd in (self.vcpu, self.vm, self.kvm):
            os.close(fd)

    @staticmethod
    def _ioctl(fd: int, row: ioctls.Ioctl, argument: Any) -> int:
        """`argument`: a number, or a ctypes object that KVM reads or writes."""
        if isinstance(argument, int):
            return fcntl.ioctl(fd, row.number, argument)
        return fcntl.ioctl(fd, row.number, argument, True)  # changed in place

    def _start_in_long_mode(self) -> None:
        table = (ctypes.c_uint8 * (ctypes.sizeof(cpuid.Cpuid2) + 256 * ctypes.sizeof(cpuid.CpuidEntry2)))()
        cpuid.Cpuid2.from_buffer(table).nent = 256
        self._ioctl(self.kvm, ioctls.KVM_GET_SUPPORTED_CPUID, table)
        self._ioctl(self.vcpu, ioctls.KVM_SET_CPUID2, table)
        for at, entry in ((0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x2000, 0x83)):
            self.memory[TABLES + at : TABLES + at + 8] = entry.to_bytes(8, "little")
        sregs = vcpu.Sregs()
        self._ioctl(self.vcpu, ioctls.KVM_GET_SREGS, sregs)
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000001, TABLES, 0x20, 0x500
        flat = {"limit": 0xFFFFFFFF, "present": 1, "s": 1, "g": 1}
        sregs.cs = vcpu.Segment(selector=8, type=11, l=1, **flat)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, vcpu.Segment(selector=16, type=3, db=1, **flat))
        self._ioctl(self.vcpu, ioctls.KVM_SET_SREGS, sregs)
        self._ioctl(self.vcpu, ioctls.KVM_SET_REGS, vcpu.Regs(rip=CODE, rsp=SIZE, rflags=2))

    def run(self) -> str:
        """Run until HLT: what the guest has written to the serial port."""
        written = bytearray()
        while True:
            self._ioctl(self.vcpu, ioctls.KVM_RUN, 0)
            state = self.state
            if state.exit_reason == Exit.HLT:
                return written.decode()
            if state.exit_reason != Exit.IO or state.io.port != SERIAL:
                raise RuntimeError(f"unexpected exit {state.exit_reason}")
            start = state.io.data_offset
            written += self.page[start : start + state.io.size * state.io.count]


HELLO = b"".join(b"\xb0" + bytes([letter]) + b"\x66\xba\xf8\x03\xee" for letter in b"hello\n") + b"\xf4"
"""mov al, letter; mov dx, 0x3f8; out dx, al; ... hlt"""


if __name__ == "__main__":
    machine = Machine(Path("/dev/kvm"), HELLO)
    print(machine.run(), end="")
