"""String instructions: movs stos lods scas cmps {8,16,32,64}.

Source at SEG_PTR (0: DS):rSI, destination at ES:rDI, address size from ASIZE, direction from DF, repetition from FLAGS.

Each execution handles a run of elements whose pages the TLB knows, at most a page's worth, or a single element by the
slow path. Then it leaves the block with RIP still at the instruction while there is more to do, so that requests and
interrupts come in between, and faults find the registers of the iterations that are complete.
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu import layout as M
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load8, load16, load64, memcpy, memset, store8, store16, store32, store64, udiv, ult
from .access import call_slow, probe, truncate
from .flags import SETTERS
from .io import count_left, set_register, string_linear
from .operand import LOAD, PUT, WIDTHS, leave_next, leave_to, rip_here
from .record import ASIZE, FLAGS, RECORD_REP, RECORD_REPNE, SEG_PTR

group = Group("string", __name__)

STORE = {8: store8, 16: store16, 32: store32, 64: store64}


@compiled
def backwards(s):
    return load64(s + S.RFLAGS) & S.DF


@compiled
def lesser(a, b):
    return a if ult(a, b) else b


@compiled
def source_segment(s, r):
    override = load64(r + SEG_PTR)
    return override if override != 0 else s + S.DS


@compiled
def run_length(s, r, seg, register, la, size, count):
    """How many of `count` elements, the one at `la` first, lie on its page, in the segment and before rSI or rDI wraps.

    At least 1: the caller has checked that element alone. Just 1 under TF, which traps after each iteration.
    """
    if load64(s + S.HFLAGS) & S.MODE_STEP:
        return 1
    asize = load8(r + ASIZE)
    offset = truncate(load64(register), asize)
    if backwards(s):
        count = lesser(count, (la & 4095) // size + 1)
        count = lesser(count, udiv(offset, size) + 1)
    else:
        count = lesser(count, (4096 - (la & 4095)) // size)
        if asize < 8:
            count = lesser(count, ((1 << asize * 8) - offset) // size)
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        expands_down = load64(seg + S.ATTR) & 0xC == 4
        beyond = offset + count * size - 1 > load64(seg + S.LIMIT)
        if expands_down or (beyond and not backwards(s)):
            count = 1
    return count if count != 0 else 1


@compiled
def advance(s, r, register, size, count):
    """Move rSI or rDI past `count` elements."""
    step = -size if backwards(s) else size
    set_register(r, register, load64(register) + step * count)


@compiled
def finish(s, r, count, stop):
    """`count` iterations are done: rCX, and RIP past the instruction unless it goes on.

    What comes in between, an interrupt or an exit, finds RF set (SDM vol. 3, 17.3.1.1).
    """
    if load16(r + FLAGS) & (RECORD_REP | RECORD_REPNE) == 0:
        return leave_next(s, r)
    set_register(r, s + S.RCX, load64(s + S.RCX) - count)
    if stop or count_left(s, r) == 0:
        store64(s + S.RFLAGS, load64(s + S.RFLAGS) & ~S.RF)
        return leave_next(s, r)
    store64(s + S.RFLAGS, load64(s + S.RFLAGS) | S.RF)
    return leave_to(s, rip_here(s, r))


def _movs(width):
    load, store, size = LOAD[width], STORE[width], width // 8

    @compiled
    def copy(to, from_, count, step):
        """As the elements one after another would be copied, also when the ranges overlap."""
        if step > 0 and (to <= from_ or to >= from_ + count * size):
            memcpy(to, from_, count * size)
        else:
            for i in range(count):
                store(to + i * step, load(from_ + i * step))
        return 0

    def handler(s, r):
        count, seg = count_left(s, r), source_segment(s, r)
        if count == 0:
            return leave_next(s, r)
        la = string_linear(s, r, seg, s + S.RSI, size, 0)
        if load64(s + S.LEAVE) != 0:
            return 0
        from_ = probe(s, la, size, M.TLB_READ)
        if from_ == 0:  # the source's faults come first
            count, from_ = 1, s + S.T3
            if call_slow(s, r, READ_SLOW, la, size, from_) == 0:
                return 0
        lb = string_linear(s, r, s + S.ES, s + S.RDI, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        to = probe(s, lb, size, M.TLB_WRITE)
        if to == 0:
            count = 1
            store(s + S.T3, load(from_))  # translating `lb` may take the source's page away
            if call_slow(s, r, WRITE_SLOW, lb, size, s + S.T3) == 0:
                return 0
        else:
            count = run_length(s, r, seg, s + S.RSI, la, size, count)
            count = run_length(s, r, s + S.ES, s + S.RDI, lb, size, count)
            copy(to, from_, count, -size if backwards(s) else size)
        advance(s, r, s + S.RSI, size, count)
        advance(s, r, s + S.RDI, size, count)
        return finish(s, r, count, 0)

    return handler


def _stos(width):
    store, size = STORE[width], width // 8

    def handler(s, r):
        count = count_left(s, r)
        if count == 0:
            return leave_next(s, r)
        la = string_linear(s, r, s + S.ES, s + S.RDI, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        to = probe(s, la, size, M.TLB_WRITE)
        if to != 0:
            count = run_length(s, r, s + S.ES, s + S.RDI, la, size, count)
            first = to - (count - 1) * size if backwards(s) else to
            value = load64(s + S.RAX)
            if width == 8:
                memset(first, value, count)
            else:
                for i in range(count):
                    store(first + i * size, value)
        else:
            count = 1
            if call_slow(s, r, WRITE_SLOW, la, size, s + S.RAX) == 0:
                return 0
        advance(s, r, s + S.RDI, size, count)
        return finish(s, r, count, 0)

    return handler


def _lods(width):
    load, put, size = LOAD[width], PUT[width], width // 8

    def handler(s, r):
        seg = source_segment(s, r)
        if count_left(s, r) == 0:
            return leave_next(s, r)
        la = string_linear(s, r, seg, s + S.RSI, size, 0)
        if load64(s + S.LEAVE) != 0:
            return 0
        from_ = probe(s, la, size, M.TLB_READ)
        if from_ == 0:
            from_ = s + S.T3
            if call_slow(s, r, READ_SLOW, la, size, from_) == 0:
                return 0
        put(s + S.RAX, load(from_))
        advance(s, r, s + S.RSI, size, 1)
        return finish(s, r, 1, 0)

    return handler


def _comparison(width, both):
    """SCAS: the accumulator with ES:rDI; CMPS: the source with it. The last comparison of a run makes the flags."""
    load, size, after_sub = LOAD[width], width // 8, SETTERS[width][1]

    def handler(s, r):
        count, seg, repetition = count_left(s, r), source_segment(s, r), load16(r + FLAGS)
        if count == 0:
            return leave_next(s, r)
        p, la = s + S.RAX, 0
        if both:
            la = string_linear(s, r, seg, s + S.RSI, size, 0)
            if load64(s + S.LEAVE) != 0:
                return 0
            p = probe(s, la, size, M.TLB_READ)
        lb = string_linear(s, r, s + S.ES, s + S.RDI, size, 0)
        if load64(s + S.LEAVE) != 0:
            return 0
        q = probe(s, lb, size, M.TLB_READ)
        if p != 0 and q != 0:
            if both:
                count = run_length(s, r, seg, s + S.RSI, la, size, count)
            count = run_length(s, r, s + S.ES, s + S.RDI, lb, size, count)
        else:
            count = 1
            if both:
                p = s + S.T2
                if call_slow(s, r, READ_SLOW, la, size, p) == 0:
                    return 0
            q = s + S.T3
            if call_slow(s, r, READ_SLOW, lb, size, q) == 0:
                return 0
        step = -size if backwards(s) else size
        done, stop, a, b = 0, 0, 0, 0
        while done < count and stop == 0:
            a, b = load(p + done * step if both else p), load(q + done * step)
            stop = 1 if (repetition & RECORD_REPNE if a == b else repetition & RECORD_REP) else 0
            done += 1
        after_sub(s, a, b, a - b)
        if both:
            advance(s, r, s + S.RSI, size, done)
        advance(s, r, s + S.RDI, size, done)
        return finish(s, r, done, stop)

    return handler


for _width in WIDTHS:
    group.add(_movs(_width), f"movs{_width}")
    group.add(_stos(_width), f"stos{_width}")
    group.add(_lods(_width), f"lods{_width}")
    group.add(_comparison(_width, both=False), f"scas{_width}")
    group.add(_comparison(_width, both=True), f"cmps{_width}")
