"""Our decoder next to iced-x86: length, validity and memory operand of byte strings, all opcodes and any bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import iced_x86 as iced
import numpy as np
from kvmfs.jit import state as S
from kvmfs.jit.cpu import record as R
from kvmfs.jit.cpu.decode import group as decode_group
from kvmfs.jit.cpu.trap import group as trap_group
from kvmfs.jit.raw import call1, load64, store64
from numba import njit

from . import forms as F
from .ours import Ours

DECODE_ONE = decode_group.slot("decode_one")
UNDEFINED = trap_group.slot("undefined")
SHORT, TOO_LONG = 1, 2  # decode_one's results that say "more than 15 bytes"
TAKEN, IS_UNDEFINED, IS_TOO_LONG = range(3)
RESULT = np.dtype([(name, "<i8") for name in ("kind", "length", "mod", "base", "index", "scale", "displacement")])
WORDS = RESULT.itemsize // 8
BITS = (64, 32, 16)
MODES = {64: S.MODE_CODE64 | S.MODE_LONG, 32: S.MODE_CODE32 | S.MODE_STACK32, 16: 0}
PREFIXES, ESCAPES = (b"", b"\x66", b"\xf3", b"\xf2"), (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
SYSTEMATIC = len(BITS) * len(PREFIXES) * len(ESCAPES)  # batches: each has all opcodes with all ModRM bytes
CASES = 1 << 16

DIFFERENCES = (
    (
        "iced-x86 has instructions of features that our CPUID does not offer",
        'SDM vol. 2: "#UD: if CPUID feature flag is 0"',
    ),
    ("groups whose handler decides on #UD", "x87; 0F 01 and 0F AE with register forms: it knows CPL and features"),
)


@njit("int64(int64,int64,int64,int64,int64)", error_model="numpy")
def decode_batch(s, codes, results, count, records):
    """Decode `count` strings of 16 bytes, of which 15 count."""
    functions = load64(s + S.FUNCTIONS)
    for i in range(count):
        out = results + 8 * WORDS * i
        store64(s + S.D_BYTES, codes + 16 * i)
        store64(s + S.D_CURSOR, 0)
        store64(s + S.D_LIMIT, 15)
        store64(s + S.D_RECORD, records)
        result = call1(load64(functions + 8 * DECODE_ONE), s)
        handler = load64(records + R.HANDLER) if load64(s + S.D_RECORD) != records else 0
        kind = TAKEN
        if result in (SHORT, TOO_LONG):
            kind = IS_TOO_LONG
        elif handler == load64(functions + 8 * UNDEFINED):
            kind = IS_UNDEFINED
        store64(out, kind)
        store64(out + 8, load64(s + S.D_CURSOR))
        store64(out + 16, load64(s + S.D_MOD))
        store64(out + 24, load64(s + S.D_BASE) - s)
        store64(out + 32, load64(s + S.D_INDEX) - s)
        store64(out + 40, load64(s + S.D_SCALE))
        store64(out + 48, load64(s + S.D_DISP))
    return 0


@dataclass
class Outcome:
    """Of a batch: (kind, example) of every difference."""

    cases: int
    mismatches: list[tuple[str, str]] = field(default_factory=list)


class Decoding:
    """Both decoders."""

    def __init__(self) -> None:
        self._ours = Ours()
        self._records = np.zeros(R.RECORD * 16 // 8, np.int64)

    def batch(self, seed: int, number: int) -> Outcome:
        """Batch `number`: the first SYSTEMATIC are the opcode maps, the others any bytes."""
        if number < SYSTEMATIC:
            bits, codes = BITS[number % 3], _map(PREFIXES[number // 3 % 4], ESCAPES[number // 12], seed, number)
        else:
            bits, codes = BITS[number % 3], _random(seed, number)
        return self.check(bits, codes)

    def check(self, bits: int, codes: np.ndarray) -> Outcome:
        """Compare rows of 16 bytes."""
        results = np.zeros(len(codes), RESULT)
        self._ours[S.HFLAGS] = MODES[bits] | S.MODE_PROTECTED | S.MODE_PAGING
        decode_batch(
            self._ours.cpu.address, codes.ctypes.data, results.ctypes.data, len(codes), self._records.ctypes.data
        )
        outcome, raw = Outcome(len(codes)), codes.tobytes()
        for number, row in enumerate(results.tolist()):
            code = raw[16 * number : 16 * number + 15]
            difference = _difference(bits, code, row)
            if difference is not None:
                outcome.mismatches.append((f"{bits}-bit {difference[0]}", f"{code.hex(' ')}: {difference[1]}"))
        return outcome


def _map(prefix: bytes, escape: bytes, seed: int, number: int) -> np.ndarray:
    """All opcodes of a map with all ModRM bytes; what follows is random."""
    codes = _bytes(seed, number)
    head = np.frombuffer(prefix + escape, np.uint8)
    codes[:, : len(head)] = head
    codes[:, len(head)] = np.arange(CASES) >> 8
    codes[:, len(head) + 1] = np.arange(CASES) & 255
    return codes


def _random(seed: int, number: int) -> np.ndarray:
    """Random bytes after random runs of what may come first."""
    rng, codes = np.random.default_rng([seed, number, 2]), _bytes(seed, number)
    first = np.frombuffer(bytes.fromhex("66 67 f0 f2 f3 26 2e 36 3e 64 65 40 41 44 48 4c 4f 0f c4 c5"), np.uint8)
    run = rng.integers(0, 4, CASES)
    run[rng.random(CASES) < 0.02] = 13
    chosen = rng.choice(first, (CASES, 16))
    return np.ascontiguousarray(np.where(np.arange(16) < run[:, None], chosen, codes))


def _bytes(seed: int, number: int) -> np.ndarray:
    return np.random.default_rng([seed, number, 3]).integers(0, 256, (CASES, 16), np.uint8)


def _difference(bits: int, code: bytes, row: tuple[int, ...]) -> tuple[str, str] | None:
    """What is unlike, and the case; `row` is a RESULT."""
    kind, length, *memory = row
    instruction = iced.Decoder(bits, code).decode()
    text = F.name_of(instruction)
    if instruction.is_invalid:
        if kind != TAKEN or _decided_later(code):
            return None
        return "only ours is valid", f"length {length}"
    if kind == IS_TOO_LONG:
        return f"{text}: more than 15 bytes to us", str(instruction)
    if kind == IS_UNDEFINED:
        return None if not F.offered(instruction) or text in ALWAYS_UNDEFINED else (f"{text}: #UD", str(instruction))
    if length != instruction.len:
        return f"{text}: length", f"{instruction}: {instruction.len}, ours {length}"
    kinds = [instruction.op_kind(n) for n in range(instruction.op_count)]
    if memory[0] != 3 and text not in BIT_STRINGS and iced.OpKind.MEMORY in kinds:
        return _memory_difference(instruction, text, memory)
    return None


ALWAYS_UNDEFINED = {"ud0", "ud1", "ud2", "rsm", "reservednop"}  # of the last, 0F 0D with a register: #UD on AMD


BIT_STRINGS = {"bt", "bts", "btr", "btc"}  # their address is computed by a record before


def _decided_later(code: bytes) -> bool:
    """Whether a handler raises #UD: x87 opcodes, 0F 01 and 0F AE with a register form."""
    opcode = code.lstrip(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3" + bytes(range(0x40, 0x50)))
    return b"\xd8" <= opcode[:1] <= b"\xdf" or opcode[:2] in (b"\x0f\x01", b"\x0f\xae")


def _memory_difference(instruction: iced.Instruction, text: str, memory: list[int]) -> tuple[str, str] | None:
    _, base, index, scale, displacement = memory
    relative = instruction.is_ip_rel_memory_operand
    ours = [_number(base), _number(index), 1 << scale, displacement - (instruction.len if relative else 0)]
    theirs = [
        F.GPR.get(instruction.memory_base, -1),
        F.GPR.get(instruction.memory_index, -1),
        instruction.memory_index_scale,
        instruction.memory_displacement - (instruction.next_ip if relative else 0),
    ]
    if ours[1] < 0:
        ours[2] = theirs[2]
    if theirs[0] >= 0 and ours[0] < 0 and theirs[1] < 0:
        ours[0], ours[1] = ours[1], ours[0]
    mask = 0xFFFF if instruction.memory_displ_size == 2 or instruction.memory_base in SIXTEEN else 0xFFFF_FFFF
    ours[3], theirs[3] = ours[3] & mask, theirs[3] & mask
    return None if ours == theirs else (f"{text}: memory operand", f"{instruction}: {theirs}, ours {ours}")


SIXTEEN = {getattr(iced.Register, name) for name in ("BX", "BP", "SI", "DI")}


def _number(offset: int) -> int:
    return (offset - S.GPR) // 8 if S.GPR <= offset < S.GPR + 128 else -1
