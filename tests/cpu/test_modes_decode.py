"""Whole instructions in real mode and in flat 32-bit protected mode, next to Unicorn.

As in test_decode.py the opcode maps make the cases; prefixes 66 and 67 and segment overrides come with them. Unicorn
checks no segment limits: what faults here for one is looked at by its address alone.
"""

from __future__ import annotations

import random

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import optable

from .guest import RAM, Guest
from .test_decode import SKIP, UNDEFINED

unicorn = pytest.importorskip("unicorn")
iced = pytest.importorskip("iced_x86")
UC = pytest.importorskip("unicorn.x86_const")

NAMES = ["EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI"]
SEGMENTS = ["ES", "CS", "SS", "DS", "FS", "GS"]
CODE, HANDLERS = 0x10100, 0x1000
DATA, DATA_END = 0x20000, 0x80000
REAL = {"ES": 0x3000, "CS": 0x1000, "SS": 0x4000, "DS": 0x2000, "FS": 0x5000, "GS": 0x6000}
FLAT = {"CS": 0xC09B}
# The SDM leaves them undefined, and Unicorn has them otherwise than processors
OTHER_UNDEFINED = {
    "aaa": S.OF | S.SF | S.ZF | S.PF,
    "aas": S.OF | S.SF | S.ZF | S.PF,
    "daa": S.OF,
    "das": S.OF,
    "aam": S.OF | S.AF | S.CF,
    "aad": S.OF | S.AF | S.CF,
}
OF_OWN = {
    "call_far", "call_far_mem", "jmp_far", "bound", "into", "lar", "lsl", "verr", "verw", "arpl", "arpl_mem", "rdpmc",
    "clac", "cmpxchg", "crc32_@_8", "crc32_@_%",
}  # fmt: skip


def rows(bits: int) -> list[tuple[int, optable.Row]]:
    """(map, row) of what is compared: real mode also loads segment registers."""
    loads = {f"{verb}_{seg}" for verb in ("push", "pop") for seg in ("es", "cs", "ss", "ds", "fs", "gs")}
    loads |= {"les", "lds", "lss", "lfs", "lgs", "mov_to_seg", "mov_from_seg"}
    skipped = SKIP - loads if bits == 16 else SKIP | loads
    found = []
    for number, members in enumerate(optable.all_maps()):
        for row in members:
            base = row.mnemonic.rstrip("0123456789")
            if row.attributes & {"todo", "ud", "sse", "x87", "mmx", "o64", "pm"} or {row.mnemonic, base} & (
                skipped | OF_OWN
            ):
                continue
            if any(operand[0] in "VWU" for operand in row.operands) or row.prefix in ("66", "F2", "NP"):
                continue
            found.append((number, row))
    return found


def encode(rng: random.Random, number: int, row: optable.Row) -> bytes:
    """A random instruction of the row; enough trailing bytes for any displacement and immediate."""
    prefix = bytes.fromhex(row.prefix) if row.prefix else b""
    if rng.random() < 0.3:
        prefix = b"\x66" + prefix
    if rng.random() < 0.3:
        prefix = b"\x67" + prefix
    if rng.random() < 0.2:
        prefix = bytes([rng.choice([0x26, 0x36, 0x3E, 0x64, 0x65])]) + prefix
    if row.mnemonic.startswith(("movs", "stos", "lods", "scas", "cmps")) and number == 0 and rng.random() < 0.5:
        prefix = bytes([rng.choice([0xF2, 0xF3])]) + prefix
    escape = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[number]
    mod = {"m": rng.randrange(3), "r": 3}.get(row.form, rng.randrange(4))
    reg = rng.randrange(8) if row.reg is None else row.reg
    return prefix + escape + bytes([row.opcode, mod << 6 | reg << 3 | rng.randrange(8)]) + rng.randbytes(12)


class Reference:
    """Unicorn with the same memory."""

    def __init__(self, bits: int) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_16 if bits == 16 else unicorn.UC_MODE_32)
        self.uc.mem_map(0, RAM)
        self.vector: int | None = None
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupted)
        self.bits = bits

    def _interrupted(self, uc: object, vector: int, data: object) -> None:
        self.vector = vector
        self.uc.emu_stop()

    def step(self, registers: list[int], flags: int, code: bytes, data: bytes) -> bool:
        """One instruction, all of its repetitions: whether it ran without a fault."""
        if self.bits == 16:
            for name in SEGMENTS:
                self.uc.reg_write(getattr(UC, f"UC_X86_REG_{name}"), REAL[name])
        self.uc.mem_write(CODE, code)
        self.uc.ctl_remove_cache(CODE, CODE + 64)
        self.uc.mem_write(DATA, data)
        for name, value in zip(NAMES, registers, strict=True):
            self.uc.reg_write(getattr(UC, f"UC_X86_REG_{name}"), value)
        self.uc.reg_write(UC.UC_X86_REG_EFLAGS, flags)
        self.vector = None
        try:
            self.uc.emu_start(CODE, RAM, count=1)
        except unicorn.UcError as error:  # a branch to where nothing is has been taken
            return error.errno == unicorn.UC_ERR_FETCH_UNMAPPED
        return self.vector is None

    def read(self, name: str) -> int:
        return int(self.uc.reg_read(getattr(UC, f"UC_X86_REG_{name}")))


class Machine(Guest):
    """In real mode, with each vector's handler a HLT of its own; or in flat 32-bit mode without an IDT."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self[S.CR0], self[S.CR4], self[S.EFER] = (0x10, 0, 0) if bits == 16 else (0x11, 0, 0)
        self[S.GDTR_LIMIT], self[S.IDTR_BASE], self[S.IDTR_LIMIT] = 0, 0, 0x3FF if bits == 16 else 0
        self.write(HANDLERS, b"\xf4" * 256)
        for vector in range(256):
            self.write(4 * vector, (HANDLERS + vector).to_bytes(4, "little"))
        self.function("tlb_init")

    def prepare(self, registers: list[int], flags: int) -> None:
        for index, name in enumerate(SEGMENTS):
            seg = S.SEGMENTS + S.SEGMENT_SIZE * index
            selector = REAL[name] if self.bits == 16 else 8
            self[seg + S.SEL], self[seg + S.BASE] = selector, selector << 4 if self.bits == 16 else 0
            self[seg + S.LIMIT] = 0xFFFF if self.bits == 16 else 0xFFFFFFFF
            kind = 0x9B if name == "CS" else 0x93
            self[seg + S.ATTR] = kind if self.bits == 16 else kind | 0xC000
        for number, value in enumerate(registers):
            self[S.GPR + 8 * number] = value
        self.rflags, self[S.RIP] = flags, CODE - self[S.CS + S.BASE]
        for field in (S.EXC_PENDING, S.LEAVE, S.INTR_SHADOW, S.DEBUG_DUE, S.HELD_DEBUG):
            self[field] = 0
        self.derive()


def values(rng: random.Random, bits: int) -> list[int]:
    choices = (
        lambda: rng.randrange(0x4000, 0xC000),
        lambda: DATA + rng.randrange(0x4000, 0x48000),
        lambda: rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
        lambda: rng.getrandbits(32),
    )
    registers = [rng.choice(choices)() for _ in range(8)]
    registers[1] &= 0xFF  # rCX counts repetitions
    registers[4] = rng.getrandbits(16) << 16 | 0x8000 if bits == 16 else 0x48000
    return registers


def reached(code: bytes, bits: int, registers: list[int]) -> list[tuple[int, int, bool]]:
    """(offset, size, whether it is a string operand) of the memory that iced-x86 says is used."""
    instruction = next(iter(iced.Decoder(bits, code, ip=CODE & 0xFFFF)))
    found = []
    for memory in iced.InstructionInfoFactory().info(instruction).used_memory():

        def value(register: int) -> int:
            full = iced.RegisterExt.full_register32(register)
            number = next((n for n, name in enumerate(NAMES) if getattr(iced.Register, name) == full), None)
            return 0 if number is None else registers[number]

        address = memory.displacement
        address += value(memory.base) if memory.base != iced.Register.NONE else 0
        address += value(memory.index) * memory.scale if memory.index != iced.Register.NONE else 0
        width = 0xFFFF if memory.address_size == iced.CodeSize.CODE16 else 0xFFFFFFFF
        found.append((address & width, iced.MemorySizeExt.size(memory.memory_size), instruction.is_string_instruction))
    return found


def unlike(row: optable.Row, code: bytes) -> bool:
    """Where Unicorn is known to be wrong, or the SDM leaves the result open."""
    if row.mnemonic in ("shld", "shrd", "nop") or (row.opcode in (0xF6, 0xF7) and row.reg == 1):
        return True
    if row.mnemonic in ("popcnt", "lzcnt", "tzcnt", "ret_imm"):  # 32 bits where 16 are meant; a signed immediate
        return True
    if row.mnemonic == "pop_ss" or (row.mnemonic == "mov_to_seg" and code[code.index(0x8E) + 1] >> 3 & 7 == 2):
        return True  # not a step of its own
    return row.mnemonic in ("push_es", "push_cs", "push_ss", "push_ds", "push_fs", "push_gs") and 0x66 in code[:4]


def compare(
    guest: Machine, reference: Reference, rng: random.Random, data: bytes, row: optable.Row, code: bytes
) -> str | None:
    """None when both agree, else what differs."""
    bits = guest.bits
    registers, flags = values(rng, bits), 2 | rng.getrandbits(12) & (S.ARITHMETIC | S.DF)
    prefixed = any(byte in (0xF2, 0xF3) for byte in code[:4])
    repeated = prefixed and row.mnemonic[:4] in ("movs", "stos", "lods", "scas", "cmps")
    if repeated:
        registers[1] = rng.randrange(1, 6)
        registers[6], registers[7] = rng.randrange(0x100, 0xFF00), rng.randrange(0x100, 0xFF00)
        if bits == 32:
            registers[6] += DATA
            registers[7] += DATA
    limit = 0xFFFF if bits == 16 else DATA_END - 1
    places = reached(code, bits, registers)
    if any(address + max(size, 1) - 1 > limit or (bits == 32 and address < DATA) for address, size, _ in places):
        return None
    if unlike(row, code):
        return None
    ran = reference.step(registers, flags, code + b"\x90" * 16, data)
    guest.write(CODE, code + b"\x90" * 16)
    guest.write(DATA, data)
    guest.prepare(registers, flags)
    start = guest[S.RIP]
    reason = guest.step()
    while repeated and reason == S.EXIT_DEBUG and guest[S.RIP] == start and guest[S.RCX] & 0xFFFF:
        reason = guest.step()
    if not ran:
        if row.mnemonic in ("div", "idiv"):
            return None
        if reason == S.EXIT_HLT or (bits == 32 and reason == S.EXIT_SHUTDOWN):
            return None
        return f"vector {reference.vector} there, here exit {reason}"
    if reason == S.EXIT_HLT and guest[S.RIP] == HANDLERS + S.GP + 1 and reference.read("EIP") > 0xFFFF:
        return None  # a branch beyond the limit
    if row.mnemonic in ("div", "idiv") and reason in (S.EXIT_HLT, S.EXIT_SHUTDOWN):
        return None  # #DE, which Unicorn does not report
    if reason != S.EXIT_DEBUG:
        return f"exit {reason}, RIP {guest[S.RIP]:x}, CS {guest[S.CS + S.SEL]:x}"
    wrong = []
    for number, name in enumerate(NAMES):
        if guest[S.GPR + 8 * number] != reference.read(name):
            wrong.append(f"{name} {guest[S.GPR + 8 * number]:x} is {reference.read(name):x}")
    if bits == 16:
        for index, name in enumerate(SEGMENTS):
            selector = guest[S.SEGMENTS + S.SEGMENT_SIZE * index]
            if selector != reference.read(name):
                wrong.append(f"{name} {selector:x} is {reference.read(name):x}")
    if guest[S.RIP] != reference.read("EIP"):
        wrong.append(f"EIP {guest[S.RIP]:x} is {reference.read('EIP'):x}")
    base = row.mnemonic.rstrip("0123456789")
    mask = S.ARITHMETIC & ~(UNDEFINED.get(base, 0) | OTHER_UNDEFINED.get(base, 0))
    if (reference.read("EFLAGS") ^ guest.rflags) & mask:
        wrong.append(f"flags {guest.rflags & mask:x} are {reference.read('EFLAGS') & mask:x}")
    if guest.read(DATA, len(data)) != bytes(reference.uc.mem_read(DATA, len(data))):
        wrong.append("memory")
    return ", ".join(wrong) or None


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("seed", range(2))
def test_instructions_as_unicorn(bits: int, seed: int) -> None:
    guest, reference, rng = Machine(bits), Reference(bits), random.Random(seed)
    wrong, data = [], rng.randbytes(DATA_END - DATA)
    for number, row in rows(bits):
        for _ in range(4):
            code = encode(rng, number, row)
            decoded = next(iter(iced.Decoder(bits, code, ip=CODE & 0xFFFF)))
            if decoded.is_invalid or decoded.len > 15:
                continue
            code = code[: decoded.len]
            difference = compare(guest, reference, rng, data, row, code)
            if difference is not None:
                text = str(next(iter(iced.Decoder(bits, code, ip=CODE & 0xFFFF))))
                wrong.append(f"{code.hex()} {text}: {difference}")
    assert not wrong, "\n".join(wrong[:40]) + f"\n{len(wrong)} in all"
