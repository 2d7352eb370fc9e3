"""Instruction bytes, and the prefixes before the opcode: legacy, REX and VEX (SDM vol. 2, 2.1 to 2.3)."""

from .. import state as S
from ..build import compiled
from ..raw import load8, load16, load32, load64, store64
from . import optable as T
from . import record as R

MAX_LENGTH = 15  # bytes an instruction may have; beyond is #GP(0)


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
def begins_vex(s, opcode):
    """Whether C4 or C5 is a VEX prefix: always in 64-bit mode, elsewhere LES and LDS have the memory forms."""
    if opcode != 0xC4 and opcode != 0xC5:
        return 0
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        return 1
    cursor = load64(s + S.D_CURSOR)
    modrm = take(s, 1)
    store64(s + S.D_CURSOR, cursor)
    return 1 if modrm >= 0xC0 else 0


@compiled
def vex_prefix(s, opcode):
    """The rest of a VEX prefix: the number of the map that it selects, or -1 for #UD (SDM vol. 2, 2.3.5).

    It stands for a mandatory prefix, REX and the escape bytes, none of which may come before it.
    """
    long_code = load64(s + S.HFLAGS) & S.MODE_CODE64
    refused = load64(s + S.D_PREFIX) | load64(s + S.D_LOCK) | load64(s + S.D_REX)
    last = take(s, 1)
    rex, select = ~last >> 5 & 4, 1
    if opcode == 0xC4:
        rex, select = ~last >> 5 & 7, last & 31
        last = take(s, 1)
    wide, length = last >> 7 if opcode == 0xC4 else 0, last >> 2 & 1
    if long_code == 0:
        rex = 0
    store64(s + S.D_VEX, 1)
    store64(s + S.D_VVVV, ~last >> 3 & 15)
    store64(s + S.D_LENGTH, length)
    store64(s + S.D_PREFIX, last & 3)
    store64(s + S.D_REX, 0x40 | rex | wide << 3)
    store64(s + S.D_OSIZE, 8 if wide and long_code else 4)
    if refused != 0 or select < 1 or select > T.ESCAPES or load64(s + S.HFLAGS) & S.MODE_PROTECTED == 0:
        return -1
    return T.LEGACY_MAPS + T.ESCAPES * (wide + 2 * length) + select - 1
