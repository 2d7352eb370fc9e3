"""The board's locks, inlined: spinning, as KVM's are; and readers of tables that are replaced as a whole."""
# mypy: disable-error-code="no-untyped-def"

from typing import Final

from kvmfs.irqchip.words import Board
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import atomic_add, atomic_xchg, cas64, load64, pause, syscall

SYS_SCHED_YIELD: Final = 24
SPINS: Final = 64
EPOCH, READERS = Board.EPOCH, Board.READERS


@compiled
def spin_lock(word):
    """Take a lock; its holder may have lost its processor, so give up ours now and then."""
    while cas64(word, 0, 1) != 0:
        for _ in range(SPINS):
            if load64(word) == 0:
                break
            pause()
        if load64(word) != 0:
            syscall(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)


@compiled
def spin_unlock(word):
    atomic_xchg(word, 0)


@compiled
def begin_read(board):
    """What is read of the board's tables stays until end_read(board, the result)."""
    while True:
        which = load64(board + EPOCH) & 1
        atomic_add(board + READERS + 8 * which, 1)
        if load64(board + EPOCH) & 1 == which:
            return which
        atomic_add(board + READERS + 8 * which, -1)


@compiled
def end_read(board, which):
    atomic_add(board + READERS + 8 * which, -1)


@compiled
def wait_for_readers(board):
    """Return when nobody reads what was published before the call (synchronize_srcu). One caller at a time."""
    which = atomic_add(board + EPOCH, 1) & 1
    while load64(board + READERS + 8 * which) != 0:
        syscall(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
