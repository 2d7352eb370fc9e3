"""Linear accesses that the TLB does not serve: page crossings, MMIO, the client's remote memory, first touches.

An access is one piece, or two when it crosses a page. All pieces are translated, and may fault, before anything is
read or written. An MMIO piece is cut into fragments of at most 8 bytes as KVM's emulator_read_write does.

A read of MMIO ends the run; the embedder appends its answer to MMIO_CACHE and runs the instruction again, which then
finds all reads it has made so far, in order, in that cache. Writes are queued and reported when the instruction has
retired; whatever else ends the attempt empties the queue. At the start of every attempt MMIO_USED is 0, at that of
another instruction MMIO_READS too.

`size` carries access flags (layout.py: IMPLICIT_SUPERVISOR, STACK) above bit ACCESS_SHIFT; it is at most 4096.
"""

from ..breakpoint import watch
from ..build import compiled
from ..raw import load64, lshr, store64
from ..state import (
    BOUNCE,
    BREAK_DATA,
    EXIT,
    EXIT_EMULATION_FAILURE,
    EXIT_MMIO_READ,
    INSN_LENGTH,
    IO_PENDING,
    LEAVE,
    LEAVE_EXIT,
    MMIO_CACHE,
    MMIO_GPA,
    MMIO_LIMIT,
    MMIO_QUEUE,
    MMIO_READS,
    MMIO_SIZE,
    MMIO_STATE,
    MMIO_USED,
    MMIO_WRITES,
    PIECES,
    RMW_HOST,
    RMW_LINEAR,
    XLAT_CLIENT,
    XLAT_GPA,
    XLAT_KIND,
)
from .layout import ACCESS_SHIFT, NO_MMIO, READ, TO_HOST, TO_MMIO, TO_REMOTE, WRITE
from .members import member
from .physical import copy
from .resolve import remote_copy
from .translate import next_page, translate
from .walk import check_canonical

_SIZE_MASK = (1 << ACCESS_SHIFT) - 1
_FRAGMENT = 24  # {gpa, size, data}
_PIECE = 16  # {XLAT_KIND, address}

PROBE_INDIRECT = 1  # probe_write: granted, but there is no one host address


# Pieces ----------


@compiled
def _locate_piece(s, la, access, piece):
    """Translate, and note where the page leads: 1, or 0 to leave."""
    address = translate(s, la, access)
    kind = load64(s + XLAT_KIND)
    if address == 0:
        if kind == TO_MMIO and access & NO_MMIO:
            store64(s + INSN_LENGTH, 0)
            store64(s + EXIT, EXIT_EMULATION_FAILURE)
            store64(s + LEAVE, LEAVE_EXIT)
            return 0
        if kind == TO_MMIO:
            address = load64(s + XLAT_GPA)
        elif kind == TO_REMOTE:
            address = load64(s + XLAT_CLIENT)
        else:
            return 0
    store64(s + PIECES + _PIECE * piece, kind)
    store64(s + PIECES + _PIECE * piece + 8, address)
    return 1


@member
def locate(s, la, size, access):
    """Translate all of [la, la + size): the size of the first piece, or 0 to leave."""
    if load64(s + BREAK_DATA) and not watch(s, la, size, access):
        return 0
    first = 4096 - (la & 4095)
    if size <= first:
        return size if _locate_piece(s, la, access, 0) else 0
    if not check_canonical(s, la, access) or not check_canonical(s, la + size - 1, access):
        return 0
    if not _locate_piece(s, la, access, 0) or not _locate_piece(s, next_page(s, la), access, 1):
        return 0
    return first


@compiled
def _kind(s, piece):
    return load64(s + PIECES + _PIECE * piece)


@compiled
def _address(s, piece):
    return load64(s + PIECES + _PIECE * piece + 8)


@compiled
def _remote(s, piece, buffer, size, write):
    store64(s + XLAT_CLIENT, _address(s, piece))
    return remote_copy(s, buffer, size, write)


# MMIO ----------


@member
def mmio_read(s, gpa, size, dst):
    """Bring `size` bytes of MMIO to `dst`: 1, or 0 to leave for the next fragment that is not there yet."""
    done = 0
    while done < size:
        now = size - done if size - done < 8 else 8
        used = load64(s + MMIO_USED)
        if used == MMIO_LIMIT:
            store64(s + EXIT, EXIT_EMULATION_FAILURE)
            store64(s + LEAVE, LEAVE_EXIT)
            return 0
        fragment = s + MMIO_CACHE + _FRAGMENT * used
        found = used < load64(s + MMIO_READS)
        if not found or load64(fragment) != gpa + done or load64(fragment + 8) != now:
            # Nothing, or the answer to another question: the instruction or its page tables changed meanwhile.
            store64(s + MMIO_READS, used)
            store64(s + MMIO_WRITES, 0)
            store64(s + MMIO_GPA, gpa + done)
            store64(s + MMIO_SIZE, now)
            store64(s + MMIO_STATE, IO_PENDING)
            store64(s + EXIT, EXIT_MMIO_READ)
            store64(s + LEAVE, LEAVE_EXIT)
            return 0
        copy(dst + done, fragment + 16, now)
        store64(s + MMIO_USED, used + 1)
        done += now
    return 1


@member
def mmio_write(s, gpa, size, src):
    """Queue `size` bytes of MMIO from `src`: 1, or 0 if the queue cannot hold them."""
    count = load64(s + MMIO_WRITES)
    if count + ((size + 7) >> 3) > MMIO_LIMIT:
        store64(s + MMIO_WRITES, 0)
        store64(s + EXIT, EXIT_EMULATION_FAILURE)
        store64(s + LEAVE, LEAVE_EXIT)
        return 0
    done = 0
    while done < size:
        now = size - done if size - done < 8 else 8
        fragment = s + MMIO_QUEUE + _FRAGMENT * count
        store64(fragment, gpa + done)
        store64(fragment + 8, now)
        store64(fragment + 16, 0)
        copy(fragment + 16, src + done, now)
        count += 1
        done += now
    store64(s + MMIO_WRITES, count)
    return 1


# Reading and writing ----------


@member
def read_slow(s, la, size, dst):
    """Copy guest memory at linear `la` to `dst`: 1, or 0 to leave with `dst` untouched."""
    access, size = READ | lshr(size, ACCESS_SHIFT), size & _SIZE_MASK
    first = locate(s, la, size, access)
    if first == 0:
        return 0
    if first == size and _kind(s, 0) == TO_HOST:
        copy(dst, _address(s, 0), size)
        return 1
    pieces = 1 if first == size else 2
    # Remote memory first: while it is read, host addresses may go stale, and then all is done again.
    for piece in range(pieces):
        at, length = (0, first) if piece == 0 else (first, size - first)
        if _kind(s, piece) == TO_REMOTE and not _remote(s, piece, s + BOUNCE + at, length, 0):
            return 0
    for piece in range(pieces):
        at, length = (0, first) if piece == 0 else (first, size - first)
        if _kind(s, piece) == TO_HOST:
            copy(s + BOUNCE + at, _address(s, piece), length)
        elif _kind(s, piece) == TO_MMIO and not mmio_read(s, _address(s, piece), length, s + BOUNCE + at):
            return 0
    copy(dst, s + BOUNCE, size)
    return 1


@member
def write_slow(s, la, size, src):
    """Copy `src` to guest memory at linear `la`, or queue it for MMIO: 1, or 0 to leave with nothing written.

    Remote memory can refuse after another piece has been written: EXIT_EFAULT.
    """
    access, size = WRITE | lshr(size, ACCESS_SHIFT), size & _SIZE_MASK
    first = locate(s, la, size, access)
    if first == 0:
        return 0
    if first == size and _kind(s, 0) == TO_HOST:
        copy(_address(s, 0), src, size)
        return 1
    pieces = 1 if first == size else 2
    for piece in range(pieces):
        at, length = (0, first) if piece == 0 else (first, size - first)
        if _kind(s, piece) == TO_MMIO and not mmio_write(s, _address(s, piece), length, src + at):
            return 0
    for piece in range(pieces):
        at, length = (0, first) if piece == 0 else (first, size - first)
        if _kind(s, piece) == TO_HOST:
            copy(_address(s, piece), src + at, length)
    # Remote memory last: while it is written, host addresses may go stale.
    for piece in range(pieces):
        at, length = (0, first) if piece == 0 else (first, size - first)
        if _kind(s, piece) == TO_REMOTE and not _remote(s, piece, src + at, length, 1):
            return 0
    return 1


# Read-modify-write ----------


@member
def probe_write(s, la, size):
    """Whether [la, la + size) can be written: its host address, PROBE_INDIRECT if it has not just one, 0 to leave."""
    access, size = WRITE | lshr(size, ACCESS_SHIFT), size & _SIZE_MASK
    first = locate(s, la, size, access)
    if first == 0:
        return 0
    return _address(s, 0) if first == size and _kind(s, 0) == TO_HOST else PROBE_INDIRECT


@member
def rmw_read_slow(s, la, size, dst):
    """Begin a read-modify-write: copy the operand to `dst` once it is known that it can be written: 1, or 0 to leave.

    RMW_HOST becomes the operand's host address, good for a host atomic; or 0: it crosses a page, is MMIO, ROM or
    remote, and goes back by rmw_write_slow, without atomicity (so does KVM's emulator). RMW_LINEAR becomes `la`.
    """
    store64(s + RMW_HOST, 0)
    store64(s + RMW_LINEAR, la)
    host = probe_write(s, la, size)
    if host == 0:
        return 0
    if host == PROBE_INDIRECT:
        return read_slow(s, la, size, dst)
    store64(s + RMW_HOST, host)
    copy(dst, host, size & _SIZE_MASK)
    return 1


@member
def rmw_write_slow(s, la, size, src):
    """End a read-modify-write whose RMW_HOST is 0: 1, or 0 to leave."""
    return write_slow(s, la, size, src)
