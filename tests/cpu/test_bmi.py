"""The newer general-purpose instructions: next to the host's, and without the feature as silicon without it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features

from .compare import is_followed, missing_features
from .forms import Opcode, opcodes, variants
from .test_integer import UNDEFINED
from .whole import Processor, both, contexts, differences

SETS = opcodes("BMI1", "BMI2", "ADX", "LZCNT", "POPCNT", "MOVBE", "SSE4_2")
GENERAL = [opcode for opcode in SETS if not opcode.has("XMM")]
HOST_NAMES = {"LZCNT": "abm", "SSE4_2": "sse4_2"}


@functools.cache
def processor() -> Processor:
    return Processor()


def undefined(opcode: Opcode) -> int:
    """Flags that the SDM leaves open, on hosts that do otherwise than we do."""
    name = opcode.name.removeprefix("VEX_").partition("_")[0].lower()
    return 0 if is_followed() else next((flags for names, flags in UNDEFINED.items() if name in names.split()), 0)


@pytest.mark.parametrize("opcode", GENERAL, ids=lambda opcode: opcode.name)
def test_as_the_host(opcode: Opcode) -> None:
    if {HOST_NAMES.get(name, name.lower()) for name in opcode.features} & missing_features():
        pytest.skip("the host lacks it")
    for code in variants(opcode):
        expected, found = both(processor(), code, contexts(opcode.name, 60))
        for side in (expected, found):
            side["flags"] &= ~(undefined(opcode)) & 0xFFFF
        assert differences(expected, found) == [], code.hex()


def test_stores_that_bypass_caches() -> None:
    """MOVDIRI, MOVDIR64B, CLZERO; the last two move or clear 64 bytes, MOVDIR64B to an aligned place only."""
    guest = Processor()
    start = contexts("stores", 1)
    start["gpr"][:, (0, 1, 3)] = (0x200000 + 77, 0x200000 + 64, 0x200000)
    before = start["memory"][0].copy()

    def run(text: str) -> tuple[int, list[int]]:
        row = start.copy()
        guest.execute_all(bytes.fromhex(text), row)
        return int(row["signal"][0]), row["memory"][0].tolist()

    stored = before.copy()
    stored[0] = start["gpr"][0, 6]
    assert run("480f38f933") == (0, stored.tolist())  # movdiri [rbx], rsi
    assert run("660f38f80b") == (0, [*before[:8], *before[:8]])  # movdir64b rcx, [rbx]
    assert run("660f38f803")[0] == 11  # movdir64b rax, [rbx]
    assert run("0f01fc") == (0, [*before[:8], *[0] * 8])  # clzero


def test_random_numbers() -> None:
    """They differ, come with CF, and clear the other flags."""
    start = contexts("random", 20)
    for code, width in (("0fc7f0", 32), ("480fc7f8", 64), ("660fc7f1", 16)):
        made = start.copy()
        processor().execute_all(bytes.fromhex(code), made)
        number = int(code, 16) & 1
        values = made["gpr"][:, number] & np.uint64((1 << width) - 1)
        drawn = made["flags"] & np.uint64(S.CF) != 0
        assert not (made["flags"] & np.uint64(S.ARITHMETIC & ~S.CF)).any()
        assert drawn.any()
        assert len(set(values[drawn].tolist())) > 1
        if width == 16:
            assert (made["gpr"][:, 1] >> np.uint64(16) == start["gpr"][:, 1] >> np.uint64(16)).all()


def test_forms_are_all_there() -> None:
    """The list that the tests run over is that of the manual: a change in it shows."""
    assert len(GENERAL) == 50


@pytest.mark.parametrize(
    ("feature", "text", "expected"),
    [
        ("BMI1", "f30fbcc1", 0),  # tzcnt eax, ecx is bsf: ZF by the source
        ("ABM", "f30fbdc1", 31),  # lzcnt eax, ecx is bsr
        ("BMI1", "c4e270f2c2", None),  # andn eax, ecx, edx
        ("BMI2", "c4e273f6c2", None),  # mulx eax, ecx, edx
        ("ADX", "660f38f6c1", None),
        ("POPCNT", "f30fb8c1", None),
        ("MOVBE", "0f38f003", None),
        ("XMM4_2", "f20f38f1c1", None),
        ("RDRAND", "0fc7f0", None),
        ("RDSEED", "0fc7f8", None),
        ("CLWB", "660fae33", None),
        ("CLZERO", "0f01fc", None),
        ("SERIALIZE", "0f01e8", None),
        ("MOVDIRI", "0f38f903", None),
        ("MOVDIR64B", "660f38f80b", None),
    ],
)
def test_without_the_feature(feature: str, text: str, expected: int | None) -> None:
    """#UD, or the instruction that its opcode is without the prefix."""
    guest = Processor()
    guest[S.FEATURES + features.word(feature)] &= ~features.mask(feature)
    code = bytes.fromhex(text)
    start = contexts("features", 1)
    start["gpr"][:, 1] = 0x80000001
    start["gpr"][:, 3] = 0x200000
    start["gpr"][:, 0] = 0x200000
    guest.execute_all(code, start)
    if expected is None:
        assert start["signal"][0] == 4
    else:
        assert (start["signal"][0], start["gpr"][0, 0]) == (0, expected)
