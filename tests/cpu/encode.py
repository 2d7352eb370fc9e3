"""Machine code from the SDM's notation for one instruction's opcode.

`66 0F 38 F6 /r` is mandatory prefix, opcode bytes, ModRM with a register operand; `/4` has an opcode extension there;
`ib`, `iz` stand for an immediate. `VEX.F2.0F38 F5 /r` takes its third register from `vvvv`. Operands are registers.
"""

from __future__ import annotations

PREFIXES = {"66": 0x66, "F2": 0xF2, "F3": 0xF3}
VEX_PREFIX = {"NP": 0, "66": 1, "F3": 2, "F2": 3}
VEX_MAP = {"0F": 1, "0F38": 2, "0F3A": 3}


def encode(notation: str, width: int, *, reg: int = 0, rm: int = 0, vvvv: int = 0, imm: int = 0) -> bytes:
    """Bytes for an operand size in bits. 8 clears the opcode's low bit, 16 adds prefix 66, 64 sets W; 0 leaves all."""
    head, *tokens = notation.split()
    tail, opcode, modrm = b"", bytearray(), b""
    for token in tokens if head.startswith("VEX") or head in PREFIXES else [head, *tokens]:
        if token.startswith("/"):
            field = reg if token == "/r" else int(token[1])
            modrm = bytes([0xC0 | (field & 7) << 3 | rm & 7])
        elif token == "ib":
            tail = (imm & 0xFF).to_bytes(1, "little")
        elif token == "iz":
            tail = (imm & 0xFFFFFFFF).to_bytes(4, "little")[: 2 if width == 16 else 4]
        else:
            opcode.append(int(token, 16))
    if width == 8:
        opcode[-1] &= 0xFE
    extended = (4 if reg > 7 and "/r" in notation else 0) | (1 if rm > 7 else 0)
    if head.startswith("VEX"):
        _, prefix, opcode_map = head.split(".")
        inverted = (~extended & 5) << 5 | 0x40
        third = (vvvv ^ 15) << 3 | VEX_PREFIX[prefix] | (0x80 if width == 64 else 0)
        return bytes([0xC4, inverted | VEX_MAP[opcode_map], third]) + bytes(opcode) + modrm + tail
    prefixes = b"\x66" if width == 16 else b""
    if head in PREFIXES:
        prefixes += bytes([PREFIXES[head]])
    rex = 0x40 | (8 if width == 64 else 0) | extended
    return prefixes + bytes([rex]) + bytes(opcode) + modrm + tail
