"""KVM_IRQFD and KVM_IOEVENTFD (virt/kvm/eventfd.c)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvmfs.abi import ioctls, routing
from kvmfs.abi.ioctls import Fd
from kvmfs.abi.routing import Ioeventfd, Irqfd
from kvmfs.irqchip import words as W
from kvmfs.kvm.block import Block
from kvmfs.kvm.caller import Caller
from kvmfs.kvm.dispatch import Table, fail
from kvmfs.kvm.words import IRQCHIP_KERNEL, IRQCHIP_NONE
from kvmfs.kvm.words import Vm as Words

if TYPE_CHECKING:
    from kvmfs.irqchip.board import Board
    from kvmfs.kvm.vm import Vm

table: Table[Vm] = Table(Fd.VM)

MAX_IOEVENTFDS: Final = 1000  # NR_IOBUS_DEVS
LENGTHS: Final = (0, 1, 2, 4, 8)


@dataclass(frozen=True)
class _Ioevent:
    port: bool
    address: int
    length: int
    data: int | None
    eventfd: int  # the eventfd's id
    fd: int

    def collides(self, other: _Ioevent) -> bool:
        """ioeventfd_check_collision."""
        if self.port != other.port or self.address != other.address:
            return False
        if not self.length or not other.length:
            return True
        return self.length == other.length and (None in (self.data, other.data) or self.data == other.data)


@dataclass(frozen=True)
class _Irqfd:
    index: int
    gsi: int
    eventfd: int
    fd: int
    resample_fd: int | None


class Eventfds:
    """Those of one VM."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._ioevents: list[_Ioevent] = []
        self._irqfds: list[_Irqfd] = []

    # Writes of the guest -----

    def assign_ioevent(self, event: _Ioevent) -> None:
        """OSError: EEXIST, ENOSPC. Takes over event.fd when it succeeds."""
        with self._board.lock:
            if any(event.collides(other) for other in self._ioevents):
                fail(errno.EEXIST)
            if len(self._ioevents) >= MAX_IOEVENTFDS:
                fail(errno.ENOSPC)
            self._publish_ioevents([*self._ioevents, event])

    def deassign_ioevent(self, event: _Ioevent) -> None:
        """OSError(ENOENT)."""
        with self._board.lock:
            for mine in self._ioevents:
                key = (mine.port, mine.address, mine.length, mine.data, mine.eventfd)
                if key == (event.port, event.address, event.length, event.data, event.eventfd):
                    self._publish_ioevents([other for other in self._ioevents if other is not mine])
                    os.close(mine.fd)
                    return
        fail(errno.ENOENT)

    def _publish_ioevents(self, events: list[_Ioevent]) -> None:
        size, block = W.Ioevent.SIZE, Block(8 + W.Ioevent.SIZE * len(events))
        block[0] = len(events)
        for number, event in enumerate(events):
            at = 8 + size * number
            block[at + W.Ioevent.PORT], block[at + W.Ioevent.ADDRESS] = event.port, event.address
            block[at + W.Ioevent.LENGTH], block[at + W.Ioevent.FD] = event.length, event.fd
            block[at + W.Ioevent.MATCHES] = event.data is not None
            block[at + W.Ioevent.DATA] = event.data or 0
        self._board.publish(W.Board.IOEVENTS, block)
        self._ioevents = events

    # Interrupts to the guest -----

    def assign_irqfd(self, gsi: int, fd: int, eventfd: int, resample_fd: int | None) -> None:
        """OSError(EBUSY): that eventfd raises a GSI already. Takes over the fds when it succeeds."""
        with self._board.lock:
            if any(other.eventfd == eventfd for other in self._irqfds):
                fail(errno.EBUSY)
            taken = {other.index for other in self._irqfds}
            index = next((number for number in range(W.IRQFD_COUNT) if number not in taken), None)
            if index is None:
                fail(errno.ENOMEM)
            irqfd = _Irqfd(index, gsi, eventfd, fd, resample_fd)
            if resample_fd is not None:
                self._publish_resamplers([*self._irqfds, irqfd])
            block, at = self._board.irqfds, W.Irqfd.SIZE * index
            block[at + W.Irqfd.GSI], block[at + W.Irqfd.RESAMPLES] = gsi, resample_fd is not None
            block[at + W.Irqfd.FD] = fd + 1
            self._irqfds.append(irqfd)
            self._board.watch(fd, index)  # what it has been signalled already counts

    def deassign_irqfd(self, gsi: int, eventfd: int) -> None:
        """On return it raises nothing any more."""
        with self._board.lock:
            gone = [irqfd for irqfd in self._irqfds if irqfd.eventfd == eventfd and irqfd.gsi == gsi]
            for irqfd in gone:
                self._board.unwatch(irqfd.fd)
                self._board.irqfds[W.Irqfd.SIZE * irqfd.index + W.Irqfd.FD] = 0
                self._irqfds.remove(irqfd)
            self._publish_resamplers(self._irqfds)
            for irqfd in gone:
                os.close(irqfd.fd)
                if irqfd.resample_fd is not None:
                    os.close(irqfd.resample_fd)

    def _publish_resamplers(self, irqfds: list[_Irqfd]) -> None:
        pairs = [(irqfd.gsi, irqfd.resample_fd) for irqfd in irqfds if irqfd.resample_fd is not None]
        block = Block(8 + W.Resampler.SIZE * len(pairs)) if pairs else None
        if block:
            block[0] = len(pairs)
            for number, (gsi, fd) in enumerate(pairs):
                at = 8 + W.Resampler.SIZE * number
                block[at + W.Resampler.GSI], block[at + W.Resampler.FD] = gsi, fd
        self._board.publish(W.Board.RESAMPLERS, block)


@table.ioctl(ioctls.KVM_IOEVENTFD)
def ioeventfd(vm: Vm, caller: Caller, arg: Ioeventfd) -> None:
    """kvm_ioeventfd: the checks are of assigning only."""
    removes = arg.flags & routing.KVM_IOEVENTFD_FLAG_DEASSIGN
    if not removes:
        unknown = arg.flags & ~routing.KVM_IOEVENTFD_VALID_FLAG_MASK
        if arg.len not in LENGTHS or arg.addr + arg.len >= 1 << 64 or unknown:
            fail(errno.EINVAL)
        if not arg.len and arg.flags & routing.KVM_IOEVENTFD_FLAG_DATAMATCH:
            fail(errno.EINVAL)
    fd, eventfd = caller.eventfd(arg.fd)
    matches = arg.flags & routing.KVM_IOEVENTFD_FLAG_DATAMATCH
    event = _Ioevent(
        port=bool(arg.flags & routing.KVM_IOEVENTFD_FLAG_PIO),
        address=arg.addr,
        length=arg.len,
        data=arg.datamatch if matches else None,
        eventfd=eventfd,
        fd=fd,
    )
    if removes:
        os.close(fd)
        vm.eventfds.deassign_ioevent(event)
        return
    try:
        vm.eventfds.assign_ioevent(event)
    except OSError:
        os.close(fd)
        raise


@table.ioctl(ioctls.KVM_IRQFD)
def irqfd(vm: Vm, caller: Caller, arg: Irqfd) -> None:
    """kvm_irqfd."""
    if arg.flags & ~(routing.KVM_IRQFD_FLAG_DEASSIGN | routing.KVM_IRQFD_FLAG_RESAMPLE):
        fail(errno.EINVAL)
    if arg.flags & routing.KVM_IRQFD_FLAG_DEASSIGN:
        fd, eventfd = caller.eventfd(arg.fd)
        os.close(fd)
        if vm.block[Words.IRQCHIP] != IRQCHIP_NONE:
            vm.eventfds.deassign_irqfd(arg.gsi, eventfd)
        return
    resamples = arg.flags & routing.KVM_IRQFD_FLAG_RESAMPLE
    kind = vm.block[Words.IRQCHIP]
    if kind == IRQCHIP_NONE or (resamples and kind != IRQCHIP_KERNEL):
        fail(errno.EINVAL)
    fd, eventfd = caller.eventfd(arg.fd)
    resample_fd: int | None = None
    try:
        if resamples:
            resample_fd, _ = caller.eventfd(arg.resamplefd)
        vm.eventfds.assign_irqfd(arg.gsi, fd, eventfd, resample_fd)
    except OSError:
        os.close(fd)
        if resample_fd is not None:
            os.close(resample_fd)
        raise
