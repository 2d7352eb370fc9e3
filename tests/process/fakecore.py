"""A core with the least that the processes around it need: a VM that makes vCPUs, vCPUs that do as the run page says.

fakecore_commands has the commands.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from typing import Any

from kvmfs.jit import build
from kvmfs.jit.raw import load8, load64, store32, store64, syscall
from numba import cfunc

from kvmfs.abi.exits import Exit
from kvmfs.abi.ioctls import KVM_CREATE_VCPU, KVM_GET_REGS, KVM_SET_REGS
from kvmfs.abi.run import Run
from kvmfs.kvm.block import Block
from kvmfs.worker.block import SERVICE as NEEDS_PYTHON
from tests.process import escape
from tests.process.fakecore_commands import (
    ADOPT,
    BACKING,
    BLOCK,
    BLOCKED,
    CRASH,
    EVENTFD,
    FAIL_AFTER_INSTALL,
    KINDS,
    LIE,
    NONSENSE,
    PROBE,
    REFUSED_BY_WORKER,
    RETURN,
    SERVICE,
)

# Only the reader loop is needed, not the whole of the vCPU.
build._groups = lambda: [build.Group.registry["worker"]]
build.is_warm = lambda: True

REQUEST, PAGE, NOWHERE, CALLER = 0, 8, 16, 24  # of a vCPU's context
IMMEDIATE_EXIT, EXIT_REASON, CR8 = Run.immediate_exit.offset, Run.exit_reason.offset, Run.cr8.offset
STOP = 2
SIZE = 3 * 4096
EXIT_IO, EXIT_INTR, EINTR = int(Exit.IO), int(Exit.INTR), errno.EINTR
FUTEX = 202


@cfunc("int64(int64)")
def enter(context):  # type: ignore[no-untyped-def]
    page = load64(context + PAGE)
    command = load64(page + CR8)
    if load8(page + IMMEDIATE_EXIT):
        store32(page + EXIT_REASON, EXIT_INTR)
        return -EINTR
    if command == BLOCK:
        store32(page + EXIT_REASON, BLOCKED)
        while load64(context + REQUEST) & STOP == 0:
            syscall(FUTEX, context + REQUEST, 128, 0, 0, 0, 0)
        store32(page + EXIT_REASON, EXIT_INTR)
        return -EINTR
    if command == SERVICE:
        return NEEDS_PYTHON
    if command == CRASH:
        store64(load64(context + NOWHERE), 0)
    store32(page + EXIT_REASON, EXIT_IO)
    return 0


class FakeVcpu:
    def __init__(self, number: int) -> None:
        self.name = f"vcpu{number}"
        self.size = SIZE
        self.memfd = os.memfd_create("run", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, SIZE)
        self._map = mmap.mmap(self.memfd, SIZE)
        self._pin = ctypes.c_char.from_buffer(self._map)
        self._context = Block(4096)
        self.page = self._context[PAGE] = ctypes.addressof(self._pin)
        self.enter, self.context = enter.address, self._context.address
        self.request, self.stop = self._context.address + REQUEST, STOP
        self.caller = self._context.address + CALLER
        self._regs = bytes(144)

    def ioctl(self, caller: Any, cmd: int, arg: int) -> int:
        if cmd == KVM_SET_REGS.number:
            self._regs = caller.read(arg, 144)
            return 0
        if cmd == KVM_GET_REGS.number:
            caller.write(arg, self._regs)
            return 0
        raise OSError(errno.EINVAL, "")

    def service(self, caller: Any) -> None:
        base = Run.apic_base.offset
        (count,) = struct.unpack_from("<Q", self._map, base)
        struct.pack_into("<QQ", self._map, CR8, RETURN, count + 1)

    def released(self) -> None:
        pass


class FakeVm:
    name = "vm"

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.vcpus: list[FakeVcpu] = []

    def ioctl(self, caller: Any, cmd: int, arg: int) -> int:
        if caller.tgid == 0:
            raise OSError(errno.EIO, "")
        if cmd == KVM_CREATE_VCPU.number:
            vcpu = FakeVcpu(arg)
            number: int = caller.install(vcpu)
            self.vcpus.append(vcpu)
            return number
        if cmd == FAIL_AFTER_INSTALL:
            caller.install(FakeVcpu(arg))
            raise OSError(errno.EDOM, "")
        if cmd == ADOPT:
            address, length, offset = struct.unpack("<QQQ", caller.read(arg, 24))
            memfd = caller.adopt(address, length)
            with mmap.mmap(memfd, length) as memory:
                (value,) = struct.unpack_from("<Q", memory, offset)
                struct.pack_into("<Q", memory, offset, value + 1)
            os.close(memfd)
            return 0
        if cmd == BACKING:
            address, length, offset = struct.unpack("<QQQ", caller.read(arg, 24))
            first, *others = caller.backing(address, length)
            for piece in (first, *others):
                if piece.fd >= 0:
                    os.close(piece.fd)
            answer = (KINDS.index(first.kind.name), first.length, first.offset, first.writable)
            caller.write(arg, struct.pack("<QQQQ", *answer))
            return 1 + len(others)
        if cmd == EVENTFD:
            fd, identity = caller.eventfd(arg)
            os.eventfd_write(fd, 1)
            os.close(fd)
            return int(identity)
        if cmd & 0xFFFF == PROBE:
            text = escape.report(caller.tgid)
            caller.write(arg, text)
            return len(text)
        if cmd & 0xFFFF == NONSENSE:
            caller._server.broker.tell("log")
            raise OSError(errno.EDOM, "")
        if cmd & 0xFFFF == LIE:
            text = escape.lies(caller._server.broker, caller.tgid)
            caller.write(arg, text)
            return len(text)
        raise OSError(errno.ENOTTY, "")

    def released(self) -> None:
        pass


def preload() -> None:
    pass


def create_vm(*, kind: int, client: int, passthrough: bool, reads: bool) -> FakeVm:
    if kind == REFUSED_BY_WORKER:
        raise OSError(errno.EDOM, "no such kind")
    return FakeVm(kind)
