"""Encodings of every form of the instruction sets to test, made from what iced-x86 knows about each opcode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

iced = pytest.importorskip("iced_x86")

KIND = {value: name for name, value in vars(iced.OpCodeOperandKind).items() if isinstance(value, int)}
FEATURE = {value: name for name, value in vars(iced.CpuidFeature).items() if isinstance(value, int)}
PREFIX = {
    iced.MandatoryPrefix.NONE: "", iced.MandatoryPrefix.PNP: "", iced.MandatoryPrefix.P66: "66",
    iced.MandatoryPrefix.PF3: "F3", iced.MandatoryPrefix.PF2: "F2",
}  # fmt: skip
VEX_PREFIX = {"": 0, "66": 1, "F3": 2, "F2": 3}
ESCAPE = {iced.OpCodeTableKind.NORMAL: b"", iced.OpCodeTableKind.T0F: b"\x0f", iced.OpCodeTableKind.T0F38: b"\x0f\x38"}
ESCAPE[iced.OpCodeTableKind.T0F3A] = b"\x0f\x3a"
FREE = [n for n in range(16) if n not in (3, 4)]  # RBX addresses the memory operand, RSP is not loaded
RBX = 3


@dataclass(frozen=True)
class Opcode:
    """One of iced's codes: an instruction with its operand sizes."""

    name: str
    info: object
    kinds: tuple[str, ...]
    features: frozenset[str]

    def has(self, *parts: str) -> bool:
        return any(part in kind for kind in self.kinds for part in parts)

    @property
    def takes_memory(self) -> bool:
        return self.has("MEM")

    @property
    def takes_register(self) -> bool:
        """Whether the r/m operand may be a register."""
        return any("OR_MEM" in kind or kind.endswith("_RM") for kind in self.kinds)

    @property
    def has_immediate(self) -> bool:
        return self.has("IMM8", "IS4", "IS5")


def opcodes(*features: str, vex: bool | None = None) -> list[Opcode]:
    """The 64-bit mode opcodes that need one of the features; `vex` None: in any encoding but EVEX."""
    wanted = []
    for name, code in vars(iced.Code).items():
        if not isinstance(code, int):
            continue
        info = iced.OpCodeInfo(code)
        encoding = info.encoding
        if (
            not info.is_instruction
            or not info.mode64
            or encoding not in (iced.EncodingKind.LEGACY, iced.EncodingKind.VEX)
        ):
            continue
        if vex is not None and (encoding == iced.EncodingKind.VEX) != vex:
            continue
        instruction = iced.Instruction()
        instruction.code = code
        has = frozenset(FEATURE[feature] for feature in instruction.cpuid_features())
        if has & set(features):
            wanted.append(Opcode(name, info, tuple(KIND[kind] for kind in info.op_kinds()), has))
    return wanted


def encode(opcode: Opcode, *, reg: int, rm: int | bytes, vvvv: int = 0, imm: int = 0, short: bool = False) -> bytes:
    """Machine code. rm: a register's number, or ModRM with reg 0, SIB and displacement of a memory operand.

    short: the two-byte VEX prefix, if it can be said so.
    """
    info = opcode.info
    if info.group_index >= 0:
        reg = info.group_index
    extended = (4 if reg > 7 else 0) | (1 if isinstance(rm, int) and rm > 7 else 0)
    modrm = bytes([0xC0 | (reg & 7) << 3 | rm & 7]) if isinstance(rm, int) else bytes([rm[0] | (reg & 7) << 3]) + rm[1:]
    tail = modrm + (bytes([imm & 0xFF]) if opcode.has_immediate else b"")
    prefix = PREFIX[info.mandatory_prefix]
    body = bytes([info.op_code])
    wide = info.w
    if info.encoding == iced.EncodingKind.VEX:
        third = (vvvv ^ 15) << 3 | VEX_PREFIX[prefix] | info.l << 2
        escape = {b"\x0f": 1, b"\x0f\x38": 2, b"\x0f\x3a": 3}[ESCAPE[info.table]]
        if short and escape == 1 and not wide and not extended & 1:
            return bytes([0xC5, (~extended & 4) << 5 | third]) + body + tail
        return bytes([0xC4, (~extended & 7) << 5 | escape, wide << 7 | third]) + body + tail
    wide = info.operand_size == 64 or bool(info.w)
    before = b"\x66" if info.operand_size == 16 else b""
    before += bytes.fromhex(prefix)
    rex = 0x40 | (8 if wide else 0) | extended
    return before + (bytes([rex]) if rex != 0x40 else b"") + ESCAPE[info.table] + body + tail


def variants(opcode: Opcode, seed: int = 0) -> Iterator[bytes]:
    """Some encodings: registers chosen at random, twice one register, memory at [rbx]; each immediate once or more."""
    rng = random.Random(f"{opcode.name} {seed}")

    def number() -> int:
        return rng.choice(FREE)

    immediates = [rng.randrange(256) for _ in range(6)] if opcode.has_immediate else [0]
    for imm in immediates:
        vvvv = number() if opcode.has("VVVV") else 0
        if opcode.takes_register:
            yield encode(opcode, reg=number(), rm=number(), vvvv=vvvv, imm=imm, short=rng.random() < 0.5)
        if opcode.takes_memory:
            yield encode(opcode, reg=number(), rm=bytes([RBX]), vvvv=vvvv, imm=imm, short=rng.random() < 0.5)
    if opcode.takes_register:
        same = number()
        yield encode(opcode, reg=same, rm=same, vvvv=same if opcode.has("VVVV") else 0, imm=immediates[0])
        if opcode.has("VVVV"):
            yield encode(opcode, reg=same, rm=same, vvvv=number(), imm=immediates[0])
            yield encode(opcode, reg=same, rm=number(), vvvv=same, imm=immediates[0])
