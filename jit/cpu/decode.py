"""From guest bytes to records: prefixes, opcode, ModRM and SIB, displacement, immediates; emit.py lays out the records.

Everything works on the vCPU block's D_* words. Bytes come from a copy in the block being built, so what was decoded is
what later executions are validated against. Running out of bytes sets D_SHORT and yields zeros: the caller decides
whether that is the end of the block or of the page.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load16, load32, load64, sext8, sext16, sext32, store64
from . import optable as T
from . import record as R
from .emit import UNIMPLEMENTED, emit_instruction, emit_trap

group = Group("decode", __name__)

MAX_LENGTH = 15  # bytes an instruction may have; beyond is #GP(0)

OK, SHORT, TOO_LONG, ENDS = 0, 1, 2, 3  # decode_one's results


@compiled
def take(s, size):
    """The next `size` instruction bytes, zero-extended."""
    cursor = load64(s + S.D_CURSOR)
    store64(s + S.D_CURSOR, cursor + size)
    if cursor + size > load64(s + S.D_LIMIT):
        store64(s + S.D_SHORT, 1)
        return 0
    at = load64(s + S.D_BYTES) + cursor
    if size == 1:
        return load8(at)
    if size == 2:
        return load16(at)
    if size == 4:
        return load32(at)
    return load64(at)


@compiled
def prefixes(s):
    """Legacy and REX prefixes; returns the first opcode byte. Sets D_REX, D_OSIZE, D_ASIZE, D_PREFIX and company."""
    long_code = load64(s + S.HFLAGS) & S.MODE_CODE64
    rex = operand = address = rep = lock = segment = 0
    while True:
        byte = take(s, 1)
        if load64(s + S.D_SHORT) != 0 or load64(s + S.D_CURSOR) - load64(s + S.D_START) > MAX_LENGTH:
            return 0
        if byte == 0x66:
            operand = 1
        elif byte == 0x67:
            address = 1
        elif byte == 0xF0:
            lock = 1
        elif byte == 0xF2:
            rep = R.RECORD_REPNE
        elif byte == 0xF3:
            rep = R.RECORD_REP
        elif byte == 0x64 or byte == 0x65:
            segment = s + (S.FS if byte == 0x64 else S.GS)
        elif byte == 0x26 or byte == 0x2E or byte == 0x36 or byte == 0x3E:
            if long_code == 0:  # null prefixes in 64-bit mode (SDM vol. 2, 2.2.1)
                segment = s + S.SEGMENTS + S.SEGMENT_SIZE * ((byte >> 3) & 3)
            elif segment != s + S.FS and segment != s + S.GS:
                segment = 0
        elif long_code != 0 and byte & 0xF0 == 0x40:
            rex = byte
            continue
        else:
            break
        rex = 0  # only a REX right before the opcode counts
    default32 = load64(s + S.HFLAGS) & (S.MODE_CODE32 | S.MODE_CODE64)
    osize = 8 if rex & 8 else (4 if (default32 != 0) != (operand != 0) else 2)
    asize = (4 if address else 8) if long_code else (4 if (default32 != 0) != (address != 0) else 2)
    store64(s + S.D_REX, rex)
    store64(s + S.D_OSIZE, osize)
    store64(s + S.D_ASIZE, asize)
    store64(s + S.D_REP, rep)
    store64(s + S.D_LOCK, lock)
    store64(s + S.D_SEGMENT, segment)
    # Column of the maps: a mandatory F3 or F2 wins over 66.
    store64(s + S.D_PREFIX, 2 if rep == R.RECORD_REP else 3 if rep == R.RECORD_REPNE else operand)
    return byte


@compiled
def set_memory(s, base, index, scale, disp, stack):
    """The memory operand of the ModRM byte."""
    store64(s + S.D_BASE, base)
    store64(s + S.D_INDEX, index)
    store64(s + S.D_SCALE, scale)
    store64(s + S.D_DISP, disp)
    segment = load64(s + S.D_SEGMENT)
    store64(s + S.D_STACK, 1 if stack and segment == 0 else 0)
    if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        if segment == 0:
            segment = s + (S.SS if stack else S.DS)
    elif segment == 0 and load64(s + S.D_ASIZE) != 8:
        segment = s + S.DS  # has no base there, but makes the address be truncated
    store64(s + S.D_SEG_PTR, segment)


@compiled
def memory16(s, mod, rm):
    """16-bit addressing (SDM vol. 2, table 2-1)."""
    none = s + S.ZERO
    base = s + (S.RBX if rm < 2 or rm == 7 else S.RBP if rm < 4 or rm == 6 else S.RSI if rm == 4 else S.RDI)
    index = s + (S.RSI if rm & 1 == 0 else S.RDI) if rm < 4 else none
    stack = 1 if rm == 2 or rm == 3 or rm == 6 else 0
    disp = 0
    if mod == 0 and rm == 6:
        base, stack = none, 0
        disp = take(s, 2)
    elif mod == 1:
        disp = sext8(take(s, 1))
    elif mod == 2:
        disp = sext16(take(s, 2))
    set_memory(s, base, index, 0, disp, stack)


@compiled
def memory32(s, mod, rm):
    """32- and 64-bit addressing with SIB (SDM vol. 2, tables 2-2, 2-3)."""
    rex = load64(s + S.D_REX)
    none = s + S.ZERO
    index, scale, stack, base = none, 0, 0, none
    if rm == 4:
        sib = take(s, 1)
        scale = sib >> 6
        number = sib >> 3 & 7 | (rex & 2) << 2
        if number != 4:
            index = s + S.GPR + 8 * number
        rm = sib & 7
        if rm == 5 and mod == 0:
            set_memory(s, none, index, scale, sext32(take(s, 4)), 0)
            return
        stack = 1 if rm == 4 and rex & 1 == 0 else 0
    elif rm == 5 and mod == 0:
        if load64(s + S.HFLAGS) & S.MODE_CODE64:
            store64(s + S.D_RIP_RELATIVE, 1)
            set_memory(s, s + S.BLOCK_RIP, none, 0, sext32(take(s, 4)), 0)
        else:
            set_memory(s, none, none, 0, take(s, 4), 0)
        return
    if rm == 5 and rex & 1 == 0:
        stack = 1
    base = s + S.GPR + 8 * (rm | (rex & 1) << 3)
    disp = 0
    if mod == 1:
        disp = sext8(take(s, 1))
    elif mod == 2:
        disp = sext32(take(s, 4))
    set_memory(s, base, index, scale, disp, stack)


@compiled
def modrm_register(s):
    """The ModRM byte alone; returns it."""
    rex, byte = load64(s + S.D_REX), take(s, 1)
    store64(s + S.D_MODRM, byte)
    store64(s + S.D_REG, byte >> 3 & 7 | (rex & 4) << 1)
    store64(s + S.D_RM, byte & 7 | (rex & 1) << 3)
    return byte


@group.add
def modrm(s):
    """ModRM, SIB and displacement."""
    byte = modrm_register(s)
    mod, rm = byte >> 6, byte & 7
    store64(s + S.D_MOD, mod)
    if mod != 3:
        if load64(s + S.D_ASIZE) == 2:
            memory16(s, mod, rm)
        else:
            memory32(s, mod, rm)
    return 0


@compiled
def lookup(s, number, opcode):
    """Entry address for an opcode of map `number` with the prefix seen."""
    cell = (number * 4 + load64(s + S.D_PREFIX)) * 256 + opcode
    return load64(load64(s + S.OPCODES) + 8 * cell)


@compiled
def entry_address(s, position):
    return load64(s + S.OPCODES) + 8 * 4 * T.MAP_COUNT * 256 + T.ENTRY_BYTES * position


@compiled
def wants_modrm(kind):
    """Whether an operand of this kind comes from the ModRM byte."""
    return (
        kind == T.E or kind == T.G or kind == T.M or kind == T.S
        or kind == T.V or kind == T.W or kind == T.U or kind == T.R or kind == T.P or kind == T.Q or kind == T.N
    )  # fmt: skip


@compiled
def wants_register(kind):
    """Control and debug registers: the ModRM byte names registers whatever its mod field is (SDM vol. 2, MOV CRn)."""
    return kind == T.K or kind == T.T


@compiled
def immediate(s, kind, size):
    """The immediate of an operand, sign-extended; D_IMM keeps it."""
    osize = load64(s + S.D_OSIZE)
    if kind == T.MOFFS:
        store64(s + S.D_IMM, take(s, load64(s + S.D_ASIZE)))
        return
    if size == T.SIZE_B or size == T.SIZE_S:
        value = sext8(take(s, 1))
    elif size == T.SIZE_W:
        value = take(s, 2)
    elif size == T.SIZE_V and osize == 8:
        value = take(s, 8)
    elif osize == 2 and size != T.SIZE_D:
        value = sext16(take(s, 2))
    else:
        value = sext32(take(s, 4))
    store64(s + S.D_IMM, value)


@compiled
def find_entry(s, opcode):
    """Entry address for the opcode that starts with `opcode`, groups resolved, ModRM parsed if it has one."""
    number = 0
    if opcode == 0x0F:
        number, opcode = 1, take(s, 1)
        if opcode == 0x38:
            number, opcode = 2, take(s, 1)
        elif opcode == 0x3A:
            number, opcode = 3, take(s, 1)
    store64(s + S.D_OPCODE, opcode)
    position = lookup(s, number, opcode)
    entry = entry_address(s, position)
    elsewhere = load64(entry + 8 * T.ELSEWHERE)
    if elsewhere != 0 and load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        entry = entry_address(s, elsewhere)
    if load64(entry + 8 * T.SHAPE) == T.GROUP:
        modrm(s)
        form = 8 if load64(s + S.D_MOD) == 3 else 0
        return entry + T.ENTRY_BYTES * (1 + (load64(s + S.D_MODRM) >> 3 & 7) + form)
    if wants_register(load64(entry + 8 * T.KIND1)) or wants_register(load64(entry + 8 * T.KIND2)):
        modrm_register(s)
    elif (
        wants_modrm(load64(entry + 8 * T.KIND1))
        or wants_modrm(load64(entry + 8 * T.KIND2))
        or wants_modrm(load64(entry + 8 * T.KIND3))
    ):
        modrm(s)
    return entry


@compiled
def is_immediate(kind):
    return kind == T.IMM or kind == T.J or kind == T.MOFFS


@group.add
def decode_one(s):
    """Decode the instruction at D_CURSOR and append its records: OK, ENDS (the block), SHORT or TOO_LONG."""
    start = load64(s + S.D_CURSOR)
    store64(s + S.D_START, start)
    store64(s + S.D_SHORT, 0)
    store64(s + S.D_RIP_RELATIVE, 0)
    store64(s + S.D_MOD, 3)
    store64(s + S.D_STACK, 0)
    store64(s + S.D_IMM, 0)
    opcode = prefixes(s)
    if load64(s + S.D_SHORT) == 0 and load64(s + S.D_CURSOR) - start > MAX_LENGTH:
        return TOO_LONG
    entry = find_entry(s, opcode)
    attributes = load64(entry + 8 * T.ATTRIBUTES)
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        osize = load64(s + S.D_OSIZE)
        if attributes & T.ATTR_F64 != 0 or (attributes & T.ATTR_D64 != 0 and osize == 4):
            store64(s + S.D_OSIZE, 8)
    for index in range(3):
        kind = load64(entry + 8 * (T.KIND1 + 2 * index))
        if is_immediate(kind):
            store64(s + S.D_FIRST, load64(s + S.D_IMM))  # ENTER and far pointers have two
            immediate(s, kind, load64(entry + 8 * (T.SIZE1 + 2 * index)))
    if load64(s + S.D_SHORT) != 0:
        return SHORT
    if load64(s + S.D_CURSOR) - start > MAX_LENGTH:
        return TOO_LONG
    if load64(s + S.D_RIP_RELATIVE) != 0:
        store64(s + S.D_DISP, load64(s + S.D_DISP) + load64(s + S.D_CURSOR))
    if entry == entry_address(s, 0):
        return emit_trap(s, UNIMPLEMENTED)
    return emit_instruction(s, entry)
