"""Instruction encodings from the opcode tables: every row, with the prefixes, operands and immediates it can have.

Nothing here knows what an operand letter means: a row gives prefix, opcode and ModRM constraints, what follows is
random, and iced-x86 tells the length and which registers address memory. So a row that is new in the tables is covered.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import iced_x86 as iced
import numpy as np
from kvmfs.jit.cpu import features, optable

from . import layout as L

ESCAPES = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
LEGACY = {"66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
SEGMENT_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
REX_CHANCE, PREFIX_CHANCE = 0.6, 0.2

_NUMBERS = ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"]
GPR = {getattr(iced.Register, f"{size}{name}"): n for n, name in enumerate(_NUMBERS) for size in ("", "E", "R")}
GPR |= {getattr(iced.Register, f"R{n}{size}"): n for n in range(8, 16) for size in ("", "D", "W")}
GPR |= {iced.Register.AL: 0}
SEGMENT = {getattr(iced.Register, name): n for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS"))}

# What cannot be compared with a process of this host, and why.
NOT_RUN = {
    "a system call, an interrupt or a hypercall of the host's":
        "SYSCALL SYSENTER SYSEXIT SYSRET INT INT1 INT3 INTO VMCALL VMMCALL",
    "another answer each time, or on each machine": "RDTSC RDTSCP RDRAND RDSEED RDPID RDPMC RDPRU CPUID XGETBV",
    "emulated by Linux for CR4.UMIP": "SGDT SIDT SLDT STR SMSW",
}  # fmt: skip
REASONS = {getattr(iced.Mnemonic, name): why for why, names in NOT_RUN.items() for name in names.split()
           if hasattr(iced.Mnemonic, name)}  # fmt: skip
_SAVES = ("fxsave", "xsave")
HYPERCALLS = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")  # with whatever prefix, the host's hypervisor is asked


@dataclass(frozen=True)
class Operand:
    """A memory operand: numbers of the registers that form its address, -1: none; and the bytes it has."""

    base: int
    index: int
    scale: int
    displacement: int
    segment: int
    address_size: int
    size: int
    vector_index: bool = False

    def address(self, states: np.ndarray, bits: int) -> np.ndarray:
        """Linear addresses in those states."""
        found = np.full(len(states), self.displacement & (1 << 64) - 1, np.uint64)
        for register, scale in ((self.base, 1), (self.index, self.scale)):
            if register >= 0:
                found += states["gpr"][:, register] * np.uint64(scale)
        found &= np.uint64((1 << self.address_size) - 1)
        found += L.bases(states, bits, self.segment)
        return found if bits == 64 else found & np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True)
class Form:
    """One encoding. name: the row's mnemonic; bits: of the code segment; repeats: REP of a string instruction."""

    name: str
    mnemonic: str
    code: bytes
    bits: int
    operands: tuple[Operand, ...]
    repeats: bool
    rip: int

    @property
    def saves(self) -> bool:
        """Whether it stores an FPU image."""
        return self.mnemonic.startswith(_SAVES)

    @property
    def is_image(self) -> bool:
        """Whether it stores or loads one."""
        return self.mnemonic.startswith((*_SAVES, "fxrstor", "xrstor"))

    @property
    def is_far(self) -> bool:
        """Whether its operand is a far pointer in memory."""
        pointer = self.mnemonic in ("lss", "lfs", "lgs", "les", "lds")
        return pointer or (self.mnemonic in ("call", "jmp") and any(o.size in (4, 6, 10) for o in self.operands))


@functools.cache
def host_features() -> frozenset[str]:
    """The processor's, by the names of /proc/cpuinfo."""
    line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return frozenset(line.split())


# iced's names of CPUID features where they are not those of the kernel, in lower case; and what needs no feature
_KERNEL_NAMES = {
    "lzcnt": "abm", "cmpxchg16b": "cx16", "sse3": "pni", "sha": "sha_ni", "d3now": "3dnow",
    "clfsh": "clflush",
}  # fmt: skip
_OUR_NAMES = {
    "sse": "XMM", "sse2": "XMM2", "pni": "XMM3", "sse4_1": "XMM4_1", "sse4_2": "XMM4_2",
    "3dnowprefetch": "_3DNOWPREFETCH",
}  # fmt: skip
_ALWAYS = (
    "intel",
    "x64",
    "fpu",
    "cmov",
    "multibyte",
    "pause",
    "rdpmc",
    "smm",
    "pku",
    "cpuid",
    "monitor",
    "syscall",
)


def _features(instruction: iced.Instruction) -> list[str]:
    """Of CPUID, by the names of /proc/cpuinfo; without those that every processor has."""
    if name_of(instruction).startswith("prefetch"):  # 0F 0D, 0F 18: hints, all of them on processors that have any
        return ["3dnowprefetch"]
    names = (_FEATURE_NAMES[number].lower() for number in instruction.cpuid_features())
    return [_KERNEL_NAMES.get(name, name) for name in names if not name.startswith(_ALWAYS) or name == "monitorx"]


def on_host(instruction: iced.Instruction) -> bool:
    """Whether the host has it; what it does without it is #UD or another instruction, but not this one."""
    return all(name in host_features() for name in _features(instruction))


def _is_common(instruction: iced.Instruction) -> bool:
    """Whether both processors have it."""
    return on_host(instruction) and offered(instruction)


def offered(instruction: iced.Instruction) -> bool:
    """Whether our CPU has it, by features.NAMES."""
    return all(_OUR_NAMES.get(name, name.upper()) in features.NAMES for name in _features(instruction))


_FEATURE_NAMES = {getattr(iced.CpuidFeature, name): name for name in dir(iced.CpuidFeature) if name[0].isupper()}


@functools.cache
def rows() -> list[tuple[int, optable.Row]]:
    """(map, row) of the legacy maps; vex_opcodes() has the others."""
    return [(number, row) for number, members in enumerate(optable.all_maps()) if number in ESCAPES for row in members]


def _prefixes(rng: random.Random, row: optable.Row) -> bytes:
    chosen = []
    chance = lambda p: rng.random() < p * PREFIX_CHANCE  # noqa: E731
    if row.prefix in LEGACY:
        chosen.append(LEGACY[row.prefix])
        if row.prefix != "66" and chance(0.5):
            chosen.append(b"\x66")
    elif row.prefix != "NP" or chance(0.2):
        if chance(1):
            chosen.append(b"\x66")
        if chance(0.3 if "str" not in row.attributes else 2):
            chosen.append(rng.choice([b"\xf2", b"\xf3"]))
    if row.mnemonic.rstrip("0123456789") in ("movs", "cmps", "stos", "lods", "scas") and rng.random() < 0.5:
        chosen.append(rng.choice([b"\xf2", b"\xf3"]))
    if chance(0.6):
        chosen.append(b"\x67")
    if chance(0.5):
        chosen.append(bytes([rng.choice(SEGMENT_PREFIXES)]))
    if chance(0.3) or ("lock" in row.attributes and chance(1)):
        chosen.append(b"\xf0")
    rng.shuffle(chosen)
    return b"".join(chosen)


def _modrm(rng: random.Random, row: optable.Row) -> int:
    mod = {"m": rng.randrange(3), "r": 3}.get(row.form, 3 if rng.random() < 0.5 else rng.randrange(3))
    reg = rng.randrange(8) if row.reg is None else row.reg
    return mod << 6 | reg << 3 | rng.randrange(8)


def _immediates(rng: random.Random) -> bytes:
    """Bytes that are an interesting SIB, displacement or immediate of any size."""
    corners = (0, 1, 2, 4, 7, 8, 15, 16, 31, 32, 63, 64, 0x7F, 0x80, 0xFF)
    tail = bytes(rng.choice(corners) if rng.random() < 0.4 else rng.getrandbits(8) for _ in range(12))
    return rng.choice([b"", bytes([rng.getrandbits(8)])]) + tail


def encode(rng: random.Random, number: int, row: optable.Row, bits: int) -> bytes:
    """A random instruction of the row and bytes that may belong to it, 15 or more in all."""
    rex = bytes([0x40 | rng.getrandbits(4)]) if bits == 64 and rng.random() < REX_CHANCE else b""
    code = _prefixes(rng, row) + rex + ESCAPES[number] + bytes([row.opcode, _modrm(rng, row)])
    return (code + _immediates(rng) + bytes(15))[:24]


@functools.cache
def vex_opcodes() -> tuple[tuple[int, int, int], ...]:
    """(map, prefix, opcode) of everything that has a VEX encoding and that both processors have."""
    found = []
    for opcode_map, prefix, opcode in itertools.product((1, 2, 3), range(4), range(256)):
        # W, L, and the ModRM byte decide too: any will do.
        for third, modrm in itertools.product(
            (0x78, 0x7C, 0xF8, 0xFC, 0x70), (*range(0xC0, 0x100, 8), *range(0, 64, 8))
        ):
            code = bytes([0xC4, 0xE0 | opcode_map, third | prefix, opcode, modrm]) + bytes(10)
            instruction = iced.Decoder(64, code).decode()
            if not instruction.is_invalid and _is_common(instruction):
                found.append((opcode_map, prefix, opcode))
                break
    return tuple(found)


def encode_vex(rng: random.Random, opcode_map: int, prefix: int, opcode: int) -> bytes:
    """A random VEX instruction: W, L, vvvv and ModRM are free."""
    legacy = rng.choice([0x67, 0x26, 0x64, 0x65, 0x66, 0xF0, 0xF3]) if rng.random() < 0.08 else 0
    vvvv = 15 if rng.random() < 0.4 else rng.getrandbits(4)
    third = (rng.random() < 0.4) << 7 | vvvv << 3 | (rng.random() < 0.5) << 2 | prefix
    if opcode_map == 1 and rng.random() < 0.4:
        head = bytes([0xC5, third & 0x7F | rng.getrandbits(1) << 7])
    else:
        head = bytes([0xC4, (rng.getrandbits(3) << 5) | opcode_map, third])
    modrm = rng.choice([0xC0, rng.randrange(3) << 6]) | rng.getrandbits(6)
    code = (bytes([legacy]) if legacy else b"") + head + bytes([opcode, modrm])
    return (code + _immediates(rng) + bytes(15))[:24]


_FACTORY = iced.InstructionInfoFactory()


def operands(instruction: iced.Instruction, bits: int) -> tuple[Operand, ...]:
    found = []
    for memory in _FACTORY.info(instruction).used_memory():
        if memory.base in (iced.Register.RIP, iced.Register.EIP):
            continue
        size = max(1, iced.MemorySizeExt.size(memory.memory_size))
        vector = memory.index != iced.Register.NONE and memory.index not in GPR
        found.append(
            Operand(
                base=GPR.get(memory.base, -1),
                index=GPR.get(memory.index, -1),
                scale=memory.scale,
                displacement=memory.displacement,
                segment=SEGMENT.get(memory.segment, L.DS),
                address_size={0: bits, 1: 16, 2: 32, 3: 64}[memory.address_size],
                size=size,
                vector_index=vector,
            )
        )
    return tuple(found)


def _aim_far(rng: random.Random, code: bytearray, offsets: iced.ConstantOffsets) -> None:
    """Have a far pointer among the immediates lead to code, or not quite."""
    if rng.random() < 0.8:
        at, size = offsets.immediate_offset, offsets.immediate_size
        offset = rng.randrange(0, 0x2100) + rng.choice([0, L.CODE if size == 4 else 0])
        code[at : at + size] = offset.to_bytes(size, "little")
        at = offsets.immediate_offset2
        code[at : at + 2] = rng.choice(L.SELECTORS).to_bytes(2, "little")


def _aim(rng: random.Random, code: bytearray, instruction: iced.Instruction, decoder: iced.Decoder, bits: int) -> None:
    """Have an address that no register moves lie in the data."""
    offsets = decoder.get_constant_offsets(instruction)
    if instruction.op0_kind in (iced.OpKind.FAR_BRANCH16, iced.OpKind.FAR_BRANCH32):
        _aim_far(rng, code, offsets)
    if offsets.displacement_size < 2:
        return
    absolute = instruction.memory_base == instruction.memory_index == iced.Register.NONE
    target = L.WRITABLE + rng.randrange(0, L.WRITABLE_PAGES * L.PAGE - 64) + rng.choice([0, 0, 0, L.PAGE])
    if instruction.is_ip_rel_memory_operand:
        target -= L.CODE + L.PAGE  # where _place() ends it
    elif not absolute:
        return
    elif bits == 16 or offsets.displacement_size == 2:
        target -= L.DATA
    size = offsets.displacement_size
    at = offsets.displacement_offset
    code[at : at + size] = (target & (1 << 8 * size) - 1).to_bytes(size, "little")


def _place(rng: random.Random, code: bytes | bytearray, bits: int, relative: bool) -> int:
    """RIP: at the end of the last page, so that one byte too many faults; across the two pages; or anywhere."""
    chance = rng.random()
    if relative:
        at = L.CODE + L.PAGE - len(code)  # _aim() counts on it
    elif chance < 0.5:
        at = L.CODE + L.CODE_PAGES * L.PAGE - len(code)
    elif chance < 0.7:
        at = L.CODE + L.PAGE - rng.randrange(1, len(code) + 1)
    else:
        at = L.CODE + rng.randrange(0, L.PAGE)
    return at - (L.CODE if bits == 16 else 0)


def form(rng: random.Random, name: str, raw: bytes, bits: int) -> Form | None:
    """What `raw` begins with, in code of that size; None: it is not to be run here."""
    code = bytearray(raw[: L.MAXIMUM_LENGTH])
    if any(hypercall in code for hypercall in HYPERCALLS):
        return None
    decoder = iced.Decoder(bits, bytes(code), ip=0)
    instruction = decoder.decode()
    if not instruction.is_invalid:
        # A hint of a set that both do not have is a NOP to both.
        if instruction.mnemonic in REASONS or not (_is_common(instruction) or name == "nop"):
            return None
        if instruction.is_ip_rel_memory_operand and name_of(instruction).startswith(_SAVES):
            return None
        _aim(rng, code, instruction, decoder, bits)
        del code[instruction.len :]
    return known(name, bytes(code), bits, _place(rng, code, bits, instruction.is_ip_rel_memory_operand))


def known(name: str, code: bytes, bits: int, rip: int) -> Form:
    """The form of one encoding."""
    instruction = iced.Decoder(bits, code, ip=0).decode()
    if instruction.is_invalid:
        return Form(name, "(bad)", code, bits, (), False, rip)
    repeats = instruction.is_string_instruction and (instruction.has_rep_prefix or instruction.has_repne_prefix)
    return Form(name, name_of(instruction), code, bits, operands(instruction, bits), repeats, rip)


_MNEMONICS = {getattr(iced.Mnemonic, name): name for name in dir(iced.Mnemonic) if name[0].isupper()}


def name_of(instruction: iced.Instruction) -> str:
    """Its mnemonic."""
    return _MNEMONICS[instruction.mnemonic].lower()


def disassemble(code: bytes, bits: int) -> str:
    """As the SDM writes it."""
    instruction = iced.Decoder(bits, code, ip=L.CODE).decode()
    return iced.Formatter(iced.FormatterSyntax.NASM).format(instruction)
