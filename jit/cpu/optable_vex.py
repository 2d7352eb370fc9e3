"""The VEX rows of opcodes_vex.py, made into a map for each value of VEX.W and VEX.L: what is not there is #UD."""

from dataclasses import replace

from . import record as R
from .optable import ESCAPES, Row, parse

# Sizes that follow VEX.L: the whole vector, half of it, a fourth, an eighth; for L = 0 and 1
BY_LENGTH = {"x": ("dq", "qq"), "h": ("q", "dq"), "f": ("d", "q"), "e": ("w", "d")}
# dst = x * y + z: which operands the digits of the mnemonic name (SDM vol. 1, 14.5.2)
FMA_ORDER = {"132": (0, 2, 1), "213": (1, 0, 2), "231": (1, 2, 0)}


def _for_length(row: Row, length: int) -> Row:
    """The row with VEX.L known: its sizes, and the feature that it needs."""
    operands = [name[0] + BY_LENGTH[name[1:]][length] if name[1:] in BY_LENGTH else name for name in row.operands]
    attributes = set(row.attributes)
    if not any(name.startswith("has:") for name in attributes):
        attributes.add("has:AVX2" if "int" in attributes and length else "has:AVX")
    if not {name[0] for name in operands} & {"H", "B"}:
        attributes.add("vvvv")
    if "gpr" not in attributes:
        attributes |= {"avx"} if "wide" in attributes else {"avx", "bare"}
    for order, places in FMA_ORDER.items():
        if order in attributes:
            operands = [operands[0], *(operands[place] for place in places)]
    made = replace(row, operands=operands, attributes=attributes)
    made.fields = record_fields(made)
    return made


def record_fields(row: Row) -> int:
    """Where each operand's address goes in the operation's record, a byte an operand; 0: nowhere.

    The first is the destination. Then come the sources, the last one in SRC, the one before it in BASE_PTR, a fourth in
    INDEX_PTR. An operand in memory that the handler reaches itself has those two: a register beside it is the mask.
    """
    kinds = [operand[0] for operand in row.operands]
    if "M" in kinds:
        return sum({"V": R.DST, "H": R.SRC}.get(kind, 0) << 8 * index for index, kind in enumerate(kinds))
    fields = [R.DST, *[0] * (len(kinds) - 1)] if kinds else []
    sources = [index for index in range(1, len(kinds)) if kinds[index] != "I"]
    if "I" in kinds and kinds[0] == "H":  # a shift by the immediate
        fields[1], fields[2] = R.BASE_PTR, R.SRC
    elif len(sources) == 1:
        fields[sources[0]] = R.SRC
        if "I" in kinds and "gpr" in row.attributes:
            fields[kinds.index("I")] = R.BASE_PTR
    else:
        places = [R.BASE_PTR, R.SRC, R.INDEX_PTR]
        if kinds and kinds[-1] == "B":  # BEXTR and the shifts by a register
            places[:2] = R.SRC, R.BASE_PTR
        for index, place in zip(sources, places, strict=False):
            fields[index] = place
    return sum(place << 8 * index for index, place in enumerate(fields))


def vex_maps() -> list[list[Row]]:
    """Rows of the maps 0F, 0F 38, 0F 3A for W = 0, L = 0; then W = 1; then both again for L = 1."""
    from .opcodes_vex import SECTIONS

    maps: list[list[Row]] = [[] for _ in range(ESCAPES * 4)]
    for escape, common, text in SECTIONS:
        for row in parse(text):
            row.attributes |= set(common.split())
            for length in (0, 1):
                if f"L{1 - length}" in row.attributes:
                    continue
                made = _for_length(row, length)
                for wide in (0, 1):
                    if f"W{1 - wide}" not in row.attributes:
                        maps[ESCAPES * (wide + 2 * length) + escape].append(made)
    return maps
