"""What the guest's CPUID says decides what it can execute: the opcode tables' features next to iced-x86's, and #UD."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from kvmfs.jit import state as S
from kvmfs.jit.cpu import features, optable
from kvmfs.jit.cpu import record as R

from .fuzz import decoding
from .fuzz.ours import Ours

iced = pytest.importorskip("iced_x86")

ESCAPES = (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")
PREFIXES = {"66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
NAMES = {getattr(iced.CpuidFeature, name): name for name in dir(iced.CpuidFeature) if name[0].isupper()}
# iced-x86's names where the kernel has others
KERNEL = {"SSE": "XMM", "SSE2": "XMM2", "SSE3": "XMM3", "SSE4_1": "XMM4_1", "SSE4_2": "XMM4_2", "LZCNT": "ABM"}
KERNEL |= {"SHA": "SHA_NI", "CLFSH": "CLFLUSH"}
# Those that no x86-64 processor lacks; hints, which are no-ops without; and what other bits decide: CR4's, a handler
UNGATED = {"FPU", "FPU387", "CPUID", "MULTIBYTENOP", "RDPMC", "X64", "SMM", "CLDEMOTE", "PREFETCHW", "PREFETCHWT1"}
UNGATED |= {"FSGSBASE", "SVM", "VMX", "MONITOR", "RDPID", "RDTSCP"}


@dataclass(frozen=True)
class Encoding:
    """A form of a row."""

    row: int  # its number
    code: bytes
    bits: int


@functools.cache
def rows() -> list[tuple[bytes, optable.Row]]:
    """(escape bytes, row) of the maps without VEX."""
    return [(ESCAPES[number], row) for number, members in enumerate(optable.all_maps()) for row in members]


def encodings() -> Iterator[Encoding]:
    """One with memory at rCX, one with register 1, as far as the row has them."""
    for number, (escape, row) in enumerate(rows()):
        prefix = PREFIXES.get(row.prefix, b"")
        for mod in {"m": (0,), "r": (3,)}.get(row.form, (0, 3)):
            modrm = mod << 6 | (row.reg or 0) << 3 | 1
            code = (prefix + escape + bytes([row.opcode, modrm])).ljust(16, b"\0")
            yield Encoding(number, code, 32 if "no64" in row.attributes else 64)


def expected(instruction: iced.Instruction) -> set[str]:
    """What the instruction needs, by the kernel's names."""
    names = {NAMES[number] for number in instruction.cpuid_features()}
    return {KERNEL.get(name, name) for name in names if name not in UNGATED and not name.startswith("INTEL")}


def exceptions(row: optable.Row) -> set[str] | None:
    """Rows of which iced-x86 says something else."""
    if row.mnemonic == "mm_paddq":
        return {"XMM2"}  # SDM vol. 1, 5.6.3: it came with SSE2
    if row.mnemonic in ("sahf", "lahf") and "o64" in row.attributes:
        return {"LAHF_LM"}  # SDM vol. 2, SAHF: "#UD: if CPUID.80000001H.ECX[0] = 0", in 64-bit mode
    if row.mnemonic in ("nop", "xgetbv_group"):
        return set()  # PREFETCHh; CR4.OSXSAVE decides
    return None


def test_rows_need_what_iced_says() -> None:
    for encoding in encodings():
        row = rows()[encoding.row][1]
        instruction = iced.Decoder(encoding.bits, encoding.code).decode()
        if instruction.is_invalid or "ud" in row.attributes:
            continue
        wanted = exceptions(row)
        found = set(optable.feature_names(row)) - {"MMXEXT"}
        assert found == (expected(instruction) if wanted is None else wanted), f"{encoding.code.hex()} {row.mnemonic}"


class Decoder:
    """Our decoder, with some features missing."""

    def __init__(self) -> None:
        self._cpu = Ours()
        self._records = np.zeros(R.RECORD * 16 // 8, np.int64)

    def kinds(self, codes: list[bytes], bits: int, missing: set[str]) -> list[int]:
        """decoding.RESULT's kinds."""
        for word in range(4):
            self._cpu[S.FEATURES + 8 * word] = -1
        for name in missing:
            self._cpu[S.FEATURES + features.word(name)] &= ~features.mask(name)
        self._cpu[S.HFLAGS] = decoding.MODES[bits] | S.MODE_PROTECTED | S.MODE_PAGING
        raw, results = np.frombuffer(b"".join(codes), np.uint8), np.zeros(len(codes), decoding.RESULT)
        decoding.decode_batch(
            self._cpu.cpu.address, raw.ctypes.data, results.ctypes.data, len(codes), self._records.ctypes.data
        )
        return results["kind"].tolist()


def test_without_its_feature_an_instruction_is_undefined() -> None:
    """Or is another one, and then it needs that one's feature too: LZCNT is BSR."""
    decoder = Decoder()
    by_feature: dict[tuple[frozenset[str], int, bool], list[bytes]] = {}
    for encoding in encodings():
        row = rows()[encoding.row][1]
        needed = frozenset(optable.feature_names(row))
        valid = not iced.Decoder(encoding.bits, encoding.code).decode().is_invalid
        if needed and valid and "ud" not in row.attributes:
            by_feature.setdefault((needed, encoding.bits, "else" in row.attributes), []).append(encoding.code)
    assert {name for names, *_ in by_feature for name in names} > {"XMM", "MMX", "SSSE3", "XMM4_1", "CMOV", "CX8"}
    for (needed, bits, is_other), codes in by_feature.items():
        assert set(decoder.kinds(codes, bits, set())) == {decoding.TAKEN}, needed
        kind = decoding.TAKEN if is_other else decoding.IS_UNDEFINED
        assert set(decoder.kinds(codes, bits, set(needed))) == {kind}, needed
        for one in needed if len(needed) > 1 else ():  # either will do
            assert set(decoder.kinds(codes, bits, {one})) == {decoding.TAKEN}, needed


def test_every_row_has_handlers() -> None:
    assert not optable.missing()
