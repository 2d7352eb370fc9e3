"""The reader loop: what happens between a client's KVM_RUN and its return, without Python and without the GIL.

Any number of threads may read one /dev/fuse file; the kernel gives each request to one of them, and any thread may
write its answer. So the thread that reads KVM_RUN runs the vCPU, and there is no hand-over on that path.

FUSE_INTERRUPT names the request whose caller has a signal. The kernel sends it once and only after the request was
read, but another thread may read it before the first has noted what it holds: such an interrupt is answered EAGAIN
(to its own unique), and the kernel queues it again if the request is still unanswered. An interrupt for a request
that is known needs no answer. Two words make "known": a reader's UNIQUE, from read(2) on, and a seat's RUNNING, while
the run lasts. A reader publishes RUNNING and then looks whether an interrupt came while only UNIQUE stood; whoever
interrupts marks that and then looks at RUNNING: one of the two sees the other.

Somebody must always read: interrupts, and the files that the broker opens while an ioctl waits for it. So a reader that
may be away for long first looks whether another is READING, and asks Python for one more thread if not.

A seat's BUSY is KVM's vcpu->mutex. Who finds it taken does not wait (that would cost the pool a reader) but is parked
by Python, and who gives it back finds WAITERS and takes a parked request over.

Replies pass a gate: while memory of the client is being moved to another file (kvmfs.client's adoption), a thread of
the client that waits in a request of ours must stay there, because it could not be stopped. `hold` closes the gate and
returns once no reply is on its way.

Without passthrough the run page lives in the page cache of the vCPU's FUSE file. Then a run starts by asking the kernel
for the page (FUSE_NOTIFY_RETRIEVE); whichever reader gets the FUSE_NOTIFY_REPLY goes on with the run, and what the run
changed goes back with FUSE_NOTIFY_STORE before the ioctl is answered.
"""

from collections.abc import Callable

# mypy: disable-error-code="no-any-return"
from kvmfs.abi.run import KVM_PIO_PAGE_OFFSET, Run
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.raw import (
    atomic_add,
    atomic_and,
    atomic_or,
    atomic_xchg,
    call1,
    cas64,
    load8,
    load32,
    load64,
    memcpy,
    memset,
    pause,
    store32,
    store64,
    syscall,
)
from kvmfs.wire.connection import BUFFER_SIZE
from kvmfs.wire.fuse_h import (
    InHeader,
    InterruptIn,
    IoctlIn,
    IoctlOut,
    Notify,
    NotifyRetrieveIn,
    NotifyRetrieveOut,
    NotifyStoreOut,
    Opcode,
    OutHeader,
    offset,
    size,
)
from kvmfs.worker.block import (
    DISPATCH,
    ENDED,
    GROW,
    HANDOVER,
    PARK,
    SERVE_VCPU,
    SERVICE,
    VCPU_NODE,
    Conn,
    Reader,
    Seat,
)

group = Group("worker", __name__)
PREFIX = "worker_"


def native(function: Callable[..., int]) -> Callable[..., int]:
    """Callable from Python: a member of the group; names of members are unique among all groups."""
    return group.add(function, PREFIX + function.__name__)


CONN_FD, CONN_TGID, CONN_CACHED, CONN_SEATS = Conn.FUSE_FD, Conn.TGID, Conn.CACHED, Conn.SEATS
CONN_SEAT_COUNT, CONN_READERS, CONN_READER_COUNT = Conn.SEAT_COUNT, Conn.READERS, Conn.READER_COUNT
CONN_READING, CONN_HOLD, CONN_WRITING = Conn.READING, Conn.HOLD, Conn.WRITING
READER_CONN, READER_BUFFER, READER_REPLY, READER_LENGTH = Reader.CONN, Reader.BUFFER, Reader.REPLY, Reader.LENGTH
READER_UNIQUE, READER_INTERRUPTED, READER_TID, READER_SEAT = (
    Reader.UNIQUE, Reader.INTERRUPTED, Reader.TID, Reader.SEAT,
)  # fmt: skip
SEAT_LOCK, SEAT_BUSY, SEAT_WAITERS, SEAT_RUNNING, SEAT_TID = Seat.LOCK, Seat.BUSY, Seat.WAITERS, Seat.RUNNING, Seat.TID
SEAT_KNOWN_TID, SEAT_ENTER, SEAT_CONTEXT = Seat.KNOWN_TID, Seat.ENTER, Seat.CONTEXT
SEAT_REQUEST, SEAT_STOP, SEAT_PAGE, SEAT_NODE = Seat.REQUEST, Seat.STOP, Seat.PAGE, Seat.NODE
SEAT_CALLER = Seat.CALLER

SYS_READ, SYS_WRITE, SYS_FUTEX, SYS_TGKILL = 0, 1, 202, 234
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 128, 129
ENOENT, ESRCH, EINTR, EAGAIN = 2, 3, 4, 11
ALL = 0x7FFF_FFFF

KVM_RUN = 0xAE80
OP_IOCTL, OP_INTERRUPT, OP_NOTIFY_REPLY = int(Opcode.IOCTL), int(Opcode.INTERRUPT), int(Opcode.NOTIFY_REPLY)
NOTIFY_STORE, NOTIFY_RETRIEVE = int(Notify.STORE), int(Notify.RETRIEVE)

IN_OPCODE, IN_UNIQUE, IN_NODE = offset(InHeader, "opcode"), offset(InHeader, "unique"), offset(InHeader, "nodeid")
IN_TID, PAYLOAD = offset(InHeader, "pid"), size(InHeader)
IOCTL_CMD, IOCTL_ARG = PAYLOAD + offset(IoctlIn, "cmd"), PAYLOAD + offset(IoctlIn, "arg")
INTERRUPT_UNIQUE = PAYLOAD + offset(InterruptIn, "unique")
RETRIEVED_OFFSET = PAYLOAD + offset(NotifyRetrieveIn, "offset")
RETRIEVED_SIZE = PAYLOAD + offset(NotifyRetrieveIn, "size")
RETRIEVED_DATA = PAYLOAD + size(NotifyRetrieveIn)

OUT_ERROR, OUT_UNIQUE, OUT_PAYLOAD = offset(OutHeader, "error"), offset(OutHeader, "unique"), size(OutHeader)
IOCTL_RESULT, IOCTL_REPLY_SIZE = OUT_PAYLOAD + offset(IoctlOut, "result"), OUT_PAYLOAD + size(IoctlOut)
STORE_NODE = OUT_PAYLOAD + offset(NotifyStoreOut, "nodeid")
STORE_OFFSET = OUT_PAYLOAD + offset(NotifyStoreOut, "offset")
STORE_SIZE, STORE_DATA = OUT_PAYLOAD + offset(NotifyStoreOut, "size"), OUT_PAYLOAD + size(NotifyStoreOut)
RETRIEVE_UNIQUE = OUT_PAYLOAD + offset(NotifyRetrieveOut, "notify_unique")
RETRIEVE_NODE = OUT_PAYLOAD + offset(NotifyRetrieveOut, "nodeid")
RETRIEVE_OFFSET = OUT_PAYLOAD + offset(NotifyRetrieveOut, "offset")
RETRIEVE_SIZE = OUT_PAYLOAD + offset(NotifyRetrieveOut, "size")
RETRIEVE_MESSAGE = OUT_PAYLOAD + size(NotifyRetrieveOut)

RUN_SIZE, RUN_EXIT, RUN_VALID_REGS = size(Run), Run.exit_reason.offset, Run.kvm_valid_regs.offset
RUN_IO = Run.io.offset
IO_SIZE, IO_COUNT, IO_OFFSET = RUN_IO + 1, RUN_IO + 4, RUN_IO + 8
EXIT_IO, PAGE = 2, 4096
PIO_PAGE = KVM_PIO_PAGE_OFFSET * PAGE


@compiled
def lock(seat: int) -> None:
    while cas64(seat + SEAT_LOCK, 0, 1) != 0:
        pause()


@compiled
def unlock(seat: int) -> None:
    atomic_xchg(seat + SEAT_LOCK, 0)


@compiled
def say(reader: int, length: int) -> int:
    """Write the message in REPLY. The kernel takes it whole or not at all; ENOENT: its request is gone."""
    conn = load64(reader + READER_CONN)
    return syscall(SYS_WRITE, load64(conn + CONN_FD), load64(reader + READER_REPLY), length, 0, 0, 0)


@native
def pass_gate(conn: int) -> int:
    """Wait until replies may be written; to be followed by leave_gate()."""
    while True:
        atomic_add(conn + CONN_WRITING, 1)
        if load64(conn + CONN_HOLD) == 0:
            return 0
        atomic_add(conn + CONN_WRITING, -1)
        syscall(SYS_FUTEX, conn + CONN_HOLD, FUTEX_WAIT_PRIVATE, 1, 0, 0, 0)


@native
def leave_gate(conn: int) -> int:
    return atomic_add(conn + CONN_WRITING, -1)


@native
def hold(conn: int) -> int:
    """Close the gate; on return no reply is being written."""
    atomic_xchg(conn + CONN_HOLD, 1)
    while load64(conn + CONN_WRITING) != 0:
        pause()
    return 0


@native
def release(conn: int) -> int:
    atomic_xchg(conn + CONN_HOLD, 0)
    return syscall(SYS_FUTEX, conn + CONN_HOLD, FUTEX_WAKE_PRIVATE, ALL, 0, 0, 0)


@compiled
def answer_ioctl(reader: int, unique: int, result: int) -> None:
    conn = load64(reader + READER_CONN)
    reply = load64(reader + READER_REPLY)
    store32(reply, IOCTL_REPLY_SIZE)
    store32(reply + OUT_ERROR, 0)
    store64(reply + OUT_UNIQUE, unique)
    store64(reply + IOCTL_RESULT, 0)
    store64(reply + IOCTL_RESULT + 8, 0)
    store32(reply + IOCTL_RESULT, result)
    pass_gate(conn)
    say(reader, IOCTL_REPLY_SIZE)
    leave_gate(conn)


# The vCPU mutex ---------------------------------------------------------------------------------------------------


@native
def take(seat: int) -> int:
    """Take the vCPU's mutex: 1; or count the caller among those who wait for it: 0."""
    lock(seat)
    taken = 1 - load64(seat + SEAT_BUSY)
    if taken:
        store64(seat + SEAT_BUSY, 1)
    else:
        store64(seat + SEAT_WAITERS, load64(seat + SEAT_WAITERS) + 1)
    unlock(seat)
    return taken


@native
def give(seat: int) -> int:
    """Give the mutex back: 0; or, when requests wait for it, keep it for one of them, no longer counted: 1."""
    lock(seat)
    waiters = load64(seat + SEAT_WAITERS)
    if waiters:
        store64(seat + SEAT_WAITERS, waiters - 1)
    else:
        store64(seat + SEAT_BUSY, 0)
    unlock(seat)
    return 1 if waiters else 0


# Interrupts -------------------------------------------------------------------------------------------------------


@compiled
def interrupt_run(conn: int, unique: int) -> int:
    """Stop the KVM_RUN that `unique` names: 1, or 0 when there is none."""
    seats = load64(conn + CONN_SEATS)
    for index in range(load64(conn + CONN_SEAT_COUNT)):
        seat = load64(seats + 8 * index)
        if load64(seat + SEAT_RUNNING) == unique:
            lock(seat)
            running = load64(seat + SEAT_RUNNING) == unique
            if running:
                atomic_or(load64(seat + SEAT_REQUEST), load64(seat + SEAT_STOP))
            unlock(seat)
            if running:
                syscall(SYS_FUTEX, load64(seat + SEAT_REQUEST), FUTEX_WAKE_PRIVATE, ALL, 0, 0, 0)
                return 1
    return 0


@native
def interrupt(conn: int, unique: int) -> int:
    """FUSE_INTERRUPT for `unique`: 1 when some reader or vCPU has that request, else 0."""
    if interrupt_run(conn, unique):
        return 1
    readers = load64(conn + CONN_READERS)
    for index in range(load64(conn + CONN_READER_COUNT)):
        reader = load64(readers + 8 * index)
        if load64(reader + READER_UNIQUE) == unique:
            atomic_xchg(reader + READER_INTERRUPTED, unique)
            if interrupt_run(conn, unique) or load64(reader + READER_UNIQUE) == unique:
                return 1
    return 0


@native
def put_down(reader: int) -> int:
    """The request in this reader's hands goes elsewhere, where interrupts find it: 1 if it was interrupted already."""
    unique = atomic_xchg(reader + READER_UNIQUE, 0)
    return 1 if load64(reader + READER_INTERRUPTED) == unique else 0


# The caller -------------------------------------------------------------------------------------------------------


@native
def is_client(conn: int, tid: int) -> int:
    """Whether the thread is one of the client's: 1 or 0. KVM compares the mm; ours is the next best thing."""
    # Signal 0 only checks. ESRCH: no such thread in that process; EPERM: there is, but it is not ours to signal.
    return 0 if syscall(SYS_TGKILL, load64(conn + CONN_TGID), tid, 0, 0, 0, 0) == -ESRCH else 1


# KVM_RUN ----------------------------------------------------------------------------------------------------------


@compiled
def publish(reader: int, seat: int) -> None:
    """Make the run known to interrupts."""
    unique = load64(reader + READER_UNIQUE)
    lock(seat)
    atomic_and(load64(seat + SEAT_REQUEST), ~load64(seat + SEAT_STOP))
    store64(seat + SEAT_TID, load64(reader + READER_TID))
    store64(load64(seat + SEAT_CALLER), load64(reader + READER_TID))
    store64(seat + SEAT_RUNNING, unique)
    unlock(seat)
    if load64(reader + READER_INTERRUPTED) == unique:
        atomic_or(load64(seat + SEAT_REQUEST), load64(seat + SEAT_STOP))


@compiled
def retrieve(reader: int, seat: int) -> int:
    """Ask for the run page, with the port I/O data if the guest waits for some. The run goes on in continue_run()."""
    page = load64(seat + SEAT_PAGE)
    length = RUN_SIZE
    if load32(page + RUN_EXIT) == EXIT_IO and load8(page + RUN_IO) == 0:
        length = PIO_PAGE + min(load8(page + IO_SIZE) * load32(page + IO_COUNT), PAGE)
    message = load64(reader + READER_REPLY)
    memset(message, 0, RETRIEVE_MESSAGE)
    store32(message, RETRIEVE_MESSAGE)
    store32(message + OUT_ERROR, NOTIFY_RETRIEVE)
    store64(message + RETRIEVE_UNIQUE, load64(reader + READER_UNIQUE))
    store64(message + RETRIEVE_NODE, load64(seat + SEAT_NODE))
    store32(message + RETRIEVE_SIZE, length)
    return say(reader, RETRIEVE_MESSAGE)


@compiled
def store_piece(reader: int, seat: int, start: int, length: int) -> None:
    message = load64(reader + READER_REPLY)
    memset(message, 0, STORE_DATA)
    store32(message, STORE_DATA + length)
    store32(message + OUT_ERROR, NOTIFY_STORE)
    store64(message + STORE_NODE, load64(seat + SEAT_NODE))
    store64(message + STORE_OFFSET, start)
    store32(message + STORE_SIZE, length)
    memcpy(message + STORE_DATA, load64(seat + SEAT_PAGE) + start, length)
    say(reader, STORE_DATA + length)


@compiled
def store_page(reader: int, seat: int) -> None:
    """Give the client what a run may have changed."""
    page = load64(seat + SEAT_PAGE)
    store_piece(reader, seat, 0, RUN_SIZE if load64(page + RUN_VALID_REGS) != 0 else RUN_VALID_REGS)
    if load32(page + RUN_EXIT) == EXIT_IO and load8(page + RUN_IO) == 1:
        store_piece(reader, seat, PIO_PAGE, min(load8(page + IO_SIZE) * load32(page + IO_COUNT), PAGE))


@native
def enter(reader: int) -> int:
    """Run the vCPU in SEAT, whose mutex is ours and whose run is published, and answer. 0, HANDOVER or SERVE_VCPU."""
    seat = load64(reader + READER_SEAT)
    result = call1(load64(seat + SEAT_ENTER), load64(seat + SEAT_CONTEXT))
    if result == SERVICE:
        return SERVE_VCPU
    return finish_run(reader, result)


@native
def finish_run(reader: int, result: int) -> int:
    """Answer the KVM_RUN in SEAT. 0, or HANDOVER when the mutex goes on to a request that waits for it."""
    conn, seat = load64(reader + READER_CONN), load64(reader + READER_SEAT)
    if load64(conn + CONN_CACHED):
        store_page(reader, seat)
    lock(seat)
    unique = load64(seat + SEAT_RUNNING)
    store64(seat + SEAT_RUNNING, 0)
    unlock(seat)
    # The mutex is given back first: the client may use the vCPU at once.
    awaited = give(seat)
    if unique != 0:  # else the broker answers
        answer_ioctl(reader, unique, result)
    store64(reader + READER_UNIQUE, 0)
    if awaited:
        return HANDOVER
    store64(reader + READER_SEAT, 0)
    return 0


@native
def start_run(reader: int) -> int:
    """KVM_RUN on SEAT, whose mutex is ours. 0, HANDOVER or SERVE_VCPU."""
    conn, seat = load64(reader + READER_CONN), load64(reader + READER_SEAT)
    publish(reader, seat)
    if load64(conn + CONN_CACHED) and retrieve(reader, seat) >= 0:
        store64(reader + READER_SEAT, 0)
        store64(reader + READER_UNIQUE, 0)
        return 0
    return enter(reader)


@compiled
def continue_run(reader: int) -> int:
    """FUSE_NOTIFY_REPLY: the run page of a vCPU whose run waits for it. 0, or why Python is needed."""
    conn, message = load64(reader + READER_CONN), load64(reader + READER_BUFFER)
    index = load64(message + IN_NODE) - VCPU_NODE
    if index < 0 or index >= load64(conn + CONN_SEAT_COUNT):
        return 0
    seat = load64(load64(conn + CONN_SEATS) + 8 * index)
    if load64(seat + SEAT_RUNNING) == 0:
        return 0
    page, data, length = load64(seat + SEAT_PAGE), message + RETRIEVED_DATA, load32(message + RETRIEVED_SIZE)
    if load64(message + RETRIEVED_OFFSET) == 0 and length <= BUFFER_SIZE - RETRIEVED_DATA:
        memcpy(page, data, min(length, RUN_SIZE))
        if length > PIO_PAGE:
            memcpy(page + PIO_PAGE, data + PIO_PAGE, min(length - PIO_PAGE, PAGE))
    store64(reader + READER_SEAT, seat)
    store64(reader + READER_TID, load64(seat + SEAT_TID))
    store64(reader + READER_UNIQUE, load64(seat + SEAT_RUNNING))
    return enter(reader)


@compiled
def run_request(reader: int) -> int:
    """KVM_RUN as read. 0, or why Python is needed."""
    conn, message = load64(reader + READER_CONN), load64(reader + READER_BUFFER)
    index = load64(message + IN_NODE) - VCPU_NODE
    if index < 0 or index >= load64(conn + CONN_SEAT_COUNT) or load64(message + IOCTL_ARG) != 0:
        return DISPATCH
    seat = load64(load64(conn + CONN_SEATS) + 8 * index)
    tid = load64(reader + READER_TID)
    if load64(seat + SEAT_KNOWN_TID) != tid:
        if not is_client(conn, tid):
            return DISPATCH
        store64(seat + SEAT_KNOWN_TID, tid)
    store64(reader + READER_SEAT, seat)
    if not take(seat):
        return PARK
    return start_run(reader)


@native
def go_on(reader: int) -> int:
    """What GROW put off. 0, or why Python is needed."""
    if load32(load64(reader + READER_BUFFER) + IN_OPCODE) == OP_NOTIFY_REPLY:
        return continue_run(reader)
    return run_request(reader)


@native
def will_read(conn: int, count: int) -> int:
    """`count` more readers, to be called before their serve()."""
    return atomic_add(conn + CONN_READING, count)


@native
def serve(reader: int) -> int:
    """Read and serve until Python is needed; returns why (block.py). READING counts this reader already."""
    conn, message = load64(reader + READER_CONN), load64(reader + READER_BUFFER)
    while True:
        length = syscall(SYS_READ, load64(conn + CONN_FD), message, BUFFER_SIZE, 0, 0, 0)
        others = atomic_add(conn + CONN_READING, -1) - 1
        why = 0
        if length <= 0:  # 0: a socket (kvmfs.notify) that is closed
            # ENOENT: the request was interrupted before it was read
            if length != -EINTR and length != -EAGAIN and length != -ENOENT:
                store64(reader + READER_LENGTH, length)
                return ENDED
        else:
            store64(reader + READER_LENGTH, length)
            opcode = load32(message + IN_OPCODE)
            if opcode == OP_INTERRUPT:
                why = 0 if interrupt(conn, load64(message + INTERRUPT_UNIQUE)) else DISPATCH
            elif opcode == OP_NOTIFY_REPLY:
                why = continue_run(reader) if others else GROW
            else:
                store64(reader + READER_TID, load32(message + IN_TID))
                atomic_xchg(reader + READER_UNIQUE, load64(message + IN_UNIQUE))
                if opcode == OP_IOCTL and load32(message + IOCTL_CMD) == KVM_RUN:
                    why = run_request(reader) if others else GROW
                else:
                    why = DISPATCH
        if why:
            return why
        will_read(conn, 1)
