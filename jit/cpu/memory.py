"""Memory operands: loads into operand slots, stores from them, read-modify-write pairs, locked commits, the stack.

An instruction with a memory destination becomes three records: `rmw` brings the operand into a scratch slot and makes
sure it can be written, the operation works on the slot, `commit` writes it back. Under LOCK the commit is a host
compare-and-swap; when another CPU was faster, flags and registers are put back and the operation is done again.
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu import layout as M
from ..mmu.group import READ_SLOW, RMW_READ_SLOW, RMW_WRITE_SLOW, WRITE_SLOW
from ..raw import (
    cas8,
    cas16,
    cas32,
    cas64,
    cas128,
    load8,
    load64,
    memcpy,
    memset,
    shl,
    store8,
    store16,
    store32,
    store64,
    zext32,
)
from . import features
from .access import (
    call_slow,
    effective,
    offset,
    on_running_code,
    peek_value,
    pop_value,
    probe,
    push_value,
    set_rsp,
    stack_linear,
    stack_mask,
    truncate,
    unwritable,
)
from .flags import set_zf
from .operand import LOAD, PUT, SLOAD, WIDTHS, done, dst, fault, leave_next, src
from .record import ASIZE, AUX, IMM, OSIZE, RECORD

group = Group("memory", __name__)
CX16_WORD, CX16_BIT = features.word("CX16"), features.mask("CX16")

STORE = {8: store8, 16: store16, 32: store32, 64: store64}
CAS = {8: cas8, 16: cas16, 32: cas32, 64: cas64}


@compiled
def stored(s, r, host):
    """After an instruction's store: go on, unless it may have changed the running block."""
    return leave_next(s, r) if on_running_code(s, host) else done(r)


def _load(width):
    """Operand slot <- memory."""
    load, put, size = LOAD[width], PUT[width], width // 8

    def handler(s, r):
        la = effective(s, r, size, 0)
        host = probe(s, la, size, M.TLB_READ)
        if host != 0 and load64(s + S.LEAVE) == 0:
            put(dst(r), load(host))
            return done(r)
        if load64(s + S.LEAVE) != 0 or call_slow(s, r, READ_SLOW, la, size, s + S.T3) == 0:
            return 0
        put(dst(r), load(s + S.T3))
        return done(r)

    return handler


def _store(width):
    """Memory <- operand slot; always an instruction's last record."""
    load, store, size = LOAD[width], STORE[width], width // 8

    def handler(s, r):
        la = effective(s, r, size, 1)
        host = probe(s, la, size, M.TLB_WRITE)
        if host != 0 and load64(s + S.LEAVE) == 0:
            store(host, load(src(r)))
            return stored(s, r, host)
        if load64(s + S.LEAVE) != 0 or call_slow(s, r, WRITE_SLOW, la, size, src(r)) == 0:
            return 0
        return leave_next(s, r)

    return handler


def _rmw(width):
    """T0 <- memory that will be written back; `src` is a register to restore should a locked commit be repeated."""
    load, size = LOAD[width], width // 8

    def handler(s, r):
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        host = probe(s, la, size, M.TLB_WRITE)
        store64(s + S.RMW_HOST, host)
        store64(s + S.RMW_LINEAR, la)
        if host != 0:
            store64(s + S.T0, load(host))
        elif call_slow(s, r, RMW_READ_SLOW, la, size, s + S.T0) == 0:
            return 0
        store64(s + S.RMW_OLD, load(s + S.T0))
        store64(s + S.RMW_FLAGS, load64(s + S.FLAG_RESULT))
        store64(s + S.RMW_FLAGS + 8, load64(s + S.FLAG_AUX))
        store64(s + S.RMW_SAVED, load64(s + S.RAX))
        store64(s + S.RMW_SAVED + 8, load64(src(r)))
        return done(r)

    return handler


def _commit(width):
    """Write T0 back to where `rmw` found it."""
    load, store, size = LOAD[width], STORE[width], width // 8

    def handler(s, r):
        host = load64(s + S.RMW_HOST)
        if host != 0:
            store(host, load(s + S.T0))
            return stored(s, r, host)
        if call_slow(s, r, RMW_WRITE_SLOW, load64(s + S.RMW_LINEAR), size, s + S.T0) == 0:
            return 0
        return leave_next(s, r)

    return handler


def _commit_locked(width):
    """The same as one atomic exchange; AUX records back is the `rmw` to repeat, `src` the register it saved."""
    cas, size = CAS[width], width // 8

    def handler(s, r):
        host = load64(s + S.RMW_HOST)
        if host == 0:
            # Not one host word (page crossing, MMIO): as KVM's emulator, written without atomicity.
            if call_slow(s, r, RMW_WRITE_SLOW, load64(s + S.RMW_LINEAR), size, s + S.T0) == 0:
                return 0
            return leave_next(s, r)
        old = load64(s + S.RMW_OLD)
        if cas(host, old, load64(s + S.T0)) == old:
            return stored(s, r, host)
        store64(s + S.FLAG_RESULT, load64(s + S.RMW_FLAGS))
        store64(s + S.FLAG_AUX, load64(s + S.RMW_FLAGS + 8))
        store64(src(r), load64(s + S.RMW_SAVED + 8))
        store64(s + S.RAX, load64(s + S.RMW_SAVED))
        return r - RECORD * load8(r + AUX)

    return handler


for _width in WIDTHS:
    group.add(_load(_width), f"load{_width}")
    group.add(_store(_width), f"store{_width}")
    group.add(_rmw(_width), f"rmw{_width}")
    group.add(_commit(_width), f"commit{_width}")
    group.add(_commit_locked(_width), f"commit_locked{_width}")


def _load_wide(size, aligned, clears=False):
    """Vector slot <- memory. `clears`: VEX.128 into a register, whose upper half becomes 0."""

    def handler(s, r):
        la = effective(s, r, size, 0)
        if load64(s + S.LEAVE) != 0:
            return 0
        if aligned and la & (size - 1) != 0:
            return fault(s, r, S.GP, 0, 1)
        host = probe(s, la, size, M.TLB_READ)
        if host != 0:
            memcpy(dst(r), host, size)
        elif call_slow(s, r, READ_SLOW, la, size, s + S.T3):
            memcpy(dst(r), s + S.T3, size)
        else:
            return 0
        if clears:
            memset(dst(r) + 16, 0, 16)
        return done(r)

    return handler


def _store_wide(size, aligned):
    """Memory <- vector slot."""

    def handler(s, r):
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        if aligned and la & (size - 1) != 0:
            return fault(s, r, S.GP, 0, 1)
        host = probe(s, la, size, M.TLB_WRITE)
        if host != 0:
            memcpy(host, src(r), size)
            return stored(s, r, host)
        if call_slow(s, r, WRITE_SLOW, la, size, src(r)) == 0:
            return 0
        return leave_next(s, r)

    return handler


def _probe(size):
    """The memory operand can be written: for an operation that may raise an exception after it."""

    def handler(s, r):
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0 or unwritable(s, r, la, size):
            return 0
        return done(r)

    return handler


group.add(_probe(8), "probe64")
group.add(_probe(16), "probe128")
for _aligned, _suffix in ((False, ""), (True, "a")):
    group.add(_load_wide(16, _aligned), f"load128{_suffix}")
    group.add(_load_wide(16, _aligned, clears=True), f"load128{_suffix}z")
    group.add(_load_wide(32, _aligned), f"load256{_suffix}")
    group.add(_store_wide(16, _aligned), f"store128{_suffix}")
    group.add(_store_wide(32, _aligned), f"store256{_suffix}")


def _lea(width):
    put = PUT[width]

    def handler(s, r):
        put(dst(r), truncate(offset(s, r), load8(r + ASIZE)))
        return done(r)

    return handler


def _push(width):
    """Push the source operand; the last record of its instruction."""
    load, store, size = LOAD[width], STORE[width], width // 8

    def handler(s, r):
        value, wide = load(src(r)), load64(s + S.HFLAGS) & S.MODE_CODE64
        top = load64(s + S.RSP) - size
        la = top
        if wide == 0:
            top &= stack_mask(s)
            la = stack_linear(s, r, top, size, 1)
            if load64(s + S.LEAVE) != 0:
                return 0
        host = probe(s, la, size, M.TLB_WRITE)
        if host != 0:
            store(host, value)
            if wide:
                store64(s + S.RSP, top)
            else:
                set_rsp(s, top)
            return stored(s, r, host)
        return leave_next(s, r) if push_value(s, r, value, size) else 0

    return handler


def _pop(width):
    load, put, size = LOAD[width], PUT[width], width // 8

    def handler(s, r):
        top = load64(s + S.RSP)
        host = probe(s, top, size, M.TLB_READ)
        if host != 0 and load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
            value = load(host)
            store64(s + S.RSP, top + size)
            put(dst(r), value)
            return done(r)
        if pop_value(s, r, size) == 0:
            return 0
        put(dst(r), load(s + S.T3))
        return done(r)

    return handler


def _pop_mem(width):
    """POP to memory: RSP in its address is the incremented one, and stays as it was if the store faults."""
    size = width // 8

    def handler(s, r):
        old = load64(s + S.RSP)
        if pop_value(s, r, size) == 0:
            return 0
        store64(s + S.T0, load64(s + S.T3))
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0 or call_slow(s, r, WRITE_SLOW, la, size, s + S.T0) == 0:
            store64(s + S.RSP, old)
            return 0
        return leave_next(s, r)

    return handler


def _leave(width):
    """LEAVE: RSP <- RBP, pop RBP."""
    load, put, size = LOAD[width], PUT[width], width // 8

    def handler(s, r):
        depth = load64(s + S.RBP) - load64(s + S.RSP)
        if peek_value(s, r, depth, size) == 0:
            return 0
        set_rsp(s, load64(s + S.RBP) + size)
        put(s + S.RBP, load(s + S.T3))
        return done(r)

    return handler


for _width in (16, 32, 64):
    group.add(_lea(_width), f"lea{_width}")
    group.add(_push(_width), f"push{_width}")
    group.add(_pop(_width), f"pop{_width}")
    group.add(_pop_mem(_width), f"pop_mem{_width}")
    group.add(_leave(_width), f"leave{_width}")


@group.add
def enter_frame(s, r):
    """ENTER imm16, imm8: the frame size is in IMM, the nesting level in DST (SDM vol. 2, ENTER)."""
    size, level = load8(r + OSIZE), dst(r) & 31
    old_rsp, old_rbp = load64(s + S.RSP), load64(s + S.RBP)
    if push_value(s, r, old_rbp, size) == 0:
        return 0
    frame = load64(s + S.RSP)
    for step in range(1, level):
        depth = old_rbp - step * size - load64(s + S.RSP)
        if peek_value(s, r, depth, size) == 0 or push_value(s, r, load64(s + S.T3), size) == 0:
            store64(s + S.RSP, old_rsp)
            return 0
    if level != 0 and push_value(s, r, frame, size) == 0:
        store64(s + S.RSP, old_rsp)
        return 0
    top = (load64(s + S.RSP) - load64(r + IMM)) & stack_mask(s)
    # The manual checks that the new top of stack can be written before anything is committed.
    la = stack_linear(s, r, top, size, 1)
    if load64(s + S.LEAVE) != 0 or call_slow(s, r, RMW_READ_SLOW, la, size, s + S.T3) == 0:
        store64(s + S.RSP, old_rsp)
        return 0
    set_rsp(s, top)
    if size == 2:
        store16(s + S.RBP, frame)
    else:
        store64(s + S.RBP, frame if size == 8 else zext32(frame))
    return leave_next(s, r)


def _xchg_mem(width):
    """XCHG with memory is locked with or without the prefix; dst is the register."""
    load, put, cas, size = LOAD[width], PUT[width], CAS[width], width // 8

    def handler(s, r):
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        host, register = probe(s, la, size, M.TLB_WRITE), dst(r)
        if host == 0:
            if call_slow(s, r, RMW_READ_SLOW, la, size, s + S.T0) == 0:
                return 0
            host = load64(s + S.RMW_HOST)
        if host != 0:
            old = load(host)
            new = load(register)
            found = cas(host, old, new)
            while found != old:
                old = found
                found = cas(host, old, new)
            put(register, old)
            return stored(s, r, host)
        if call_slow(s, r, RMW_WRITE_SLOW, la, size, register) == 0:
            return 0
        put(register, load(s + S.T0))
        return leave_next(s, r)

    return handler


for _width in WIDTHS:
    group.add(_xchg_mem(_width), f"xchg_mem{_width}")


@group.add
def cmpxchg8b(s, r):
    """CMPXCHG8B m64: EDX:EAX against memory, ECX:EBX into it."""
    la = effective(s, r, 8, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    host = probe(s, la, 8, M.TLB_WRITE)
    if host == 0:
        if call_slow(s, r, RMW_READ_SLOW, la, 8, s + S.T0) == 0:
            return 0
        host = load64(s + S.RMW_HOST)
    old = shl(load64(s + S.RDX), 32) | zext32(load64(s + S.RAX))
    new = shl(load64(s + S.RCX), 32) | zext32(load64(s + S.RBX))
    if host != 0:
        found = cas64(host, old, new)
    else:
        found = load64(s + S.T0)
        if found == old:
            store64(s + S.T0, new)
        if call_slow(s, r, RMW_WRITE_SLOW, la, 8, s + S.T0) == 0:
            return 0
    if found != old:
        store64(s + S.RAX, zext32(found))
        store64(s + S.RDX, zext32(found >> 32))
    set_zf(s, 1 if found == old else 0)
    return leave_next(s, r)


@group.add
def cmpxchg16b(s, r):
    """CMPXCHG16B m128: RDX:RAX against memory, RCX:RBX into it; #GP unless 16-byte aligned."""
    if load64(s + S.FEATURES + CX16_WORD) & CX16_BIT == 0:  # a feature beside CMPXCHG8B's, in one row of the table
        return fault(s, r, S.UD, 0, 0)
    la = effective(s, r, 16, 1)
    if load64(s + S.LEAVE) != 0:
        return 0
    if la & 15 != 0:
        return fault(s, r, S.GP, 0, 1)
    store64(s + S.T1, load64(s + S.RAX))
    store64(s + S.T1 + 8, load64(s + S.RDX))
    store64(s + S.T2, load64(s + S.RBX))
    store64(s + S.T2 + 8, load64(s + S.RCX))
    host = probe(s, la, 16, M.TLB_WRITE)
    if host == 0:
        if call_slow(s, r, RMW_READ_SLOW, la, 16, s + S.T0) == 0:
            return 0
        host = load64(s + S.RMW_HOST)
    if host != 0:
        same = cas128(host, s + S.T1, s + S.T2, 0)
    else:
        low, high = load64(s + S.T0), load64(s + S.T0 + 8)
        same = 1 if low == load64(s + S.T1) and high == load64(s + S.T1 + 8) else 0
        store64(s + S.T1, low)
        store64(s + S.T1 + 8, high)
        if call_slow(s, r, RMW_WRITE_SLOW, la, 16, s + S.T2 if same else s + S.T0) == 0:
            return 0
    if same == 0:
        store64(s + S.RAX, load64(s + S.T1))
        store64(s + S.RDX, load64(s + S.T1 + 8))
    set_zf(s, same)
    return leave_next(s, r)


def _bit_address(width):
    """T2 <- offset of the word that holds bit `src` of a bit string in memory (SDM vol. 2, BT)."""
    load, shift = SLOAD[width], {16: 4, 32: 5, 64: 6}[width]

    def handler(s, r):
        store64(s + S.T2, offset(s, r) + (load(src(r)) >> shift) * (width // 8))
        return done(r)

    return handler


for _width in (16, 32, 64):
    group.add(_bit_address(_width), f"bit_address{_width}")
