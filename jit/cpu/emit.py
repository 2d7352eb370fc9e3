"""Laying out the records of a decoded instruction: loads before the operation, stores after it."""

from .. import state as S
from ..build import compiled
from ..raw import load16, load64, lshr, memset, store8, store16, store64
from . import optable as T
from . import record as R
from .memory import group as memory_group
from .mmx import group as mmx_group
from .move import group as move_group
from .sse_move import group as sse_group
from .trap import group as trap_group

OK, SHORT, TOO_LONG, ENDS = 0, 1, 2, 3

_memory, _move, _trap = memory_group.slots(), move_group.slots(), trap_group.slots()


def _by_width(name: str, *wider: str) -> tuple[int, ...]:
    """Table slots of a memory handler for 8, 16, 32, 64 and wider operands."""
    return (*(_memory[f"{name}{width}"] for width in (8, 16, 32, 64)), *(_memory[other] for other in wider))


LOADS, STORES = _by_width("load", "load128", "load256"), _by_width("store", "store128", "store256")
RMWS, COMMITS, LOCKED = _by_width("rmw"), _by_width("commit"), _by_width("commit_locked")
XCHG_MEM = _by_width("xchg_mem")
POP_MEM = (0, *(_memory[f"pop_mem{width}"] for width in (16, 32, 64)), 0)
BIT_ADDRESS = (0, *(_memory[f"bit_address{width}"] for width in (16, 32, 64)), 0)
MOVES = (*(_move[f"mov{width}"] for width in (8, 16, 32, 64)), sse_group.slot("mov128"))
LOAD_ALIGNED, STORE_ALIGNED = _memory["load128a"], _memory["store128a"]
MMX_CHECK, MMX_ENTER = mmx_group.slot("mmx_check"), mmx_group.slot("mmx_enter")
UNDEFINED, PRIVILEGED = _trap["undefined"], _trap["general_protection"]
NOP = 0x90
NOT_AVAILABLE = _trap["device_not_available"]
END_BLOCK = _trap["end_block"]


@compiled
def new_record(s, slot):
    """Append a record for the instruction at hand."""
    r = load64(s + S.D_RECORD)
    store64(s + S.D_RECORD, r + R.RECORD)
    memset(r, 0, R.RECORD)
    store64(r + R.HANDLER, load64(load64(s + S.FUNCTIONS) + 8 * slot))
    store64(r + R.DST, s + S.ZERO)
    store64(r + R.SRC, s + S.ZERO)
    store64(r + R.IMM, load64(s + S.D_IMM))
    store64(r + R.BASE_PTR, s + S.ZERO)
    store64(r + R.INDEX_PTR, s + S.ZERO)
    store8(r + R.ASIZE, load64(s + S.D_ASIZE))
    store8(r + R.OSIZE, load64(s + S.D_OSIZE))
    store8(r + R.OFFSET, load64(s + S.D_START))
    store8(r + R.NEXT, load64(s + S.D_CURSOR))
    flags = load64(s + S.D_REP) | (R.RECORD_LOCK if load64(s + S.D_LOCK) else 0)
    store16(r + R.FLAGS, flags | (R.RECORD_STACK if load64(s + S.D_STACK) else 0))
    return r


@compiled
def add_address(s, r):
    """Give a record the instruction's memory operand."""
    store64(r + R.BASE_PTR, load64(s + S.D_BASE))
    store64(r + R.INDEX_PTR, load64(s + S.D_INDEX))
    store8(r + R.SCALE, load64(s + S.D_SCALE))
    store64(r + R.IMM, load64(s + S.D_DISP))
    store64(r + R.SEG_PTR, load64(s + S.D_SEG_PTR))


@compiled
def width_index(s, size):
    """0 to 5 for 8, 16, 32, 64, 128, 256 bits."""
    osize = load64(s + S.D_OSIZE)
    if size == T.SIZE_B:
        return 0
    if size == T.SIZE_W:
        return 1
    if size == T.SIZE_D:
        return 2
    if size == T.SIZE_Q:
        return 3
    if size == T.SIZE_X:
        return 4
    if size == T.SIZE_QQ:
        return 5
    if size == T.SIZE_Y:
        return 3 if osize == 8 else 2
    return 3 if osize == 8 else 2 if osize == 4 else 1


@compiled
def register(s, number, size):
    """Address of a general register's operand; without REX, byte registers 4 to 7 are AH CH DH BH."""
    if size == T.SIZE_B and load64(s + S.D_REX) == 0 and number >= 4:
        return s + S.GPR + 8 * (number - 4) + 1
    return s + S.GPR + 8 * number


@compiled
def place(s, r, kind, size, scratch):
    """Address of an operand of record r; a memory operand is in `scratch`."""
    if kind == T.E or kind == T.W or kind == T.Q:
        if load64(s + S.D_MOD) != 3:
            return scratch
        if kind == T.E:
            return register(s, load64(s + S.D_RM), size)
        if kind == T.Q:
            return s + S.ST + 16 * (load64(s + S.D_RM) & 7)
        return s + S.VEC + 64 * load64(s + S.D_RM)
    if kind == T.G:
        return register(s, load64(s + S.D_REG), size)
    if kind == T.R:
        return s + S.GPR + 8 * load64(s + S.D_RM)
    if kind == T.V:
        return s + S.VEC + 64 * load64(s + S.D_REG)
    if kind == T.U:
        return s + S.VEC + 64 * load64(s + S.D_RM)
    if kind == T.P:
        return s + S.ST + 16 * (load64(s + S.D_REG) & 7)
    if kind == T.N:
        return s + S.ST + 16 * (load64(s + S.D_RM) & 7)
    if kind == T.Z:
        return register(s, load64(s + S.D_OPCODE) & 7 | (load64(s + S.D_REX) & 1) << 3, size)
    if kind == T.A:
        return s + S.RAX
    if kind == T.D:
        return s + S.RDX
    if kind == T.C:
        return s + S.RCX
    if kind == T.ONE:
        store64(r + R.IMM, 1)
        return r + R.IMM
    if kind == T.IMM or kind == T.J:
        return r + R.IMM
    # Outside 64-bit mode there are eight registers: the fourth bit of their numbers is ignored (SDM vol. 2, 2.3.6).
    numbers = 15 if load64(s + S.HFLAGS) & S.MODE_CODE64 else 7
    if kind == T.H:
        return s + S.VEC + 64 * (load64(s + S.D_VVVV) & numbers)
    if kind == T.B:
        return s + S.GPR + 8 * (load64(s + S.D_VVVV) & numbers)
    if kind == T.L:
        return s + S.VEC + 64 * (load64(s + S.D_IMM) >> 4 & numbers)
    return s + S.ZERO


@compiled
def in_memory(s, kind):
    """Whether an operand of this kind is the memory operand."""
    return (kind == T.E or kind == T.W or kind == T.Q) and load64(s + S.D_MOD) != 3


@compiled
def emit_trap(s, slot):
    """A record that ends the block with a fault."""
    new_record(s, slot)
    return ENDS


@compiled
def emit_load(s, size, scratch, aligned):
    """scratch <- memory operand."""
    index = width_index(s, size)
    r = new_record(s, LOAD_ALIGNED if index == 4 and aligned else LOADS[index])
    add_address(s, r)
    store64(r + R.DST, scratch)


@compiled
def emit_store(s, size, source, aligned):
    """Memory operand <- source slot."""
    index = width_index(s, size)
    r = new_record(s, STORE_ALIGNED if index == 4 and aligned else STORES[index])
    add_address(s, r)
    store64(r + R.SRC, source)


@compiled
def emit_move(s, entry):
    """MOV and its vector kin: a load, a store or a copy."""
    kind1, size1 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.SIZE1)
    kind2, size2 = load64(entry + 8 * T.KIND2), load64(entry + 8 * T.SIZE2)
    aligned = load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_AL
    index = width_index(s, size1)
    if kind1 == T.MOFFS or kind2 == T.MOFFS:  # moffs: an absolute offset in DS
        store64(s + S.D_BASE, s + S.ZERO)
        store64(s + S.D_INDEX, s + S.ZERO)
        store64(s + S.D_DISP, load64(s + S.D_IMM))
        segment = load64(s + S.D_SEGMENT)
        if load64(s + S.HFLAGS) & S.MODE_CODE64 == 0 and segment == 0:
            segment = s + S.DS
        store64(s + S.D_SEG_PTR, segment)
    if in_memory(s, kind1) or kind1 == T.MOFFS:
        r = new_record(s, STORE_ALIGNED if index == 4 and aligned else STORES[index])
        add_address(s, r)
        if kind2 == T.IMM:  # IMM holds the displacement: the immediate goes where a store has no operand
            store64(r + R.DST, load64(s + S.D_IMM))
            store64(r + R.SRC, r + R.DST)
        else:
            store64(r + R.SRC, place(s, r, kind2, size2, s + S.ZERO))
        return
    if in_memory(s, kind2) or kind2 == T.MOFFS:
        r = new_record(s, LOAD_ALIGNED if index == 4 and aligned else LOADS[index])
        add_address(s, r)
        store64(r + R.DST, place(s, r, kind1, size1, s + S.ZERO))
        return
    r = new_record(s, MOVES[index])
    store64(r + R.DST, place(s, r, kind1, size1, s + S.ZERO))
    store64(r + R.SRC, place(s, r, kind2, size2, s + S.ZERO))


@compiled
def emit_operation(s, entry):
    """The general case: operands to slots, the operation, the result back to memory."""
    attributes = load64(entry + 8 * T.ATTRIBUTES)
    kind1, size1 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.SIZE1)
    kind2, size2 = load64(entry + 8 * T.KIND2), load64(entry + 8 * T.SIZE2)
    kind3, size3 = load64(entry + 8 * T.KIND3), load64(entry + 8 * T.SIZE3)
    index, memory1 = width_index(s, size1), in_memory(s, kind1)
    chosen = width_index(s, size2) if attributes & T.ATTR_BY2 else index
    slot = load64(entry + 8 * (T.SLOTS + chosen))
    reads, writes = attributes & T.ATTR_W == 0, attributes & T.ATTR_R == 0
    rmw = memory1 and reads and writes
    if rmw:
        r = new_record(s, RMWS[index])
        add_address(s, r)
        if kind2 == T.G:
            store64(r + R.SRC, place(s, r, kind2, size2, s + S.ZERO))
    elif memory1 and reads:
        emit_load(s, size1, s + S.T0, attributes & T.ATTR_AL)
    if in_memory(s, kind2):
        if attributes & T.ATTR_MMX:
            new_record(s, MMX_CHECK)
        emit_load(s, size2, s + S.T1, attributes & T.ATTR_AL)
    if attributes & T.ATTR_MMX:
        new_record(s, MMX_ENTER)
    r = new_record(s, slot)
    store64(r + R.SEG_PTR, load64(s + S.D_SEGMENT))
    store64(r + R.DST, place(s, r, kind1, size1, s + S.T0))
    store64(r + R.SRC, place(s, r, kind2, size2, s + S.T1))
    if kind3 != T.NONE:
        store64(r + R.BASE_PTR, place(s, r, kind3, size3, s + S.T1))
    if kind2 == T.NONE:
        store64(r + R.SRC, load64(r + R.DST))
    if rmw:
        r = new_record(s, LOCKED[index] if load64(s + S.D_LOCK) else COMMITS[index])
        store8(r + R.AUX, 2)
        if kind2 == T.G:
            store64(r + R.SRC, place(s, r, kind2, size2, s + S.ZERO))
    elif memory1 and writes:
        emit_store(s, size1, s + S.T0, attributes & T.ATTR_AL)


@compiled
def emit_bare(s, entry, slot):
    """One record; the handler knows what to do with DST, SRC, AUX and the address."""
    kind1, size1 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.SIZE1)
    kind2, size2 = load64(entry + 8 * T.KIND2), load64(entry + 8 * T.SIZE2)
    r = new_record(s, slot)
    first = place(s, r, kind1, size1, s + S.T0)
    store64(r + R.DST, first)
    store64(r + R.SRC, place(s, r, kind2, size2, s + S.T0) if kind2 != T.NONE else first)
    selects = kind1 == T.K or kind1 == T.T or kind1 == T.S or kind2 == T.K or kind2 == T.T or kind2 == T.S
    store8(r + R.AUX, load64(s + S.D_REG) if selects else load64(s + S.D_RM))
    if kind1 == T.S or kind2 == T.S:
        store8(r + R.AUX, load64(s + S.D_REG) & 7)  # REX.R is ignored there
    if kind1 == T.NONE:
        store8(r + R.AUX, load64(s + S.D_MODRM) & 7)  # part of the opcode: REX.B is ignored
    if kind1 == T.IMM and kind2 == T.IMM:  # the second goes where an operand's address would be
        store64(r + R.DST, load64(s + S.D_IMM))
        store64(r + R.IMM, load64(s + S.D_FIRST))
    if load64(entry + 8 * T.ATTRIBUTES) & (T.ATTR_X87 | T.ATTR_MMX):
        store64(r + R.SRC, (load64(s + S.D_OPCODE) & 7) << 8 | load64(s + S.D_MODRM))
    store64(r + R.SEG_PTR, load64(s + S.D_SEGMENT))
    return r


@compiled
def no_such_register(s, entry):
    """Whether the instruction moves to or from a control or debug register that there is not."""
    number, kind1, kind2 = load64(s + S.D_REG), load64(entry + 8 * T.KIND1), load64(entry + 8 * T.KIND2)
    if kind1 == T.K or kind2 == T.K:
        return number != 0 and number != 2 and number != 3 and number != 4 and number != 8
    return number > 7 and (kind1 == T.T or kind2 == T.T)


@compiled
def is_offered(s, entry):
    """Whether the guest has the feature that an entry needs, or one of two that will do."""
    wanted = lshr(load64(entry + 8 * T.ATTRIBUTES), T.FEATURE_SHIFT)
    offered = wanted == 0
    while wanted != 0:
        bit = (wanted & 0xFFFF) - 1
        offered = offered or lshr(load64(s + S.FEATURES + 8 * (bit >> 6)), bit & 63) & 1 != 0
        wanted = wanted >> 16
    return offered


@compiled
def refused(s, entry):
    """The trap that the encoding deserves whatever its operands (SDM vol. 2, exceptions tables), or 0."""
    attributes = load64(entry + 8 * T.ATTRIBUTES)
    hflags = load64(s + S.HFLAGS)
    if load64(entry + 8 * T.SHAPE) == T.UNDEFINED or (attributes & T.ATTR_NO64 and hflags & S.MODE_CODE64):
        return UNDEFINED
    if not is_offered(s, entry):
        return UNDEFINED
    if attributes & T.ATTR_PM and hflags & S.MODE_PROTECTED == 0:
        return UNDEFINED
    if no_such_register(s, entry):
        return UNDEFINED
    kind1 = load64(entry + 8 * T.KIND1)
    if load64(s + S.D_LOCK) and not (attributes & T.ATTR_LOCK and (in_memory(s, kind1) or kind1 == T.M)):
        return UNDEFINED
    if load64(s + S.D_MOD) == 3 and (kind1 == T.M or load64(entry + 8 * T.KIND2) == T.M):
        return UNDEFINED
    if attributes & T.ATTR_SSE and hflags & (S.MODE_NO_SSE | S.MODE_TS):
        return UNDEFINED if hflags & S.MODE_NO_SSE else NOT_AVAILABLE
    if attributes & T.ATTR_X87 and hflags & (S.MODE_EM | S.MODE_TS):
        return NOT_AVAILABLE
    if attributes & T.ATTR_MMX and hflags & (S.MODE_EM | S.MODE_TS):
        return UNDEFINED if hflags & S.MODE_EM else NOT_AVAILABLE
    if attributes & T.ATTR_CPL0 and hflags & S.MODE_UNPRIVILEGED:
        return PRIVILEGED
    return 0


@compiled
def emit_instruction(s, entry):
    """Append the records of the instruction that `entry` describes: OK, or ENDS."""
    trap = refused(s, entry)
    if trap != 0:
        return emit_trap(s, trap)
    first = load64(s + S.D_RECORD)
    result = emit_records(s, entry)
    if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_MEM:
        forbid_mmio(s, first)
    return result


@compiled
def forbid_mmio(s, r):
    """The records from r on are of an instruction that is done on memory only."""
    while r != load64(s + S.D_RECORD):
        store16(r + R.FLAGS, load16(r + R.FLAGS) | R.RECORD_NO_MMIO)
        r += R.RECORD


@compiled
def emit_records(s, entry):
    """The records of an instruction that is allowed: OK, or ENDS."""
    shape = load64(entry + 8 * T.SHAPE)
    kind1, size1 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.SIZE1)
    index = width_index(s, size1)
    slot = load64(entry + 8 * (T.SLOTS + index))
    if shape == T.MOVE:
        emit_move(s, entry)
        return OK
    if shape == T.NOP or (kind1 == T.Z and load64(s + S.D_OPCODE) == NOP and load64(s + S.D_REX) & 1 == 0):
        return OK  # 90 is XCHG only with REX.B: it does not clear the upper half of RAX
    if shape == T.XCHG and in_memory(s, kind1):
        r = new_record(s, XCHG_MEM[index])
        add_address(s, r)
        store64(r + R.DST, register(s, load64(s + S.D_REG), size1))
        return OK
    if shape == T.POP_MEM and in_memory(s, kind1):
        r = new_record(s, POP_MEM[index])
        add_address(s, r)
        return OK
    if shape == T.BIT and in_memory(s, kind1):
        r = new_record(s, BIT_ADDRESS[index])
        add_address(s, r)
        store64(r + R.SRC, register(s, load64(s + S.D_REG), size1))
        store64(s + S.D_BASE, s + S.T2)
        store64(s + S.D_INDEX, s + S.ZERO)
        store64(s + S.D_SCALE, 0)
        store64(s + S.D_DISP, 0)
    if shape == T.OPERATE or shape == T.BIT or shape == T.XCHG or shape == T.POP_MEM:
        emit_operation(s, entry)
    elif shape == T.ONE_SOURCE:
        if in_memory(s, kind1):
            emit_load(s, size1, s + S.T0, 0)
        r = emit_bare(s, entry, slot)
        store64(r + R.SRC, place(s, r, kind1, size1, s + S.T0))
    elif shape == T.ADDRESS:
        r = emit_bare(s, entry, slot)
        if load64(s + S.D_MOD) != 3:
            add_address(s, r)
    elif shape == T.W16:  # a register gets the operand size, memory 16 bits
        if in_memory(s, kind1):
            r = emit_bare(s, entry, slot)
            store8(r + R.OSIZE, 2)
            emit_store(s, T.SIZE_W, s + S.T0, 0)
        else:
            emit_bare(s, entry, slot)
    else:
        emit_bare(s, entry, slot)
    return ENDS if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_END else OK
