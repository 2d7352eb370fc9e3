"""Masked moves and gathers: an element is touched only if its mask's sign says so, and only then can it fault.

They never raise #AC (SDM vol. 2, VMASKMOV: "No AC# reported for any mask bit combinations"; VGATHER).

VLDMXCSR and VSTMXCSR too, which know nothing of CR4.OSFXSR.
"""

from .. import state as S
from ..build import compiled
from ..mmu import layout as M
from ..mmu.group import PROBE_WRITE, READ_SLOW, WRITE_SLOW
from ..raw import load8, load32, load64, memcpy, memset, shl, sload32, store64
from .access import call_unaligned, effective, probe, read_mem, segmented, truncate, write_mem
from .operand import LOAD, done, dst, fault, leave_next, src
from .record import ASIZE, BASE_PTR, IMM, INDEX_PTR, SCALE, SEG_PTR
from .sse_move import STORE
from .vex_operand import Handlers, clear_upper, is_wide

HANDLERS = Handlers()
MXCSR_MASK = 0xFFFF


@compiled
def element(s, r, address, size, write):
    """Linear address of an element at this effective address; check LEAVE when SEG_PTR is set."""
    seg = load64(r + SEG_PTR)
    if seg == 0:
        return address
    return segmented(s, r, seg, truncate(address, load8(r + ASIZE)), size, write)


@compiled
def read_element(s, r, la, size):
    """T3 <- 4 or 8 bytes: 1, or 0 to leave."""
    host = probe(s, la, size, M.TLB_READ)
    if host == 0:
        return call_unaligned(s, r, READ_SLOW, la, size, s + S.T3)
    store64(s + S.T3, load64(host) if size == 8 else load32(host))
    return 1


@compiled
def base(s, r):
    """Base register and displacement; the index is the element's own or none."""
    return load64(load64(r + BASE_PTR)) + load64(r + IMM)


@compiled
def indexed(r):
    """The scaled index of an ordinary address."""
    return shl(load64(load64(r + INDEX_PTR)), load8(r + SCALE))


def _masked_load(size):
    """dst = elements of memory where the mask at src is negative, else 0."""
    load, store = LOAD[8 * size], STORE[8 * size]

    def handler(s, r):
        d, mask, row = dst(r), src(r), s + S.T2
        address, length = base(s, r) + indexed(r), 32 if is_wide(r) else 16
        memset(row, 0, 32)
        for at in range(0, length, size):
            if load8(mask + at + size - 1) < 128:
                continue
            la = element(s, r, address + at, size, 0)
            if load64(s + S.LEAVE) != 0 or read_element(s, r, la, size) == 0:
                return 0
            store(row + at, load(s + S.T3))
        memcpy(d, row, 32)
        return done(r)

    return handler


def _masked_store(size):
    """Elements of dst to memory where the mask at src is negative. All are known to be writable before one is."""

    def handler(s, r):
        d, mask = dst(r), src(r)
        address, length = base(s, r) + indexed(r), 32 if is_wide(r) else 16
        for write in range(2):
            for at in range(0, length, size):
                if load8(mask + at + size - 1) < 128:
                    continue
                la = element(s, r, address + at, size, 1)
                if load64(s + S.LEAVE) != 0:
                    return 0
                if call_unaligned(s, r, WRITE_SLOW if write else PROBE_WRITE, la, size, d + at) == 0:
                    return 0
        return leave_next(s, r)

    return handler


def _gather(index_size, size):
    """dst = elements of memory at base + index where the mask at src is negative, which each clears as it arrives.

    A fault leaves what has arrived: the instruction begins again with the rest.
    """
    load, store = LOAD[8 * size], STORE[8 * size]
    load_index = sload32 if index_size == 4 else load64
    larger = max(index_size, size)

    def handler(s, r):
        d, mask, start, indices = dst(r), src(r), base(s, r), load64(r + INDEX_PTR)
        count = (32 if is_wide(r) else 16) // larger
        for i in range(count):
            sign = 0 if load8(mask + size * (i + 1) - 1) < 128 else -1
            store(mask + size * i, sign)
        for i in range(count):
            if load8(mask + size * i) == 0:
                continue
            address = start + shl(load_index(indices + index_size * i), load8(r + SCALE))
            la = element(s, r, address, size, 0)
            if load64(s + S.LEAVE) != 0 or read_element(s, r, la, size) == 0:
                return 0
            store(d + size * i, load(s + S.T3))
            store(mask + size * i, 0)
        memset(mask, 0, 32)
        if count * size < 32:
            clear_upper(d)
        if count * size < 16:
            store64(d + 8, 0)
        return done(r)

    return handler


@HANDLERS.add
def vldmxcsr(s, r):
    la = effective(s, r, 4, 0)
    store64(s + S.T0, 0)
    if load64(s + S.LEAVE) != 0 or read_mem(s, r, la, 4, s + S.T0) == 0:
        return 0
    if load64(s + S.T0) & ~MXCSR_MASK:
        return fault(s, r, S.GP, 0, 1)
    store64(s + S.MXCSR, load64(s + S.T0))
    return leave_next(s, r)


@HANDLERS.add
def vstmxcsr(s, r):
    la = effective(s, r, 4, 1)
    if load64(s + S.LEAVE) != 0 or write_mem(s, r, la, 4, s + S.MXCSR) == 0:
        return 0
    return leave_next(s, r)


for _suffix, _size in (("d", 4), ("q", 8)):
    HANDLERS.add(_masked_load(_size), f"vmaskmov_load{_suffix}")
    HANDLERS.add(_masked_store(_size), f"vmaskmov_store{_suffix}")
    for _index, _index_size in (("d", 4), ("q", 8)):
        HANDLERS.add(_gather(_index_size, _size), f"vgather{_index}{_suffix}")
