"""x87 arithmetic, loads and stores.

What an instruction computes is the unit's business (x87_unit.py). Here is what surrounds it: exceptions that wait to be
reported, memory operands, and the pointers to the last instruction. A store is committed when memory has taken it, and
not made at all when its exception is unmasked (SDM vol. 1, 8.5).
"""

from .. import state as S
from ..build import Group, compiled
from ..mmu import layout as M
from ..mmu.group import READ_SLOW, WRITE_SLOW
from ..raw import load8, load16, load32, load64, lshr, memcpy, store16, store32, store64
from . import features, x87_quick
from .access import call_slow, effective, offset, probe, read_mem, truncate, unwritable
from .flags import arithmetic, set_arithmetic
from .memory import stored
from .operand import done, fault, leave_next, rip_here
from .record import ASIZE, FLAGS, RECORD_STACK, SEG_PTR, SRC
from .x87_unit import on_memory, on_registers

group = Group("x87", __name__)

ERROR_SUMMARY, EXCEPTIONS, PRECISION = 0x80, 0x3F, 0x20
LAHF = S.SF | S.ZF | S.AF | S.PF | S.CF

# Register forms that exist, for opcodes D8 to DF: bit n is ModRM C0 + n. Those that the manuals do not list are aliases
# that every processor has; FNSTSW AX and the control instructions have handlers of their own.
REGISTER_FORMS = (
    -1, 0xFFFF7F33FF01FFFF - (1 << 64), 0x00000200FFFFFFFF, 0x00FFFF1FFFFFFFFF,
    -1, 0x0000FFFFFFFFFFFF, 0xFFFFFFFF02FFFFFF - (1 << 64), 0x00FFFF01FFFFFFFF,
)  # fmt: skip

ZERO_WORD, ZERO_BIT = features.word("ZERO_FCS_FDS"), features.mask("ZERO_FCS_FDS")
LAZY_WORD, LAZY_BIT = features.word("FDP_EXCPTN_ONLY"), features.mask("FDP_EXCPTN_ONLY")


@compiled
def pending(s, r):
    """1 with #MF raised for an unmasked exception of an earlier instruction.

    Also with CR0.NE clear, as on VMX, where CR0.NE is always set on the processor itself.
    """
    if load8(s + S.FSW) & ERROR_SUMMARY:
        fault(s, r, S.MF, 0, 0)
        return 1
    return 0


@compiled
def keeps_selectors(s):
    return 1 if load64(s + S.FEATURES + ZERO_WORD) & ZERO_BIT == 0 else 0


@compiled
def note(s, r):
    """FOP, FIP and FCS of an instruction that is executed."""
    store64(s + S.FOP, load64(r + SRC))
    store64(s + S.FIP, rip_here(s, r))
    store64(s + S.FCS, load64(s + S.CS + S.SEL) if keeps_selectors(s) else 0)


@compiled
def note_operand(s, r):
    """FDP and FDS too; some processors keep them only of an operand that made an exception."""
    note(s, r)
    if load64(s + S.FEATURES + LAZY_WORD) & LAZY_BIT and load8(s + S.FSW) & ERROR_SUMMARY == 0:
        return
    seg = load64(r + SEG_PTR)
    if seg == 0:
        seg = s + (S.SS if load16(r + FLAGS) & RECORD_STACK else S.DS)
    store64(s + S.FDP, truncate(offset(s, r), load8(r + ASIZE)))
    store64(s + S.FDS, load64(seg + S.SEL) if keeps_selectors(s) else 0)


@compiled
def exists(r):
    """Whether the register form does."""
    opcode = load64(r + SRC)
    return lshr(REGISTER_FORMS[opcode >> 8], opcode & 63) & 1


@compiled
def register_number(r):
    opcode = load64(r + SRC)
    return opcode >> 8 << 6 | opcode & 63


@compiled
def memory_number(r):
    opcode = load64(r + SRC)
    return opcode >> 8 << 3 | opcode >> 3 & 7


def _registers(quick):
    """Register forms that do not deal with RFLAGS; `quick` does some of them."""

    def handler(s, r):
        if exists(r) == 0:
            return fault(s, r, S.UD, 0, 0)
        if pending(s, r):
            return 0
        if quick(s, load64(r + SRC)) == 0:
            on_registers(s + S.FX, s + S.FX, register_number(r), s + S.T3)
        note(s, r)
        return done(r)

    return handler


@compiled
def never(s, opcode):
    return 0


group.add(_registers(never), "x87_registers")
group.add(_registers(x87_quick.arithmetic), "x87_arithmetic")
group.add(_registers(x87_quick.lone), "x87_alone")
group.add(_registers(x87_quick.push_constant), "x87_constant")
group.add(_registers(x87_quick.push_register), "fld_register")
group.add(_registers(x87_quick.exchange), "fxch")
group.add(_registers(x87_quick.copy_top), "fst_register")


@group.add
def x87_flags(s, r):
    """FCMOVcc, FCOMI, FCOMIP, FUCOMI, FUCOMIP, and FUCOMPP beside them."""
    if exists(r) == 0:
        return fault(s, r, S.UD, 0, 0)
    if pending(s, r):
        return 0
    flags, words = arithmetic(s), s + S.T2
    store16(words, (flags & LAHF) << 8 | (1 if flags & S.OF else 0))
    if x87_quick.comparison(s, load64(r + SRC), words) == 0:
        on_registers(s + S.FX, s + S.FX, register_number(r), words)
    flags = load16(words)
    set_arithmetic(s, flags >> 8 & LAHF | (S.OF if flags & 1 else 0))
    note(s, r)
    return done(r)


def _read(bits):
    size = bits // 8

    def handler(s, r):
        if pending(s, r):
            return 0
        la = effective(s, r, size, 0)
        if load64(s + S.LEAVE) != 0:
            return 0
        if bits == 80:
            if call_slow(s, r, READ_SLOW, la, 10, s + S.T1) == 0:
                return 0
        elif read_mem(s, r, la, size, s + S.T1) == 0:
            return 0
        if x87_quick.from_memory(s, load64(r + SRC), s + S.T1) == 0:
            on_memory(s + S.FX, s + S.FX, memory_number(r), s + S.T1)
        note_operand(s, r)
        return done(r)

    return handler


def _write(bits):
    size = bits // 8

    def handler(s, r):
        if pending(s, r):
            return 0
        la = effective(s, r, size, 1)
        if load64(s + S.LEAVE) != 0:
            return 0
        after, result, opcode = s + S.IMAGE, s + S.T0, load64(r + SRC)
        quick, raised, host = x87_quick.to_memory(s, opcode, result), 0, 0
        if quick == 0:
            on_memory(s + S.FX, after, memory_number(r), result)
            raised = load16(after + 2) & ~load16(after) & EXCEPTIONS & ~PRECISION
        if raised == 0:
            host = probe(s, la, size, M.TLB_WRITE)
            if bits == 80 or host == 0:
                host = 0
                if call_slow(s, r, WRITE_SLOW, la, size, result) == 0:
                    return 0
            elif bits == 64:
                store64(host, load64(result))
            elif bits == 32:
                store32(host, load32(result))
            else:
                store16(host, load16(result))
        elif unwritable(s, r, la, size):
            return 0
        if quick:
            x87_quick.commit(s, opcode)
        else:
            memcpy(s + S.FX, after, 160)
        note_operand(s, r)
        return leave_next(s, r) if host == 0 else stored(s, r, host)

    return handler


for _bits in (16, 32, 64, 80):
    group.add(_read(_bits), f"x87_read{_bits}")
    group.add(_write(_bits), f"x87_write{_bits}")
