"""Rules about memory accesses as compiled code reads them: byte offsets."""

from __future__ import annotations

from typing import Final

from kvmfs.jit.layout import Layout


class Rule:
    """A rule about accesses, as compiled code reads it."""

    _l = Layout()
    MATCHED = _l.u64()  # counted here
    FIRED = _l.u64()
    NUMBER = _l.u64()
    WHAT = _l.u64()  # mmu.INJECT_*, or DELAY
    RANGES = _l.u64()  # address of {first gfn, end gfn}
    RANGE_COUNT = _l.u64()  # 0: all memory
    VCPUS = _l.u64()  # address of a bitmap by id, 0: all
    ACCESSES = _l.u64()  # 1 << READ | 1 << WRITE | 1 << FETCH
    KINDS = _l.u64()  # SHARED | PRIVATE
    AFTER, EVERY, TIMES, CHANCE, SEED = _l.u64(), _l.u64(), _l.u64(), _l.u64(), _l.u64()  # when.When
    DELAY = _l.u64()  # ns
    SIZE = _l.size


class Table:
    """The rules of a VM: COUNT addresses of them, tried in this order."""

    COUNT, RULES = 0, 8


DELAY: Final = 1 << 8
"""WHAT: the access waits, and goes on."""
SHARED, PRIVATE = 1, 2
"""Bits of KINDS."""
