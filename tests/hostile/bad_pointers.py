"""A client that passes bad addresses: run under `kvmfs run`, prints {"fd ioctl address": errno name} as JSON.

Every ioctl of the ABI that takes an address is called on every kind of fd it belongs to; afterwards the same fds must
still work.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os

from kvmfs.abi import ioctls
from kvmfs.abi.ioctl import Argument, Fd

libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_uint64]


def ioctl(fd: int, number: int, argument: int) -> int:
    """The result, or -errno."""
    result = libc.ioctl(fd, number, argument)
    return -ctypes.get_errno() if result < 0 else result


def unmapped() -> int:
    """The address of a page that is gone, after one that is there."""
    two = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(two))
    libc.munmap(ctypes.c_void_p(address + mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE))
    two_pages.append(two)
    return address + mmap.PAGESIZE


two_pages: list[mmap.mmap] = []


def main() -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = ioctl(kvm, ioctls.KVM_CREATE_VM.number, 0)
    assert ioctl(vm, ioctls.KVM_CREATE_IRQCHIP.number, 0) == 0
    vcpu = ioctl(vm, ioctls.KVM_CREATE_VCPU.number, 0)
    assert vm >= 0 <= vcpu, (vm, vcpu)
    gone = unmapped()
    addresses = {
        "null": 0,
        "one": 1,
        "gone": gone,
        "last bytes of a page": gone - 2,
        "kernel": 0xFFFF_8000_0000_0000,
        "non-canonical": 0x8000_0000_0000_0000,
        "end": 0xFFFF_FFFF_FFFF_FFFF,
    }
    answers = {}
    for row in ioctls.ALL:
        if row.argument not in (Argument.IN, Argument.OUT, Argument.INOUT):
            continue
        for kind, fd in ((Fd.SYSTEM, kvm), (Fd.VM, vm), (Fd.VCPU, vcpu)):
            if kind not in row.on:
                continue
            for name, address in addresses.items():
                result = ioctl(fd, row.number, address)
                answers[f"{kind.name} {row.name} {name}"] = errno.errorcode[-result] if result < 0 else str(result)
    assert ioctl(kvm, ioctls.KVM_GET_API_VERSION.number, 0) == 12
    assert ioctl(vm, ioctls.KVM_CHECK_EXTENSION.number, 3) == 1
    registers = ctypes.create_string_buffer(144)
    assert ioctl(vcpu, ioctls.KVM_GET_REGS.number, ctypes.addressof(registers)) == 0
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
