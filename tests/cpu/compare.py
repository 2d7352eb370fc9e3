"""One instruction on many contexts, by its handler and by the host CPU: every register and flag must agree."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kvmfs.jit import state as S
from kvmfs.jit.cpu import record as R
from kvmfs.jit.raw import PLAIN

from . import native
from .machine import ARITHMETIC, Machines

GPR_WORDS = slice(S.GPR // 8, S.GPR // 8 + 16)
SIGFPE = 8
MXCSR_INIT = 0x1F80
COUNT = 24 if PLAIN else 400


@dataclass(frozen=True)
class Form:
    """An instruction form: how the host runs it and how a record names its operands.

    Operands are register names (`rbx`, `xmm1`, `rax+1` for AH) or `imm`. `undefined` are the flags that the SDM leaves
    undefined: those are compared on the kind of processor that the handlers follow.
    """

    handler: str
    code: bytes
    dst: str = "rbx"
    src: str = "rsi"
    third: str = ""
    imm: int = 0
    undefined: int = 0
    wide: bool = False  # VEX.L

    def __str__(self) -> str:
        return f"{self.handler} {self.code.hex(' ')}"


@functools.cache
def is_followed() -> bool:
    """Whether this host does what is undefined as the handlers do: AMD's."""
    return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()


@functools.cache
def missing_features() -> frozenset[str]:
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return frozenset({"bmi1", "bmi2", "adx", "abm", "sse4_1", "sse4_2", "ssse3", "popcnt", "movbe"}) - set(
        flags.split()
    )


def interesting(rng: np.random.Generator, count: int) -> np.ndarray:
    """Words with the corners of every operand width, most of them with other bits above."""
    corners = [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 0x55, 0xAA]
    for width in (8, 16, 32, 64):
        top = 1 << (width - 1)
        corners += [top - 1, top, top + 1, 2 * top - 1, 2 * top - 2]
    words = rng.choice(np.array(corners, np.uint64), count)
    random = rng.integers(0, 1 << 64, count, np.uint64)
    above = rng.choice(np.array([0, 8, 16, 32, 64], np.uint64), count)
    mask = np.where(above == 64, np.uint64(0), ~np.uint64(0) << (above % np.uint64(64)))
    mask[above == 0] = 0
    words = words & ~mask | random & mask
    return np.where(rng.integers(0, 5, count) == 0, random, words)


def contexts(seed: str, count: int = COUNT) -> np.ndarray:
    """Seeded contexts: general and vector registers of interesting values, any arithmetic flags."""
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    made = np.zeros(count, native.CONTEXT)
    made["gpr"] = interesting(rng, count * 16).reshape(count, 16)
    made["vector"] = interesting(rng, count * 32).reshape(count, 16, 2)
    made["upper"] = interesting(rng, count * 32).reshape(count, 16, 2)
    made["flags"] = rng.integers(0, 1 << 12, count, np.uint64) & np.uint64(ARITHMETIC) | np.uint64(2)
    made["gpr"][:, native.RSP] = 0
    made["mxcsr"][:, 0] = MXCSR_INIT
    return made


def by_handler(form: Form, start: np.ndarray) -> np.ndarray:
    """The contexts that the handler makes of `start`."""
    machines = Machines(len(start))
    machines.state[:, GPR_WORDS] = start["gpr"].view(np.int64)
    for n in range(16):
        slot = (S.VEC + 64 * n) // 8
        machines.state[:, slot : slot + 2] = start["vector"][:, n].view(np.int64)
        machines.state[:, slot + 2 : slot + 4] = start["upper"][:, n].view(np.int64)
    machines.set_flags(start["flags"])
    machines.word(S.MXCSR)[:] = start["mxcsr"][:, 0]
    for field, operand in ((R.DST, form.dst), (R.SRC, form.src), (R.BASE_PTR, form.third)):
        if operand:
            machines.field(field)[:] = machines.operand(operand)
    machines.field(R.IMM)[:] = form.imm
    machines.byte(R.AUX)[:] = form.wide
    after = machines.run(form.handler)

    end = np.zeros(len(start), native.CONTEXT)
    end["gpr"] = machines.state[:, GPR_WORDS].view(np.uint64)
    for n in range(16):
        slot = (S.VEC + 64 * n) // 8
        end["vector"][:, n] = machines.state[:, slot : slot + 2].view(np.uint64)
        end["upper"][:, n] = machines.state[:, slot + 2 : slot + 4].view(np.uint64)
    end["flags"] = machines.flags().view(np.uint64)
    end["mxcsr"][:, 0] = machines.word(S.MXCSR)
    faulted = after == 0
    assert (machines.word(S.LEAVE)[faulted] == S.LEAVE_EXCEPTION).all()
    assert np.isin(machines.word(S.EXC_VECTOR)[faulted], (S.DE, S.XM)).all()
    assert (after[~faulted] == machines.record[~faulted] + R.RECORD).all()
    end["signal"][faulted] = SIGFPE
    return end


def check(form: Form, start: np.ndarray | None = None) -> None:
    """Compare handler and host on the form's contexts."""
    if start is None:
        start = contexts(str(form))
    expected = start.copy()
    native.execute(form.code, expected)
    found = by_handler(form, start)
    mask = np.uint64(ARITHMETIC | S.DF)
    if not is_followed():
        mask &= ~np.uint64(form.undefined)
    for side in (expected, found):
        side["flags"] &= mask
        side["mxcsr"][:, 1] = 0
        stopped = side["signal"] != 0
        for part in ("gpr", "flags", "vector", "upper"):
            side[part][stopped] = start[part][stopped]
    wrong = np.flatnonzero(expected != found)
    assert len(wrong) == 0, f"{form}: {len(wrong)} of {len(start)}\n" + describe(
        *(x[wrong[0]] for x in (start, expected, found))
    )


def describe(start: np.void, expected: np.void, found: np.void) -> str:
    """What differs, in one case."""
    lines = []
    for part in ("gpr", "vector", "upper", "flags", "mxcsr", "signal"):
        for index in np.ndindex(start[part].shape):
            values = [int(side[part][index]) for side in (start, expected, found)]
            if values[1] != values[2] or (part == "gpr" and index[0] in (0, 1, 2, 3, 6, 8)):
                mark = "  <-- differs" if values[1] != values[2] else ""
                lines.append(f"{part}{list(index)}: {values[0]:#x} -> {values[1]:#x}, handler {values[2]:#x}{mark}")
    return "\n".join(lines)
