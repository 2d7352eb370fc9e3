"""The opcode rows of opcodes.py compiled into the arrays that the decoder reads.

Two tables: MAPS[map][prefix][opcode] -> entry number (0: #UD), and ENTRIES of 16 words each. An
opcode whose meaning depends on the ModRM reg field, or on register against memory form, has a head and 16 entries in a
row: reg, then reg + 8 for the register form.
"""

import ctypes
import itertools
import re
from dataclasses import dataclass, field

from .. import build
from . import features, opcodes, opcodes_mmx, opcodes_vector, opcodes_x87

# Entry words
SHAPE, ATTRIBUTES = 0, 1  # from bit 32 of ATTRIBUTES, 16 bits each: features that the guest must have one of, plus 1
KIND1, SIZE1, KIND2, SIZE2, KIND3, SIZE3, KIND4, SIZE4 = range(2, 10)
OPERANDS = 4
SLOTS = 10  # five words: table slot by width of the first operand: 8, 16, 32, 64, 128 bits or more; 0: none
FIELDS = 15  # VEX rows: the record field of each operand's address, a byte each
ELSEWHERE_SHIFT = 32  # in the same word: entry number of the row that holds outside 64-bit mode, 0: this one
WORDS = 16
ENTRY_BYTES = 8 * WORDS
FEATURE_SHIFT = 32

NONE, E, G, IMM, Z, A, D, C, ONE, J, M, MOFFS, S, K, T, V, W, U, R, X, P, Q, N, H, B, L = range(26)
KINDS = dict(zip("EGIZADC1JMOSKTVWURXPQNHBL", range(1, 26), strict=True))
SIZE_B, SIZE_W, SIZE_D, SIZE_Q, SIZE_V, SIZE_Y, SIZE_Z, SIZE_X, SIZE_S, SIZE_NONE, SIZE_QQ = range(11)
SIZES = dict(zip("bwdqvyzxs", range(9), strict=True)) | {"": SIZE_NONE, "dq": SIZE_X, "qq": SIZE_QQ}

# Shapes: how records are laid out for the operands
BARE, OPERATE, MOVE, ONE_SOURCE, ADDRESS, XCHG, POP_MEM, BIT, NOP, UNDEFINED, GROUP, W16 = range(12)

_ATTRIBUTES = (
    "w", "r", "lock", "end", "d64", "f64", "no64", "al", "cpl0", "sse", "x87", "mmx", "pm", "mem", "by2",
    "else", "avx", "vvvv", "vsib", "probe",
)  # fmt: skip
ATTRIBUTE_BITS = {name: 1 << bit for bit, name in enumerate(_ATTRIBUTES)}
ATTR_W, ATTR_R, ATTR_LOCK, ATTR_END, ATTR_D64, ATTR_F64, ATTR_NO64, ATTR_AL = (1 << i for i in range(8))
ATTR_CPL0, ATTR_SSE, ATTR_X87, ATTR_MMX, ATTR_PM, ATTR_MEM, ATTR_BY2 = (1 << i for i in range(8, 15))
ATTR_ELSE, ATTR_AVX, ATTR_VVVV, ATTR_VSIB, ATTR_PROBE = (1 << i for i in range(15, 20))
WIDTHS = (8, 16, 32, 64, 128)
WIDTHS_OF = {"b": (8,), "w": (16,), "d": (32,), "q": (64,), "y": (32, 64), "x": (128,), "dq": (128,), "qq": (128,)}
PREFIXES = {"NP": 0, "66": 1, "F3": 2, "F2": 3}
# Maps: one-byte, 0F, 0F 38, 0F 3A; then the last three under VEX, for each value of VEX.W, then of VEX.L
LEGACY_MAPS, ESCAPES = 4, 3
MAP_COUNT = LEGACY_MAPS + ESCAPES * 4
UNDEFINED_ENTRY = 0
VSIB_WANTED, VSIB_SEEN = 1, 2  # D_VSIB


@dataclass
class Row:
    """One line of a map."""

    opcode: int
    prefix: str
    reg: int | None
    form: str
    mnemonic: str
    operands: list[str]
    attributes: set[str] = field(default_factory=set)
    fields: int = 0  # of VEX rows: optable_vex.record_fields


_HEAD = re.compile(r"(?:(NP|66|F3|F2)\.)?([0-9A-F]{2})(\+r|\+cc)?(?:/([0-7]))?([mr]?)$")


def parse(text: str) -> list[Row]:
    """Rows of a map; runs (+r, +cc) are unrolled."""
    rows = []
    for line in filter(None, map(str.strip, text.splitlines())):
        left, _, right = line.partition(" :")
        head, mnemonic, *operands = left.split()
        match = _HEAD.match(head)
        if match is None:
            raise ValueError(f"not an opcode: {line}")
        prefix, opcode, run, reg, form = match.groups()
        for step in range({None: 1, "+r": 8, "+cc": 16}[run]):
            name = f"{mnemonic}{step}_" if run == "+cc" and mnemonic == "cmov" else mnemonic
            name = f"{mnemonic}{step}" if run == "+cc" and mnemonic != "cmov" else name
            rows.append(
                Row(
                    int(opcode, 16) + step,
                    prefix or "",
                    None if reg is None else int(reg),
                    form,
                    name,
                    list(operands),
                    set(right.split()) | ({"bare"} if run == "+cc" and mnemonic == "set" else set()),
                )
            )
    return rows


def _shape(row: Row) -> int:
    a = row.attributes
    kinds = [operand[0] for operand in row.operands]
    table = [
        ("ud", UNDEFINED), ("noea", NOP), ("xmem", XCHG), ("popmem", POP_MEM), ("bit", BIT),
        ("w16", W16), ("one", ONE_SOURCE), ("mv", MOVE),
    ]  # fmt: skip
    for name, shape in table:
        if name in a:
            return shape
    if "M" in kinds:
        return ADDRESS
    if row.mnemonic == "mov":
        return MOVE
    if row.mnemonic == "xchg":
        return XCHG
    return OPERATE if kinds and ("bare" not in a or any(kind in "EWVPQN" for kind in kinds)) else BARE


def handler_names(row: Row) -> list[str]:
    """The handler for each width of the first operand."""
    second = row.operands[1][1:] if len(row.operands) > 1 else ""
    if "cx8" in row.attributes:
        return ["cmpxchg16b" if width == 64 else "cmpxchg8b" for width in WIDTHS]
    if "dq" in row.attributes:
        return [f"{row.mnemonic}{'q' if width == 64 else 'd'}" for width in WIDTHS]
    if "by2" in row.attributes:
        return [row.mnemonic.replace("@", str(max(width, 32))).replace("%", str(width)) for width in WIDTHS]
    names = []
    for width in WIDTHS:
        other = {"b": 8, "w": 16, "d": 32, "q": 64}.get(second, width)
        name = row.mnemonic.replace("@", str(width)).replace("%", str(other))
        names.append(name if "bare" in row.attributes or name != row.mnemonic else f"{name}{width}")
    return names


def feature_names(row: Row) -> list[str]:
    """What the row needs one of (`has:NAME`, `has:NAME|NAME`)."""
    return [name for attribute in row.attributes if attribute.startswith("has:") for name in attribute[4:].split("|")]


def _entry(row: Row, slots: dict[str, int]) -> list[int]:
    words = [0] * WORDS
    words[SHAPE] = _shape(row)
    words[ATTRIBUTES] = sum(ATTRIBUTE_BITS.get(name, 0) for name in row.attributes)
    for index, name in enumerate(feature_names(row)):
        words[ATTRIBUTES] |= 1 + features.BIT[name] << FEATURE_SHIFT + 16 * index
    for index, operand in enumerate(row.operands[:OPERANDS]):
        words[KIND1 + 2 * index] = KINDS[operand[0]]
        words[SIZE1 + 2 * index] = SIZES[operand[1:]]
    for index, name in enumerate(handler_names(row)):
        words[SLOTS + index] = slots.get(name, 0)
    words[FIELDS] = row.fields
    return words


def all_maps() -> list[list[Row]]:
    """Parsed rows of the four legacy maps: one-byte, 0F, 0F 38, 0F 3A."""
    texts = (opcodes.ONE_BYTE + opcodes_x87.ONE_BYTE, opcodes.TWO_BYTE, opcodes.MAP_38, opcodes.MAP_3A)
    maps = [parse(text) for text in texts]
    for number, common, text in opcodes_vector.SECTIONS:
        for row in parse(text):
            row.attributes |= {common, "sse"} if "un" in row.attributes else {common, "sse", "al"}
            maps[number].append(row)
    for number, common, text in opcodes_mmx.SECTIONS:
        for row in parse(text):
            row.attributes.add(common)
            maps[number].append(row)
    for row in (row for rows in maps for row in rows if row.attributes & {"x87", "sse", "mmx"}):
        if "em" not in row.attributes:
            row.attributes.add("mem")
    return maps


def vex_maps() -> list[list[Row]]:
    """The maps under VEX, a module of their own."""
    from .optable_vex import vex_maps as maps

    return maps()


def build_tables() -> ctypes.Array:
    """One block of memory: the maps, then the entries."""
    slots = build.slots()
    maps = [[[UNDEFINED_ENTRY] * 256 for _ in PREFIXES] for _ in range(MAP_COUNT)]
    entries: list[list[int]] = [[UNDEFINED] + [0] * (WORDS - 1)]
    rows_of_maps = [*all_maps(), *vex_maps()]  # kept: rows are told apart by identity
    places: dict[tuple[int, ...], int] = {}
    for number, rows in enumerate(rows_of_maps):
        cells: dict[tuple[str, int], list[Row]] = {}
        for row in rows:
            cells.setdefault((row.prefix, row.opcode), []).append(row)
        # Rows without a prefix first: those with a mandatory prefix replace them in its column.
        for (prefix, opcode), members in sorted(cells.items(), key=lambda cell: cell[0][0] != ""):
            if prefix == "NP" and members[0].reg is not None:  # without a prefix these are there besides the others
                members = cells.get(("", opcode), []) + members
            same = tuple(map(id, members))  # most VEX rows are in the maps of both values of W
            position = places.setdefault(same, len(entries))
            if position == len(entries):
                only64 = [row for row in members if "o64" in row.attributes]
                entries.extend(_cell(only64 or members, slots))
                if only64:
                    entries[position][FIELDS] |= len(entries) << ELSEWHERE_SHIFT
                    entries.extend(_cell([row for row in members if row not in only64], slots))
            for column in PREFIXES.values() if not prefix else [PREFIXES[prefix]]:
                maps[number][column][opcode] = position
    words = [word for prefix_maps in maps for column in prefix_maps for word in column]
    words += [word for entry in entries for word in entry]
    return (ctypes.c_int64 * len(words))(*words)


def _cell(members: list[Row], slots: dict[str, int]) -> list[list[int]]:
    """The entries of one opcode."""
    if len(members) == 1 and members[0].reg is None and not members[0].form:
        return [_entry(members[0], slots)]
    return _group(members, slots)


def _group(members: list[Row], slots: dict[str, int]) -> list[list[int]]:
    """A head entry, then one for each reg value in memory form, then one each in register form."""
    head = [0] * WORDS
    head[SHAPE] = GROUP
    head[ATTRIBUTES] = ATTR_VSIB if any("vsib" in row.attributes for row in members) else 0
    cells: list[list[int]] = [[UNDEFINED] + [0] * (WORDS - 1) for _ in range(16)]
    for row in members:
        entry = _entry(row, slots)
        for reg in range(8) if row.reg is None else [row.reg]:
            for form, base in (("m", 0), ("r", 8)):
                if row.form in ("", form):
                    cells[base + reg] = entry
    return [head, *cells]


def missing() -> list[str]:
    """Handlers that rows need and no group has; for the test that keeps the maps honest."""
    slots = build.slots()
    absent = []
    for row in itertools.chain(*all_maps(), *vex_maps()):
        if _shape(row) in (UNDEFINED, MOVE, NOP):
            continue
        operands = row.operands[1:] if "by2" in row.attributes else row.operands
        widths = WIDTHS_OF.get(operands[0][1:] if operands else "", WIDTHS[1:4])
        names = [name for width, name in zip(WIDTHS, handler_names(row), strict=True) if width in widths]
        absent += [f"{row.opcode:02X} {row.mnemonic}: {name}" for name in names if name not in slots]
    return absent
