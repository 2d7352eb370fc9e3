"""A VM's board: what is between its vCPUs, and the thread that its timers and eventfds wake."""

from __future__ import annotations

import ctypes
import os
import select
import threading
import weakref
from typing import TYPE_CHECKING, Final

from kvmfs.irqchip import words as W
from kvmfs.irqchip.words import Board as Words
from kvmfs.kvm.block import Block
from kvmfs.syscalls import Sys, syscall

if TYPE_CHECKING:
    from kvmfs.kvm.native import Native

CLOCK_MONOTONIC: Final = 1
TFD_NONBLOCK: Final = 0o4000
TFD_CLOEXEC: Final = 0o2000000
MAX_VCPU_IDS: Final = 4096
APIC_BUS_CYCLE_NS_DEFAULT: Final = 1


class Board:
    """`block` is what compiled code sees of it. Tables are replaced as a whole, with `lock` held, by publish()."""

    def __init__(self, native: Native, vm: int) -> None:
        self._native = native
        self.lock = threading.Lock()
        self.block = Block(Words.SIZE)
        self.address = self.block.address
        self.block[Words.VM], self.block[Words.FUNCTIONS] = vm, native.table
        self.block[Words.BUS_CYCLE_NS] = APIC_BUS_CYCLE_NS_DEFAULT
        self.block[Words.TIMER_NEXT] = W.NEVER
        self._by_id = Block(8 * MAX_VCPU_IDS)
        self.block[Words.BY_ID] = self._by_id.address
        self._tables: dict[int, Block] = {}
        self._irqfds: Block | None = None
        self._epoll = -1

    # Tables -----

    def publish(self, word: int, table: Block | None) -> None:
        """Let compiled code use `table` from now on; on return it does not use the one before."""
        self.block[word] = table.address if table else 0
        self._native.call("board_synchronize", self.address)
        if table:
            self._tables[word] = table  # and the old one goes
        else:
            self._tables.pop(word, None)

    @property
    def irqfds(self) -> Block:
        """The irqfd records."""
        if self._irqfds is None:
            self._irqfds = Block(W.IRQFD_COUNT * W.Irqfd.SIZE)
            self.block[Words.IRQFDS] = self._irqfds.address
        return self._irqfds

    def online(self, vcpu_id: int, context: int) -> None:
        """A vCPU is there. IDs that an xAPIC cannot hold alias."""
        self._by_id[8 * vcpu_id] = context
        if vcpu_id > 0xFF:
            self.block[Words.IDS_CHANGED] = 1

    # The thread -----

    def start(self, owner: object) -> None:
        """Begin to serve timers and irqfds, until `owner` is gone."""
        timer = syscall(Sys.TIMERFD_CREATE, CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        wake = os.eventfd(0, os.EFD_CLOEXEC)
        epoll = select.epoll()
        self._epoll = epoll.fileno()
        self.block[Words.TIMER_FD], self.block[Words.EPOLL_FD] = timer, self._epoll
        self.watch(timer, W.EPOLL_TIMER)
        self.watch(wake, W.EPOLL_WAKE)
        thread = threading.Thread(
            target=self._native.call, args=("board_thread", self.address), name="board", daemon=True
        )
        thread.start()
        weakref.finalize(owner, _stop, self.block, thread, wake, timer, epoll)

    def watch(self, fd: int, data: int) -> None:
        """Have the thread wake when `fd` is readable, with this word to tell it by."""
        event = (select.EPOLLIN).to_bytes(4, "little") + data.to_bytes(8, "little")
        syscall(Sys.EPOLL_CTL, self._epoll, 1, fd, ctypes.create_string_buffer(event, 12))

    def unwatch(self, fd: int) -> None:
        syscall(Sys.EPOLL_CTL, self._epoll, 2, fd, None)


def _stop(block: Block, thread: threading.Thread, wake: int, timer: int, epoll: select.epoll) -> None:
    block[Words.STOP] = 1
    os.eventfd_write(wake, 1)
    thread.join()
    os.close(wake)
    os.close(timer)
    epoll.close()
