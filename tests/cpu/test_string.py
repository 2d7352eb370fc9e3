"""String instructions: runs of elements against the host CPU, then segments, wrapping, faults and interruption."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import record as R
from kvmfs.jit.raw import PLAIN, u64

from . import native
from .machine import ARITHMETIC, RIP, Machines, handler
from .memory import PAGE, Memory

RAX, RCX, RSI, RDI = 0, 1, 6, 7
REP, REPNE = R.RECORD_REP, R.RECORD_REPNE
OPCODES = {"movs": 0xA4, "stos": 0xAA, "lods": 0xAC, "scas": 0xAE, "cmps": 0xA6}
WIDTHS = (8, 16, 32, 64)
PAGES = 4
CASES = 6 if PLAIN else 40


def machine(asize: int = 8, flags: int = 0, direction: int = 0) -> Machines:
    m = Machines(1)
    m.byte(R.ASIZE)[:] = asize
    m.byte(R.FLAGS)[:] = flags
    m.word(S.RFLAGS)[:] = 2 | direction
    return m


def run(m: Machines, name: str, most: int = 1 << 16) -> int:
    """Execute until RIP is past the instruction or an exception; the number of executions."""
    function, s, r = handler(name), int(m.base[0]), int(m.record[0])
    for count in range(1, most + 1):
        assert function(s, r) == 0
        if m.word(S.LEAVE)[0] != S.LEAVE_NEXT or m.word(S.RIP)[0] != RIP:
            return count
    return most


def encode(name: str, width: int, flags: int, asize: int) -> bytes:
    prefixes = {0: b"", REP: b"\xf3", REPNE: b"\xf2"}[flags] + (b"\x67" if asize == 4 else b"")
    prefixes += {16: b"\x66", 64: b"\x48"}.get(width, b"")
    return prefixes + bytes([OPCODES[name] | (width > 8)])


def fill(memory: Memory, rng: np.random.Generator, same: bool) -> bytes:
    """Bytes with long equal runs, so that comparisons go on for a while."""
    content = np.zeros(PAGES * PAGE, np.uint8)
    for position in rng.integers(0, len(content), 0 if same else 6):
        content[position] = rng.integers(0, 256)
    memory.space[:] = content.tobytes()
    return content.tobytes()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", OPCODES)
def test_as_the_host(name: str, width: int) -> None:
    rng = np.random.default_rng(zlib.crc32(f"{name}{width}".encode()))
    size = width // 8
    for case in range(CASES):
        flags = int(rng.choice([0, REP, REPNE])) if name in ("scas", "cmps") else int(rng.choice([0, REP]))
        asize, direction = int(rng.choice([4, 8])), int(rng.choice([0, S.DF]))
        m = machine(asize, flags, direction)
        memory = Memory(m, PAGES)
        before = fill(memory, rng, case % 4 == 0) if name in ("scas", "cmps") else rng.bytes(PAGES * PAGE)
        memory.space[:] = before
        count = int(rng.choice([0, 1, 2, 7, 500, 5000 // size, 8000 // size]))
        reach = (count if flags else 1) * size
        low = reach if direction else 0
        high = PAGES * PAGE - size - (0 if direction else reach)
        source, destination = (memory.address + int(rng.integers(low, high)) for _ in range(2))
        if case % 3 == 0:  # close together: overlapping copies
            destination = min(max(source + int(rng.integers(-9, 9)), memory.address + low), memory.address + high)

        context = np.zeros(1, native.CONTEXT)
        registers = {RAX: int(rng.choice([0, 0x1122334455667788])), RCX: count, RSI: source, RDI: destination}
        for number, value in registers.items():
            context["gpr"][0, number] = value
            m.word(S.GPR + 8 * number)[:] = value
        context["flags"] = 2 | direction
        native.execute(encode(name, width, flags, asize), context)
        expected = bytes(memory.space)
        memory.space[:] = before
        m.set_flags(m.word(S.ZERO) + 2 + direction)

        run(m, f"{name}{width}")
        where = f"case {case}: flags {flags}, asize {asize}, df {direction}, count {count}, {destination - source:+}"
        assert m.word(S.RIP)[0] == RIP + 4, where
        for number in registers:
            assert u64(int(m.word(S.GPR + 8 * number)[0])) == int(context["gpr"][0, number]), (where, number)
        assert int(m.flags()[0]) & ARITHMETIC == int(context["flags"][0]) & ARITHMETIC, where
        assert bytes(memory.space) == expected, where


def test_requests_are_seen_within_a_page() -> None:
    m = machine(flags=REP)
    memory = Memory(m, PAGES)
    m.word(S.RDI)[:], m.word(S.RCX)[:] = memory.address + 100, 3 * PAGE
    run(m, "stos8", 1)
    assert m.word(S.RIP)[0] == RIP
    assert m.word(S.RCX)[0] == 3 * PAGE - (PAGE - 100)
    assert m.word(S.RDI)[0] == memory.address + PAGE
    assert run(m, "stos8") == 3


def test_single_stepping_takes_an_iteration_at_a_time() -> None:
    m = machine(flags=REP)
    memory = Memory(m, 1)
    m.word(S.HFLAGS)[:] |= S.MODE_STEP
    m.word(S.RDI)[:], m.word(S.RCX)[:] = memory.address, 3
    run(m, "stos8", 1)
    assert (m.word(S.RIP)[0], m.word(S.RCX)[0]) == (RIP, 2)
    assert run(m, "stos8") == 2


@pytest.mark.parametrize("direction", [0, S.DF])
def test_a_fault_finds_the_completed_iterations(direction: int) -> None:
    m = machine(flags=REP, direction=direction)
    memory = Memory(m, 4, present=range(1, 3))
    memory.space[:] = b"\x55" * len(memory.space)
    first, last = memory.address + PAGE, memory.address + 3 * PAGE
    m.word(S.RDI)[:], m.word(S.RCX)[:] = (first + 96, 1000) if direction else (last - 100, 1000)
    run(m, "stos32")
    assert (m.word(S.LEAVE)[0], m.word(S.EXC_VECTOR)[0], m.word(S.RIP)[0]) == (S.LEAVE_EXCEPTION, 14, RIP)
    assert m.word(S.RCX)[0] == 1000 - 25
    assert m.word(S.RDI)[0] == (first - 4 if direction else last)
    assert m.word(S.CR2)[0] == (first - 4 if direction else last)
    written = slice(PAGE, PAGE + 100) if direction else slice(3 * PAGE - 100, 3 * PAGE)
    expected = bytearray(b"\x55" * len(memory.space))
    expected[written] = bytes(100)
    assert bytes(memory.space) == bytes(expected)


def test_an_element_that_faults_halfway_is_not_written() -> None:
    m = machine(flags=REP)
    memory = Memory(m, 2, present=range(1))
    memory.space[:] = b"\x55" * len(memory.space)
    m.word(S.RDI)[:], m.word(S.RCX)[:] = memory.address + PAGE - 6, 3
    run(m, "stos32")
    assert m.word(S.EXC_VECTOR)[0] == 14
    assert m.word(S.RCX)[0] == 2
    assert memory.space[PAGE - 6 : PAGE] == bytes(4) + b"\x55" * 2


def real_mode(m: Machines, memory: Memory, limit: int = 0xFFFF) -> None:
    m.word(S.HFLAGS)[:] = 0
    for segment in (S.DS, S.ES, S.SS):
        m.word(segment + S.BASE)[:] = memory.address
        m.word(segment + S.LIMIT)[:] = limit
        m.word(segment + S.ATTR)[:] = 0x93


@pytest.mark.parametrize("direction", [0, S.DF])
def test_offsets_wrap_at_64_kib(direction: int) -> None:
    m = machine(asize=2, flags=REP, direction=direction)
    memory = Memory(m, 16)
    real_mode(m, memory)
    memory.space[:] = b"\x55" * len(memory.space)
    m.word(S.RDI)[:], m.word(S.RCX)[:] = 0x77_0008 if direction else 0x77_FFF8, 0x33_0010
    run(m, "stos8")
    assert m.word(S.RIP)[0] == RIP + 4
    assert m.word(S.RDI)[0] == (0x77_FFF8 if direction else 0x77_0008)
    assert m.word(S.RCX)[0] == 0x33_0000
    edge = 1 if direction else 0
    expected = bytes(8 + edge) + b"\x55" * (0x10000 - 16) + bytes(8 - edge)
    assert bytes(memory.space) == expected


def test_a_segment_limit_stops_a_run_where_it_lies() -> None:
    m = machine(asize=2, flags=REP)
    memory = Memory(m, 16)
    real_mode(m, memory, limit=0x1203)
    memory.space[:] = b"\x55" * len(memory.space)
    m.word(S.RDI)[:], m.word(S.RCX)[:] = 0x1001, 0x1000
    run(m, "stos32")
    assert (m.word(S.LEAVE)[0], m.word(S.EXC_VECTOR)[0], m.word(S.RIP)[0]) == (S.LEAVE_EXCEPTION, S.GP, RIP)
    assert m.word(S.RDI)[0] == 0x1201
    assert m.word(S.RCX)[0] == 0x1000 - 0x80
    assert memory.space[0x1000:0x1204] == b"\x55" + bytes(0x200) + b"\x55" * 3


def test_the_source_segment_can_be_overridden() -> None:
    m = machine(asize=8)
    memory = Memory(m, 1)
    memory.space[:] = bytes(range(256)) * 16
    m.word(S.FS + S.BASE)[:] = memory.address
    m.field(R.SEG_PTR)[:] = m.base + S.FS
    m.word(S.RSI)[:] = 0x42
    run(m, "lods8")
    assert m.word(S.RAX)[0] == 0x42
    assert m.word(S.RSI)[0] == 0x43


def test_no_iteration_touches_nothing() -> None:
    m = machine(flags=REPNE)
    Memory(m, 1, present=range(0))
    m.set_flags(m.word(S.ZERO) + ARITHMETIC)
    assert run(m, "scas8") == 1
    assert m.word(S.RIP)[0] == RIP + 4
    assert int(m.flags()[0]) & ARITHMETIC == ARITHMETIC
