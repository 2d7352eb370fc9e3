"""A case's part of memory, and what it has changed: the same compiled code for both sides."""

from __future__ import annotations

from kvmfs.jit.raw import load8, load32, load64, memcpy, memset, s64, store32, store64
from numba import njit

from . import layout as L

FIELDS = {name: L.CASE.fields[name][1] for name in L.CASE.names}  # type: ignore[index]
DIGEST, VALUE, CHANGED, FRAME_AT, LENGTH, CODE_BYTES, FRAME = (
    FIELDS[name] for name in ("digest", "value", "changed", "frame_at", "length", "code", "frame")
)
CODE, MEMORY, FRAME_SIZE = L.CODE, L.MEMORY, L.FRAME
MIX = s64(0x9E3779B97F4A7C15)
HLT = 0xF4  # ends what Unicorn translates


@njit(error_model="numpy")
def put_case(c, ram):
    """Frame and code of a case into memory."""
    if load32(c + FRAME_AT) != 0:
        memcpy(ram + load32(c + FRAME_AT), c + FRAME, FRAME_SIZE)
    memset(ram + CODE, HLT, 16)
    memcpy(ram + CODE, c + CODE_BYTES, load8(c + LENGTH))
    return 0


@njit(error_model="numpy")
def compare_memory(c, ram, pristine):
    """Digest of all words that are not as in `pristine`, and memory as it was."""
    digest, changed, at = 0, 0, 0
    store64(c + VALUE, 0)
    while at < MEMORY:
        value = load64(ram + at)
        if value != load64(pristine + at):
            if digest == 0:
                changed = at + 1
                store64(c + VALUE, value)
            digest = (digest ^ value) * MIX + at // 8
            store64(ram + at, load64(pristine + at))
        at += 8
    store64(c + DIGEST, digest)
    store32(c + CHANGED, changed)
    return 0
