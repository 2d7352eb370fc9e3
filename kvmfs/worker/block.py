"""Raw memory that the native reader loop and Python share: byte offsets of its fields.

One connection block per VM, one reader block per reader thread, one seat per vCPU. All words are 64 bits; words that
two threads write are only touched with atomics or under the seat's lock (loop.py).
"""

from typing import Final

from kvmfs.jit.layout import Layout

MAX_VCPUS: Final = 4096  # KVM_MAX_VCPU_IDS would be the bound of ids; seats are handed out in order of creation
MAX_READERS: Final = 8192
REPLY_SIZE: Final = 8 << 10
"""Of what compiled code writes: at most a page, and headers."""

VCPU_NODE: Final = 1 << 32
"""Node id of the vCPU in seat n is VCPU_NODE + n; all other node ids are smaller."""


class Conn:
    """The VM's FUSE connection."""

    _l = Layout()
    FUSE_FD = _l.u64()
    TGID = _l.u64()  # of the client
    CACHED = _l.u64()  # 1: run pages live in the page cache of the FUSE file, not in a passthrough memfd
    SEATS = _l.u64()  # address of MAX_VCPUS seat addresses; never shrinks, entries are never cleared
    SEAT_COUNT = _l.u64()
    READERS = _l.u64()  # address of MAX_READERS reader block addresses
    READER_COUNT = _l.u64()
    READING = _l.bytes(8, align=64)  # readers in, or about to be in, read(2)
    HOLD = _l.bytes(8, align=64)  # 1: no reply may be written now (futex in the low half)
    WRITING = _l.u64()  # replies being written
    SIZE = _l.size


class Reader:
    """A thread that reads the connection."""

    _l = Layout()
    CONN = _l.u64()
    BUFFER = _l.u64()  # address of wire.connection.BUFFER_SIZE bytes: the message
    REPLY = _l.u64()  # address of REPLY_SIZE bytes: what is being written
    LENGTH = _l.u64()  # of the message, or -errno of read(2)
    UNIQUE = _l.u64()  # the request in this thread's hands, 0: none
    INTERRUPTED = _l.u64()  # the unique of a request in some reader's hands that FUSE_INTERRUPT named
    TID = _l.u64()  # of the thread whose request it is
    SEAT = _l.u64()  # the seat whose mutex this thread holds across a return to Python, else 0
    SIZE = _l.size


class Seat:
    """A vCPU as the reader loop knows it."""

    _l = Layout()
    LOCK = _l.u64()  # spin lock over the next five words; never held across a system call
    BUSY = _l.u64()  # the vCPU mutex
    WAITERS = _l.u64()  # requests parked for it
    RUNNING = _l.u64()  # the unique of the KVM_RUN under way, 0: none
    TID = _l.u64()  # the thread that is in it
    KNOWN_TID = _l.u64()  # a thread that was found to belong to the client
    ENTER = _l.u64()  # int64 enter(int64 context): KVM_RUN's result, -errno, or SERVICE
    CONTEXT = _l.u64()
    REQUEST = _l.u64()  # address of the word (also a futex) that makes enter() come back soon
    STOP = _l.u64()  # the bits to set in it
    CALLER = _l.u64()  # address of the word that is to hold TID while enter() runs
    PAGE = _l.u64()  # address of our mapping of the run page
    NODE = _l.u64()  # node id
    SIZE = _l.size


SERVICE: Final = 1 << 32
"""enter()'s answer when Python has to look after the vCPU before the run goes on (no errno, no result is as large)."""

# Why serve() and friends return to Python.
DISPATCH: Final = 1  # a message for Python is in the buffer
PARK: Final = 2  # KVM_RUN on a vCPU whose mutex is taken; counted as a waiter
HANDOVER: Final = 3  # KVM_RUN was answered; the mutex of SEAT is still ours because requests wait for it
SERVE_VCPU: Final = 4  # enter() said SERVICE; the mutex of SEAT is ours, the request is unanswered
ENDED: Final = 5  # read(2) failed: LENGTH
GROW: Final = 6  # a run is to begin or go on, and no other thread reads: to be followed by go_on()
