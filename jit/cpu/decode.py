"""From guest bytes to records: prefixes, opcode, ModRM and SIB, displacement, immediates; emit.py lays out the records.

Everything works on the vCPU block's D_* words. Bytes come from a copy in the block being built, so what was decoded is
what later executions are validated against. Running out of bytes sets D_SHORT and yields zeros: the caller decides
whether that is the end of the block or of the page.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load64, sext8, sext16, sext32, store64
from . import optable as T
from .emit import emit_instruction, is_offered
from .emit_vex import emit_vex
from .prefix import MAX_LENGTH, begins_vex, prefixes, take, vex_prefix

group = Group("decode", __name__)

OK, SHORT, TOO_LONG, ENDS = 0, 1, 2, 3  # decode_one's results


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
        if load64(s + S.D_VSIB) != 0:
            index = s + S.VEC + 64 * number
            store64(s + S.D_VSIB, T.VSIB_SEEN)
        elif number != 4:
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
    if size == T.SIZE_B or size == T.SIZE_S or kind == T.L:
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
def map_of(s, opcode):
    """The number of the opcode's map, -1 for none; the opcode byte within it is in D_OPCODE."""
    number = 0
    if begins_vex(s, opcode):
        number, opcode = vex_prefix(s, opcode), take(s, 1)
    elif opcode == 0x0F:
        number, opcode = 1, take(s, 1)
        if opcode == 0x38:
            number, opcode = 2, take(s, 1)
        elif opcode == 0x3A:
            number, opcode = 3, take(s, 1)
    store64(s + S.D_OPCODE, opcode)
    return number


@compiled
def resolve(s, entry):
    """An opcode's entry, or the one in its group that ModRM selects."""
    if load64(entry + 8 * T.SHAPE) != T.GROUP:
        return entry
    form = 8 if load64(s + S.D_MOD) == 3 else 0
    return entry + T.ENTRY_BYTES * (1 + (load64(s + S.D_MODRM) >> 3 & 7) + form)


@compiled
def head_of(s, number):
    """The entry of the opcode in D_OPCODE, in this mode."""
    entry = entry_address(s, lookup(s, number, load64(s + S.D_OPCODE)))
    elsewhere = load64(entry + 8 * T.FIELDS) >> T.ELSEWHERE_SHIFT
    if elsewhere != 0 and load64(s + S.HFLAGS) & S.MODE_CODE64 == 0:
        return entry_address(s, elsewhere)
    return entry


@compiled
def find_entry(s, opcode):
    """Entry address for the opcode that starts with `opcode`, groups resolved, ModRM parsed if it has one."""
    number = map_of(s, opcode)
    if number < 0:
        return entry_address(s, T.UNDEFINED_ENTRY)
    head = head_of(s, number)
    if load64(head + 8 * T.ATTRIBUTES) & T.ATTR_VSIB:
        store64(s + S.D_VSIB, T.VSIB_WANTED)
    parsed = load64(head + 8 * T.SHAPE) == T.GROUP
    for index in range(T.OPERANDS):
        parsed = parsed or wants_modrm(load64(head + 8 * (T.KIND1 + 2 * index)))
    if wants_register(load64(head + 8 * T.KIND1)) or wants_register(load64(head + 8 * T.KIND2)):
        modrm_register(s)
    elif parsed:
        modrm(s)
    entry = resolve(s, head)
    if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_ELSE and not is_offered(s, entry):
        store64(s + S.D_PREFIX, 0)  # on processors without the feature the prefix has no meaning
        entry = resolve(s, head_of(s, number))
    return entry


@compiled
def is_immediate(kind):
    return kind == T.IMM or kind == T.J or kind == T.MOFFS or kind == T.L


@group.add
def decode_one(s):
    """Decode the instruction at D_CURSOR and append its records: OK, ENDS (the block), SHORT or TOO_LONG."""
    start = load64(s + S.D_CURSOR)
    store64(s + S.D_START, start)
    store64(s + S.D_SHORT, 0)
    store64(s + S.D_RIP_RELATIVE, 0)
    store64(s + S.D_VEX, 0)
    store64(s + S.D_VSIB, 0)
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
    for index in range(T.OPERANDS):
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
    return emit_vex(s, entry) if load64(s + S.D_VEX) else emit_instruction(s, entry)
