"""Whole instructions, from bytes to state, next to Unicorn; their lengths next to iced-x86.

The opcode maps themselves make the cases: every row that works on general registers and memory, with random prefixes,
ModRM, SIB, displacement and immediate bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import optable

from .guest import RAM, Guest

unicorn = pytest.importorskip("unicorn")
iced = pytest.importorskip("iced_x86")
UC = pytest.importorskip("unicorn.x86_const")

CODE, DATA, DATA_SIZE = 0x100000, 0x200000, 0x10000
SKIP = {  # tests of their own: system state, time, I/O, transfers of control through tables
    *[
        "insb",
        "ins",
        "outsb",
        "outs",
        "in8",
        "in_imm",
        "out8",
        "out_imm",
        "hlt",
        "int3",
        "int_n",
        "int1",
        "iret",
        "ret_far",
        "ret_far_imm",
        "jmp_far_mem",
        "cli",
        "sti",
    ],
    *[f"{verb}_{seg}" for verb in ("push", "pop") for seg in ("es", "cs", "ss", "ds", "fs", "gs")],
    *["lss", "lfs", "lgs", "call_far_mem", "lar", "lsl", "verr", "verw", "rdpmc"],
    *[
        "syscall",
        "sysret",
        "sysenter",
        "sysexit",
        "mov_from_cr",
        "mov_to_cr",
        "mov_from_dr",
        "mov_to_dr",
        "wrmsr",
        "rdmsr",
        "read_tsc",
        "cpuid",
    ],
    *[
        "mov_to_seg",
        "mov_from_seg",
        "sldt",
        "str_",
        "lldt",
        "ltr",
        "sgdt",
        "sidt",
        "lgdt",
        "lidt",
        "smsw",
        "lmsw",
        "invlpg",
        "clts",
        "barrier",
        "clflush",
    ],
    *[
        "vmx_group",
        "monitor_group",
        "xgetbv_group",
        "svm_group",
        "pkru_group",
        "swapgs_group",
        "rdpid",
        "rdrand",
        "rdseed",
        "invpcid",
        "movdir64b",
        "adcx",  # (Unicorn has none)
        "adox",
    ],
    *[
        "rdfsbase",
        "rdgsbase",
        "wrfsbase",
        "wrgsbase",
        "fxsave",
        "fxrstor",
        "xsave",
        "xrstor",
        *["xsaveopt", "xsavec", "xsaves", "xrstors"],
        "ldmxcsr",
        "stmxcsr",
        "pushf",
        "popf",
        "enter_frame",
    ],
    *["fwait", "ud2", "cmpxchg8b", "movbe", "lahf", "sahf"],  # (Unicorn has LAHF and SAHF wrong under REX)
    *["movs8", "movs@", "cmps8", "cmps@", "stos8", "stos@", "lods8", "lods@", "scas8", "scas@"],  # test_string.py
}
# Flags that the SDM leaves undefined, or that Unicorn computes otherwise than processors do
UNDEFINED = {
    **dict.fromkeys(["mul", "imul", "imul2_", "imul3_"], S.SF | S.ZF | S.AF | S.PF),
    **dict.fromkeys(["div", "idiv"], S.ARITHMETIC),
    **dict.fromkeys(["and", "or", "xor", "test"], S.AF),
    **dict.fromkeys(["shl", "shr", "sar", "shld", "shrd", "rol", "ror", "rcl", "rcr"], S.OF | S.AF | S.CF),
    **dict.fromkeys(["bt", "bts", "btr", "btc"], S.OF | S.SF | S.AF | S.PF),
    **dict.fromkeys(["bsf", "bsr"], S.CF | S.OF | S.SF | S.AF | S.PF),
    **dict.fromkeys(["tzcnt", "lzcnt"], S.OF | S.SF | S.AF | S.PF),
}
REGISTERS = [
    "RAX",
    "RCX",
    "RDX",
    "RBX",
    "RSP",
    "RBP",
    "RSI",
    "RDI",
    "R8",
    "R9",
    "R10",
    "R11",
    "R12",
    "R13",
    "R14",
    "R15",
]


def rows() -> list[tuple[int, optable.Row]]:
    """(map, row) of what is compared."""
    found = []
    for number, members in enumerate(optable.all_maps()):
        for row in members:
            base = row.mnemonic.rstrip("0123456789")
            if row.attributes & {"todo", "ud", "no64", "sse", "x87", "mmx"} or row.mnemonic in SKIP or base in SKIP:
                continue
            found.append((number, row))
    return found


def encode(rng: random.Random, number: int, row: optable.Row) -> bytes:
    """A random instruction of the row; enough trailing bytes for any immediate."""
    prefix = bytes.fromhex(row.prefix) if row.prefix not in ("", "NP") else b""
    branches = row.mnemonic.startswith(
        ("j", "call", "ret", "loop")
    )  # 66 there: AMD cuts RIP, Intel ignores it, so do we
    if not row.prefix and not branches and rng.random() < 0.2:
        prefix += b"\x66"
    if rng.random() < 0.1:
        prefix += b"\x67"
    rex = bytes([0x40 | rng.getrandbits(4)]) if rng.random() < 0.6 else b""
    escape = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[number]
    mod = {"m": rng.randrange(3), "r": 3}.get(row.form, rng.randrange(4))
    reg = rng.randrange(8) if row.reg is None else row.reg
    modrm = mod << 6 | reg << 3 | rng.randrange(8)
    # Small displacements keep addresses in the data; immediates follow somewhere in the same bytes.
    tail = struct.pack("<B", rng.getrandbits(8)) + struct.pack("<i", rng.randrange(-512, 512)) + rng.randbytes(8)
    if modrm & 7 != 4 or mod == 3:
        tail = tail[1:]
    if modrm & 0xC7 == 5:  # RIP-relative: keep away from the code
        tail = struct.pack("<i", DATA + 0x8000 - CODE) + tail[4:]
    return prefix + rex + escape + bytes([row.opcode, modrm]) + tail


class Reference:
    """Unicorn with the same memory."""

    def __init__(self) -> None:
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.uc.mem_map(0, RAM)

    def step(self, registers: list[int], flags: int, code: bytes, data: bytes) -> bool:
        """One instruction: whether it ran without a fault."""
        self.uc.mem_write(CODE, code)
        self.uc.ctl_remove_cache(CODE, CODE + 64)
        self.uc.mem_write(DATA, data)
        for name, value in zip(REGISTERS, registers, strict=True):
            self.uc.reg_write(getattr(UC, f"UC_X86_REG_{name}"), value)
        self.uc.reg_write(UC.UC_X86_REG_EFLAGS, flags)
        try:
            self.uc.emu_start(CODE, 1 << 40, count=1)
        except unicorn.UcError:
            return False
        return True

    def registers(self) -> list[int]:
        return [self.uc.reg_read(getattr(UC, f"UC_X86_REG_{name}")) for name in REGISTERS]


def cases(seed: int, each: int) -> Iterator[tuple[optable.Row, bytes]]:
    rng = random.Random(seed)
    for number, row in rows():
        for _ in range(each):
            code = encode(rng, number, row)
            decoded = next(iter(iced.Decoder(64, code, ip=CODE)))
            if decoded.is_invalid or decoded.len > 15:
                continue
            yield row, code[: decoded.len]


def values(rng: random.Random) -> list[int]:
    """Register contents: addresses in the data, small numbers, anything."""
    choices = (
        lambda: DATA + rng.randrange(0x4000, 0xC000),
        lambda: DATA + rng.randrange(0x4000, 0xC000) & ~7,
        lambda: rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 1 << 63, (1 << 64) - 1]),
        lambda: rng.getrandbits(64),
    )
    registers = [rng.choice(choices)() for _ in range(16)]
    registers[4] = DATA + 0x8000
    return registers


def unlike(row: optable.Row, code: bytes) -> bool:
    """Where Unicorn is known to be wrong, or the SDM leaves the result open."""
    if row.mnemonic in ("shld", "shrd"):  # it forgets the immediate in RIP-relative addresses; 16 bits by more than 16
        return b"\x66" in code[:2] or code[code.index(0x0F) + 2] & 0xC7 == 5
    if row.opcode in (0xC6, 0xC7) and row.mnemonic == "mov":  # it takes REX.R for a part of the opcode
        return True
    if row.mnemonic == "cmpxchg":  # a comparison that fails leaves a register alone; it clears the upper half
        return code[-1] >> 6 == 3
    if (row.opcode == 0x18 and row.mnemonic == "nop") or "has:MOVDIRI" in row.attributes:
        return True
    return row.opcode in (0xF6, 0xF7) and row.reg == 1  # it has no /1 for TEST


def outside(code: bytes, registers: list[int]) -> bool:
    """Whether the memory operand lies outside the data, where Unicorn has other contents or checks less."""
    instruction = next(iter(iced.Decoder(64, code, ip=CODE)))
    info = iced.InstructionInfoFactory().info(instruction)
    if instruction.is_jcc_short_or_near or instruction.is_call_near or instruction.is_jmp_short_or_near:
        return not 0 <= instruction.near_branch_target < RAM
    by_name = dict(zip(REGISTERS, registers, strict=True))
    for memory in info.used_memory():

        def value(register: int, index: int = 0, size: int = 0) -> int:
            full = iced.RegisterExt.full_register(register)
            name = next((n for n in REGISTERS if getattr(iced.Register, n) == full), None)
            number = by_name.get(name, 0) if name else 0
            return number & 0xFFFFFFFF if iced.RegisterExt.size(register) == 4 else number

        address = memory.displacement
        if memory.base != iced.Register.NONE and memory.base not in (iced.Register.RIP, iced.Register.EIP):
            address += value(memory.base)
        if memory.index != iced.Register.NONE:
            address += value(memory.index) * memory.scale
        address &= (1 << 32) - 1 if "67" in code[:3].hex(" ").split() else (1 << 64) - 1
        if not DATA <= address <= DATA + DATA_SIZE - 16:
            return True
    return False


def run_both(guest: Guest, reference: Reference, rng: random.Random, row: optable.Row, code: bytes) -> str | None:
    """None when both agree, else what differs."""
    registers, flags, data = values(rng), 2 | rng.getrandbits(12) & S.ARITHMETIC, rng.randbytes(DATA_SIZE)
    if row.mnemonic in ("call_ind", "jmp_ind"):
        registers = [CODE + 0x100] * 16
        registers[4] = DATA + 0x8000
    if unlike(row, code) or outside(code, registers):
        return None
    ran = reference.step(registers, flags, code + b"\x90" * 16, data)
    guest.write(CODE, code + b"\x90" * 16)
    guest.write(DATA, data)
    for number, value in enumerate(registers):
        guest[S.GPR + 8 * number] = value
    guest.rflags, guest[S.RIP] = flags, CODE
    guest[S.EXC_PENDING] = guest[S.LEAVE] = 0
    reason = guest.step()
    if not ran:
        # No IDT here: a fault ends in shutdown, or in a guest page fault on the way.
        return None if reason == S.EXIT_SHUTDOWN else f"faults there, here exit {reason}"
    if reason == S.EXIT_MMIO_READ or reason == S.EXIT_MMIO_WRITE:
        return None  # reached beyond RAM
    if reason == S.EXIT_SHUTDOWN and row.mnemonic in ("div", "idiv"):
        return None  # #DE, which Unicorn does not report without a hook
    if reason != S.EXIT_DEBUG:
        vector = guest[S.EXC_VECTOR]
        return f"exit {reason}, vector {vector}, {guest[S.EXC_PAYLOAD]:x}"
    differences = []
    for name, here, there in zip(
        REGISTERS, (guest[S.GPR + 8 * n] for n in range(16)), reference.registers(), strict=True
    ):
        if here != there:
            differences.append(f"{name} {here:x} is {there:x}")
    if (rip := reference.uc.reg_read(UC.UC_X86_REG_RIP)) != guest[S.RIP]:
        differences.append(f"RIP {guest[S.RIP]:x} is {rip:x}")
    mask = S.ARITHMETIC & ~UNDEFINED.get(row.mnemonic.rstrip("0123456789"), 0)
    there = reference.uc.reg_read(UC.UC_X86_REG_EFLAGS)
    if (there ^ guest.rflags) & mask:
        differences.append(f"flags {guest.rflags & mask:x} are {there & mask:x}")
    if guest.read(DATA, DATA_SIZE) != bytes(reference.uc.mem_read(DATA, DATA_SIZE)):
        differences.append("memory")
    return ", ".join(differences) or None


@pytest.mark.parametrize("seed", range(4))
def test_instructions_as_unicorn(seed: int) -> None:
    guest, reference, rng = Guest(), Reference(), random.Random(seed)
    wrong = []
    for row, code in cases(seed, 6):
        difference = run_both(guest, reference, rng, row, code)
        if difference is not None:
            text = str(next(iter(iced.Decoder(64, code, ip=CODE))))
            wrong.append(f"{code.hex()} {text}: {difference}")
    assert not wrong, "\n".join(wrong[:40]) + f"\n{len(wrong)} in all"


def test_lengths_as_iced() -> None:
    """A step over any of them ends where iced-x86 says the next instruction begins (for those that do not branch)."""
    guest, rng = Guest(), random.Random(99)
    wrong = []
    for row, code in cases(99, 4):
        if row.mnemonic.startswith(("j", "call", "ret", "loop")):
            continue
        guest.write(CODE, code + b"\x90" * 16)
        for number, value in enumerate(values(rng)):
            guest[S.GPR + 8 * number] = value
        guest.rflags, guest[S.RIP], guest[S.EXC_PENDING] = 2, CODE, 0
        if guest.step() == S.EXIT_DEBUG and guest[S.RIP] != CODE + len(code):
            wrong.append(f"{code.hex()}: {guest[S.RIP] - CODE}")
    assert not wrong, "\n".join(wrong[:40])
