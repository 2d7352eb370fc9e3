"""Encodings for a mode from the opcode tables, and states that make something of them.

As in ../forms.py a row gives prefix, opcode and ModRM constraints and what follows is random. Operands that are
selectors, far pointers, frames or control registers get values that mean something there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import iced_x86 as iced
import numpy as np
from kvmfs.jit import state as S
from kvmfs.jit.cpu import optable

from .. import forms as F
from . import layout as L

# Mnemonics that are not compared here, and why
_SKIPPED = {
    "another answer each time, or of another machine":
        "cpuid read_tsc rdpmc rdmsr wrmsr rdrand rdseed rdpid swapgs_group xgetbv_group pkru_group monitor_group",
    "Unicorn has no IDT: INT n is a call of the embedder's": "int_n int3 into int1",
    "Unicorn does not look at IOPL and the I/O permission bitmap":
        "in8 in_imm out8 out_imm insb ins outsb outs",
    "Unicorn executes none of them, or the whole state of it is compared elsewhere":
        "fxsave fxrstor ldmxcsr stmxcsr xsave xrstor xsaveopt xsavec xsaves xrstors invpcid vmx_group svm_group",
    "64-bit mode only, or by MSRs": "syscall sysret sysenter sysexit rdfsbase rdgsbase wrfsbase wrgsbase rsm",
    "compared with the host: its features are not Unicorn's":
        "adcx adox tzcnt lzcnt popcnt movbe crc32_@_8 crc32_@_% movdir64b",
}  # fmt: skip
SKIPPED = {name for names in _SKIPPED.values() for name in names.split()}
SELECTOR_ROWS = ("lldt", "ltr", "verr", "verw", "lar", "lsl", "arpl", "mov_to_seg")
SEGMENT_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
STRINGS = ("movs", "cmps", "stos", "lods", "scas", "ins", "outs")
CORNERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FLAGS = S.ARITHMETIC | S.DF | S.IF | S.IOPL | S.NT | S.AC | S.ID


@dataclass(frozen=True)
class Form:
    """One encoding in one mode. name: the row's mnemonic."""

    name: str
    mnemonic: str
    mode: int
    code: bytes
    operands: tuple[F.Operand, ...]
    repeats: bool

    @property
    def text(self) -> str:
        mode = L.MODES[self.mode]
        return f"{self.code.hex(' ')}    {F.disassemble(self.code, mode.bits)}    ({mode.name}, row {self.name})"


def rows() -> list[tuple[int, optable.Row]]:
    """(map, row) of what is compared here: the rest is the host's, user mode next to user mode."""
    return [
        (number, row)
        for number, members in enumerate(optable.all_maps())
        for row in members
        if not row.attributes & {"sse", "x87", "mmx", "o64", "ud"}
        and row.mnemonic not in SKIPPED
        and not {"has:MOVBE", "has:MOVDIRI", "has:CLWB", "has:CLFLUSHOPT"} & row.attributes
    ]


def _prefixes(rng: random.Random, row: optable.Row) -> bytes:
    chosen = [F.LEGACY[row.prefix]] if row.prefix in F.LEGACY else []
    if not row.prefix and rng.random() < 0.3:
        chosen.append(b"\x66")
    if rng.random() < 0.2:
        chosen.append(b"\x67")
    if rng.random() < 0.15:
        chosen.append(bytes([rng.choice(SEGMENT_PREFIXES)]))
    if "lock" in row.attributes and rng.random() < 0.1:
        chosen.append(b"\xf0")
    if row.mnemonic.rstrip("0123456789@") in STRINGS and rng.random() < 0.5:
        chosen.append(rng.choice([b"\xf2", b"\xf3"]))
    rng.shuffle(chosen)
    return b"".join(chosen)


def _far_pointer(rng: random.Random, mode: L.Mode, size: int) -> bytes:
    """Offset and selector, of `size` and 2 bytes."""
    offset = rng.choice([0x40, 0x180, L.CODE_OFFSET, 0xFFFF]) + (0 if rng.random() < 0.5 else mode.ip - L.CODE_OFFSET)
    return (offset & (1 << 8 * size) - 1).to_bytes(size, "little") + _selector(rng, mode).to_bytes(2, "little")


def _selector(rng: random.Random, mode: L.Mode) -> int:
    if not mode.protected or mode.v86:
        return rng.choice(mode.loadable)
    return rng.choice(L.SELECTORS) | rng.choice([0, mode.cpl, rng.randrange(4)])


def encode(rng: random.Random, number: int, row: optable.Row, mode: L.Mode) -> bytes:
    """A random instruction of the row, and bytes that may belong to it."""
    head = _prefixes(rng, row)
    code = head + F.ESCAPES[number] + bytes([row.opcode])
    if row.mnemonic in ("call_far", "jmp_far"):
        wide = (mode.bits == 32) != (b"\x66" in head)
        return (code + _far_pointer(rng, mode, 4 if wide else 2)).ljust(24, b"\0")
    modrm = {"m": rng.randrange(3), "r": 3}.get(row.form, rng.choice([3, 3, 0, 1, 2])) << 6
    modrm |= (rng.randrange(8) if row.reg is None else row.reg) << 3 | rng.randrange(8)
    tail = bytes(rng.choice(CORNERS) & 0xFF if rng.random() < 0.4 else rng.getrandbits(8) for _ in range(12))
    return (code + bytes([modrm]) + tail).ljust(24, b"\0")


def form(rng: random.Random, number: int, row: optable.Row, mode_number: int) -> Form | None:
    """A form of the row; None: what came out is none."""
    mode = L.MODES[mode_number]
    code = encode(rng, number, row, mode)
    instruction = iced.Decoder(mode.bits, code[: L.MAXIMUM_LENGTH]).decode()
    if instruction.is_invalid:
        return None
    return known(row.mnemonic, code[: instruction.len], mode_number)


def known(name: str, code: bytes, mode_number: int) -> Form:
    """The form of one encoding."""
    mode = L.MODES[mode_number]
    instruction = iced.Decoder(mode.bits, code, ip=mode.ip).decode()
    repeats = instruction.is_string_instruction and (instruction.has_rep_prefix or instruction.has_repne_prefix)
    operands = F.operands(instruction, mode.bits) or _address_only(instruction, mode)
    return Form(name, F.name_of(instruction), mode_number, code, operands, repeats)


def _address_only(instruction: iced.Instruction, mode: L.Mode) -> tuple[F.Operand, ...]:
    """The operand of CLFLUSH and its like, which is not read or written."""
    if iced.OpKind.MEMORY not in [instruction.op_kind(n) for n in range(instruction.op_count)]:
        return ()
    base, index = (F.GPR.get(register, -1) for register in (instruction.memory_base, instruction.memory_index))
    wide = instruction.memory_displ_size == 4 or iced.RegisterExt.size(instruction.memory_base) == 4
    segment = F.SEGMENT[instruction.memory_segment]
    displacement = instruction.memory_displacement
    bits = 32 if wide or iced.RegisterExt.size(instruction.memory_index) == 4 else 16
    return (F.Operand(base, index, instruction.memory_index_scale, displacement, segment, bits, 1),)


# States -----


def _frame(rng: random.Random, form: Form, mode: L.Mode) -> bytes:
    """What lies at the operand: a far pointer or a frame where one is taken, else words that may be selectors."""
    size = 4 if (mode.bits == 32) != (b"\x66" in form.code[:-1]) else 2
    word = lambda value: (value & (1 << 8 * size) - 1).to_bytes(size, "little")  # noqa: E731
    if form.name.startswith(("ret_far", "iret", "call_far", "jmp_far", "l")) or rng.random() < 0.1:
        flags = rng.getrandbits(22) & FLAGS | 2
        stack = rng.choice([0x8000, 0x18000, mode.ip + 0x4000])
        pointer = _far_pointer(rng, mode, size)
        offset, selector = pointer[:size], int.from_bytes(pointer[size:], "little")
        if form.name.startswith(("ret", "iret")):
            rest = [flags, stack, _selector(rng, mode)] if form.name == "iret" else [stack, _selector(rng, mode)]
            return (offset + word(selector) + b"".join(map(word, rest))).ljust(L.FRAME, b"\0")[: L.FRAME]
        return (pointer + bytes(L.FRAME))[: L.FRAME]
    words = [
        _selector(rng, mode) if rng.random() < 0.4 else rng.choice([*CORNERS, rng.getrandbits(16)]) for _ in range(20)
    ]
    return b"".join((value & 0xFFFF).to_bytes(2, "little") for value in words)


def _steer(rng: random.Random, case: np.void, form: Form, operand: F.Operand, base: int) -> None:
    """Set the address registers so that the operand lies in the area, and its frame there; `base`: the segment's."""
    gpr, mask = case["gpr"], (1 << operand.address_size) - 1
    target = L.AREA + rng.randrange(0x400, 0xF000)
    if rng.random() < 0.03:
        target = L.AREA + 0x10000 - rng.randrange(1, operand.size + 2)
    offset = target - base
    index = 0 if operand.index < 0 else int(gpr[operand.index]) & mask
    if operand.index >= 0 and operand.index != operand.base:
        index = rng.randrange(0x200)
        gpr[operand.index] = int(gpr[operand.index]) & ~mask | index
    if operand.base >= 0 and operand.base != operand.index:
        value = offset - index * operand.scale - operand.displacement
        if operand.base == 4:
            value &= ~1
        gpr[operand.base] = (int(gpr[operand.base]) & ~mask | value & mask) & 0xFFFFFFFF
    place = base + (address(gpr, operand) & mask)
    if L.AREA + 0x200 <= place <= L.MEMORY - L.FRAME - 64:
        case["frame_at"], case["frame"] = place, np.frombuffer(_frame(rng, form, L.MODES[form.mode]), np.uint8)


def extent(form: Form, before: np.void, operand: F.Operand) -> tuple[int, int]:
    """The first offset of an operand and the one after its last; of a repeated instruction, all its elements."""
    mask = (1 << operand.address_size) - 1
    size, offset = operand.size, address(before["gpr"], operand) & mask
    if not form.repeats:
        return offset, offset + size
    size = {"b": 1, "w": 2, "d": 4}[form.mnemonic[-1]]
    more = size * max(0, (int(before["gpr"][1]) & mask) - 1)
    return (offset - more, offset + size) if before["flags"] & S.DF else (offset, offset + size + more)


def address(gpr: np.ndarray, operand: F.Operand) -> int:
    """Its offset, not truncated."""
    total = operand.displacement
    for register, scale in ((operand.base, 1), (operand.index, operand.scale)):
        total += scale * int(gpr[register]) if register >= 0 else 0
    return total


BASES = {L.FAR_DATA16: L.AREA + 0x8000}
FLAT = {L.CODE32, L.DATA32, L.USER_CODE32, L.USER_DATA32}


def base_of(mode: L.Mode, selector: int) -> int:
    """A segment's base."""
    if not mode.protected or mode.v86:
        return selector << 4
    if selector & 4:
        return L.AREA + (0x4000 if selector & ~3 == 0x14 else 0)
    return 0 if selector & ~7 in FLAT or not selector & ~3 else BASES.get(selector & ~7, L.AREA)


def _system_operand(rng: random.Random, form: Form, case: np.void) -> None:
    """Registers of instructions that load a selector, or a system register."""
    gpr, modrm = case["gpr"], form.code[-1]
    if form.name in SELECTOR_ROWS and rng.random() < 0.9:
        for register in {modrm & 7, modrm >> 3 & 7}:
            gpr[register] = int(gpr[register]) & 0xFFFF0000 | _selector(rng, L.MODES[form.mode])
    elif form.name in ("mov_to_cr", "lmsw"):
        number = modrm >> 3 & 7 if form.name == "mov_to_cr" else 0
        old = 0x11 if L.MODES[form.mode].protected else 0x10
        chosen = old ^ (rng.getrandbits(32) & (S.CR0_MP | S.CR0_EM | S.CR0_TS | S.CR0_NE | S.CR0_WP | S.CR0_AM | 1))
        known = S.CR4_TSD | S.CR4_DE | S.CR4_PSE | S.CR4_PGE | S.CR4_PCE | S.CR4_OSFXSR
        gpr[modrm & 7] = {0: chosen, 4: rng.getrandbits(32) & known, 3: rng.getrandbits(20) << 12}.get(number, 0)
    elif form.name == "mov_to_dr":
        gpr[modrm & 7] = rng.choice([0, 0x400, 0x300, 0xF0D0400])


def states(rng: random.Random, form: Form, count: int) -> np.ndarray:
    """`count` states for the form."""
    cases, mode = np.zeros(count, L.CASE), L.MODES[form.mode]
    for case in cases:
        corners = [rng.choice(CORNERS) if rng.random() < 0.6 else rng.getrandbits(32) for _ in range(8)]
        case["gpr"] = corners
        flags = rng.getrandbits(22) & FLAGS & ~(S.NT if rng.random() < 0.9 else 0)
        case["flags"] = flags & ~(S.DF if rng.random() < 0.5 else 0) | 2 | (S.VM86 if mode.v86 else 0)
        segments = [rng.choice(mode.loadable) if rng.random() < 0.2 else mode.usual for _ in range(6)]
        segments[L.CS], segments[L.SS] = mode.cs, mode.ss
        case["segment"] = segments
        case["gpr"][4] = 0x8000 + 4 * rng.randrange(0x800) + (L.AREA - mode.base)
        for operand in form.operands:
            _steer(rng, case, form, operand, base_of(mode, segments[operand.segment]))
        _system_operand(rng, form, case)
        if form.repeats:
            wide = 0xFFFFFFFF if max((o.address_size for o in form.operands), default=mode.bits) == 32 else 0xFFFF
            case["gpr"][1] = int(case["gpr"][1]) & ~wide | rng.choice([0, 1, 2, 3, 5, 17])
        case["eip"], case["mode"], case["repeat"] = mode.ip, form.mode, form.repeats
        case["length"] = len(form.code)
        case["code"][: len(form.code)] = list(form.code)
    return cases
