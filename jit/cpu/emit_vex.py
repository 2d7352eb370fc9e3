"""Records of VEX-encoded instructions: three and four operands, 256 bits, no alignment but of the aligned moves.

A VEX-encoded instruction clears its destination register above what it writes, up to bit 255: the handlers do.
"""

from .. import state as S
from ..build import compiled
from ..raw import load64, store8, store64
from . import optable as T
from . import record as R
from .emit import (
    ENDS,
    LOADS,
    NOT_AVAILABLE,
    OK,
    STORES,
    UNDEFINED,
    add_address,
    emit_trap,
    forbid_mmio,
    in_memory,
    is_offered,
    new_record,
    place,
    width_index,
)
from .memory import group as memory_group
from .vex import group as vex_group

_memory, _vex = memory_group.slots(), vex_group.slots()
QWORD, XMM, YMM = 3, 4, 5  # width_index
PROBES = (_memory["probe64"], _memory["probe128"])
# Moves of a whole register by VEX.L: plain, aligned
REGISTER_LOADS = (_memory["load128z"], _memory["load256"], _memory["load128az"], _memory["load256a"])
REGISTER_STORES = (_memory["store128"], _memory["store256"], _memory["store128a"], _memory["store256a"])
MOVES = (_vex["vmov128"], _vex["vmov256"])


@compiled
def refused_vex(s, entry):
    """The trap that the encoding deserves, or 0 (SDM vol. 2, 2.4). VEX.W and VEX.L have been looked at by the maps."""
    attributes, hflags = load64(entry + 8 * T.ATTRIBUTES), load64(s + S.HFLAGS)
    if load64(entry + 8 * T.SHAPE) == T.UNDEFINED or not is_offered(s, entry):
        return UNDEFINED
    if attributes & T.ATTR_VVVV and load64(s + S.D_VVVV) != 0:
        return UNDEFINED
    if attributes & T.ATTR_AVX and hflags & S.MODE_NO_AVX:
        return UNDEFINED
    if attributes & T.ATTR_VSIB:
        reg, mask = load64(s + S.D_REG), load64(s + S.D_VVVV) & (15 if hflags & S.MODE_CODE64 else 7)
        index = (load64(s + S.D_INDEX) - (s + S.VEC)) >> 6
        if load64(s + S.D_VSIB) != T.VSIB_SEEN or reg in (mask, index) or mask == index:
            return UNDEFINED
    if load64(s + S.D_MOD) == 3:
        for operand in range(T.OPERANDS):
            if load64(entry + 8 * (T.KIND1 + 2 * operand)) == T.M:
                return UNDEFINED
    if attributes & T.ATTR_AVX and hflags & S.MODE_TS:
        return NOT_AVAILABLE
    return 0


@compiled
def emit_register_move(s, entry):
    """VMOVAPS and its kin."""
    kind1, kind2 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.KIND2)
    size, long = load64(entry + 8 * T.SIZE1), load64(s + S.D_LENGTH)
    variant = long + (2 if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_AL else 0)
    if in_memory(s, kind1):
        r = new_record(s, REGISTER_STORES[variant])
        add_address(s, r)
        store64(r + R.SRC, place(s, r, kind2, size, s + S.ZERO))
    elif in_memory(s, kind2):
        r = new_record(s, REGISTER_LOADS[variant])
        add_address(s, r)
        store64(r + R.DST, place(s, r, kind1, size, s + S.ZERO))
    else:
        r = new_record(s, MOVES[long])
        store64(r + R.DST, place(s, r, kind1, size, s + S.ZERO))
        store64(r + R.SRC, place(s, r, kind2, size, s + S.ZERO))


@compiled
def set_operands(s, r, entry):
    """Operand addresses into the fields that the row says; a memory operand is in T0 if it is the first, else in T1."""
    fields = load64(entry + 8 * T.FIELDS)
    for operand in range(T.OPERANDS):
        field = fields >> 8 * operand & 0xFF
        if field != 0:
            kind, size = load64(entry + 8 * (T.KIND1 + 2 * operand)), load64(entry + 8 * (T.SIZE1 + 2 * operand))
            store64(r + field, place(s, r, kind, size, s + (S.T1 if operand else S.T0)))
    store8(r + R.AUX, load64(s + S.D_LENGTH))


@compiled
def emit_vex(s, entry):
    """Append the records of the VEX-encoded instruction that `entry` describes: OK, or ENDS."""
    trap, first = refused_vex(s, entry), load64(s + S.D_RECORD)
    if trap != 0:
        return emit_trap(s, trap)
    result = emit_allowed(s, entry)
    forbid_mmio(s, first)  # KVM's emulator knows none of them
    return result


@compiled
def emit_allowed(s, entry):
    """The records of an instruction that is allowed."""
    shape = load64(entry + 8 * T.SHAPE)
    if shape == T.MOVE:
        emit_register_move(s, entry)
        return OK
    kind1, size1 = load64(entry + 8 * T.KIND1), load64(entry + 8 * T.SIZE1)
    width = width_index(s, size1)
    slot = load64(entry + 8 * (T.SLOTS + (width if width < XMM else XMM)))
    if shape == T.ADDRESS:
        r = new_record(s, slot)
        set_operands(s, r, entry)
        add_address(s, r)
        return ENDS if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_END else OK
    for operand in range(1, T.OPERANDS):
        if in_memory(s, load64(entry + 8 * (T.KIND1 + 2 * operand))):
            r = new_record(s, LOADS[width_index(s, load64(entry + 8 * (T.SIZE1 + 2 * operand)))])
            add_address(s, r)
            store64(r + R.DST, s + S.T1)
    if in_memory(s, kind1) and load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_PROBE:
        r = new_record(s, PROBES[width - QWORD])
        add_address(s, r)
    r = new_record(s, slot)
    set_operands(s, r, entry)
    store64(r + R.SEG_PTR, load64(s + S.D_SEGMENT))  # VMASKMOVDQU has an address without ModRM
    if in_memory(s, kind1):
        r = new_record(s, STORES[width])
        add_address(s, r)
        store64(r + R.SRC, s + S.T0)
    return ENDS if load64(entry + 8 * T.ATTRIBUTES) & T.ATTR_END else OK
