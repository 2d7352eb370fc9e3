"""Whole instructions, decoded from their bytes and executed by our processor, next to the host's.

One context is the registers of native.py; a memory operand is at [rbx], the context's own memory. What faults on one
side must raise the same exception on the other, and then nothing has changed.
"""

from __future__ import annotations

import ctypes
import zlib

import numpy as np
from kvmfs.jit import state as S

from . import native
from .compare import MXCSR_INIT, interesting
from .test_system import CODE, HANDLER, STACK, System

DATA = 0x200000
RBX, RSP = 3, 4
HLT, UD2 = b"\xf4", b"\x0f\x0b"
SIGNALS = {S.UD: 4, S.XM: 8, S.DE: 8, S.GP: 11, S.PF_FAULT: 11}
MEMORY_BYTES = 128


def contexts(seed: str, count: int, floats: np.ndarray | None = None) -> np.ndarray:
    """Seeded contexts with interesting values everywhere, or with vectors and memory taken from `floats`."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    made = native.blank(count)
    made["gpr"] = interesting(rng, count * 16).reshape(count, 16)
    for part, shape in (("vector", (16, 2)), ("upper", (16, 2)), ("memory", (16,))):
        size = count * int(np.prod(shape))
        values = interesting(rng, size) if floats is None else rng.choice(floats, size)
        made[part] = values.reshape(count, *shape)
    made["flags"] = rng.integers(0, 1 << 12, count, np.uint64) & np.uint64(S.ARITHMETIC) | np.uint64(2)
    made["mxcsr"][:, 0] = MXCSR_INIT
    return made


def copied(contexts: np.ndarray) -> np.ndarray:
    """A copy as aligned as the original."""
    copy = native.blank(len(contexts))
    copy[:] = contexts
    return copy


class Processor(System):
    """Executes single instructions on contexts."""

    def __init__(self) -> None:
        super().__init__()
        self[S.CR4] |= S.CR4_OSXSAVE | S.CR4_FSGSBASE
        self[S.XCR0] = self[S.XCR0_SUPPORTED] = 7
        self.derive()

    def execute_all(self, code: bytes, contexts: np.ndarray) -> None:
        """Run the instruction on each context, in place. RSP is the stack's own, and kept."""
        self.write(CODE, code + HLT)
        vectors = np.zeros((len(contexts), 16, 8), np.uint64)
        vectors[:, :, :2], vectors[:, :, 2:4] = contexts["vector"], contexts["upper"]
        base, ram = self.cpu.address, self.ram.address + DATA
        for index, row in enumerate(contexts):
            start = contexts.ctypes.data + index * native.CONTEXT.itemsize
            memory = start + native.OFFSETS["memory"]
            slots = vectors.ctypes.data + index * 16 * 64
            keep = int(row["gpr"][RSP])
            row["gpr"][RSP] = STACK
            ctypes.memmove(base + S.GPR, start, 128)
            ctypes.memmove(base + S.VEC, slots, 16 * 64)
            ctypes.memmove(ram, memory, MEMORY_BYTES)
            self.rflags, self[S.MXCSR], self[S.RIP] = int(row["flags"]), int(row["mxcsr"][0]), CODE
            reason = self.run()
            assert reason == S.EXIT_HLT, f"{code.hex()}: exit {reason}"
            if self[S.RIP] == CODE + len(code) + 1:
                ctypes.memmove(start, base + S.GPR, 128)
                ctypes.memmove(slots, base + S.VEC, 16 * 64)
                ctypes.memmove(memory, ram, MEMORY_BYTES)
                row["flags"] = self.rflags
            else:
                row["signal"] = SIGNALS[(self[S.RIP] - HANDLER) >> 4]
                self.rflags = 2
            row["mxcsr"][0], row["gpr"][RSP] = self[S.MXCSR], keep
        contexts["vector"], contexts["upper"] = vectors[:, :, :2], vectors[:, :, 2:4]


def both(processor: Processor, code: bytes, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the host and our processor make of `start`."""
    expected, found = copied(start), copied(start)
    at = np.uint64(expected.ctypes.data + native.OFFSETS["memory"])
    places = at + np.uint64(native.CONTEXT.itemsize) * np.arange(len(expected), dtype=np.uint64)
    expected["gpr"][:, RBX], found["gpr"][:, RBX] = places, DATA
    native.execute(code, expected)
    processor.execute_all(code, found)
    for side, was in ((expected, places), (found, np.uint64(DATA))):
        same = side["gpr"][:, RBX] == was
        side["gpr"][same, RBX] = 0
        side["mxcsr"][:, 1] = 0
        side["flags"] &= np.uint64(S.ARITHMETIC)
        stopped = side["signal"] != 0
        for part in ("gpr", "flags", "vector", "upper", "memory"):
            side[part][stopped] = 0
    return expected, found


def differences(expected: np.ndarray, found: np.ndarray) -> list[str]:
    """The first context that differs, a line for each word."""
    wrong = np.flatnonzero(expected != found)
    if not len(wrong):
        return []
    lines = [f"{len(wrong)} of {len(expected)} differ"]
    for part in native.FIELDS:
        one, other = expected[part][wrong[0]], found[part][wrong[0]]
        for index in np.ndindex(one.shape):
            if one[index] != other[index]:
                lines.append(f"  {part}{list(index)}: {int(one[index]):#x}, here {int(other[index]):#x}")
    return lines
