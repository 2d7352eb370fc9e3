"""Building the tables that fault resolution searches: memslots by gfn, memory attributes as merged ranges.

A table is an int64 array: a header, pairs {first gfn, value} by ascending gfn, an index (layout.py). The functions
leave their argument alone and return a new table: a copy of 16 bytes an entry, and an index made, some 50 µs for ten
thousand. The array must live until no vCPU can look at it (layout.py has the protocol).

The attribute table is a step function: an entry's attributes hold up to the next entry's gfn, 0 is written out, and
neighbours differ. So a range's size costs nothing.
"""

import ctypes
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from .layout import (
    SLOT_BASE_GFN,
    SLOT_CLIENT,
    SLOT_DIRTY,
    SLOT_FLAGS,
    SLOT_HOST,
    SLOT_ID,
    SLOT_NPAGES,
    SLOT_PRIVATE,
    SLOT_RECORD,
    SLOT_TOUCHED,
    TABLE_BUCKETS,
    TABLE_COUNT,
    TABLE_HEADER,
    TABLE_SHIFT,
)

Table = np.ndarray

_HEADER = TABLE_HEADER // 8
_MAX_BUCKETS = 2048


def address(table: Table) -> int:
    """What the VM block's SLOTS or ATTRIBUTES points to."""
    return int(table.ctypes.data)


def table(entries: Iterable[tuple[int, int]] = ()) -> Table:
    """A table of {first gfn, value} entries, in any order."""
    pairs = np.array(sorted(entries), np.int64).reshape(-1, 2)
    return _joined(pairs)


def entries(of: Table) -> np.ndarray:
    """A view of the entries: n rows of {first gfn, value}."""
    return of[_HEADER : _HEADER + 2 * int(of[TABLE_COUNT // 8])].reshape(-1, 2)


def _joined(*parts: np.ndarray) -> Table:
    count = sum(len(part) for part in parts)
    # Between one and two entries a bucket, if they lie evenly.
    bucket_bits = min((count // 2).bit_length(), _MAX_BUCKETS.bit_length() - 1)
    buckets = 1 << bucket_bits if count else 0
    result = np.zeros(_HEADER + 2 * count + (buckets + 2) // 2, np.int64)
    result[TABLE_COUNT // 8] = count
    if count:
        pairs = entries(result)
        np.concatenate(parts, out=pairs)
        firsts = pairs[:, 0]
        shift = max(0, int(firsts[-1] - firsts[0]).bit_length() - bucket_bits)
        result[TABLE_BUCKETS // 8], result[TABLE_SHIFT // 8] = buckets, shift
        beginnings = firsts[0] + (np.arange(buckets + 1, dtype=np.int64) << shift)
        index = result[_HEADER + 2 * count :].view(np.uint32)
        index[: buckets + 1] = np.searchsorted(firsts, beginnings, "right") - 1
    return result


# Memslots -----


def slot_record(
    base_gfn: int,
    npages: int,
    *,
    host: int = 0,
    client: int = 0,
    private: int = 0,
    flags: int = 0,
    slot_id: int = 0,
    touched: int = 0,
    dirty: int = 0,
) -> ctypes.Array:
    """A memslot record; `host`, `private`, `touched`, `dirty` are addresses in this process, 0 as layout.py has it."""
    record = (ctypes.c_int64 * (SLOT_RECORD // 8))()
    for field, value in (
        (SLOT_BASE_GFN, base_gfn),
        (SLOT_NPAGES, npages),
        (SLOT_HOST, host),
        (SLOT_CLIENT, client),
        (SLOT_PRIVATE, private),
        (SLOT_FLAGS, flags),
        (SLOT_ID, slot_id),
        (SLOT_TOUCHED, touched),
        (SLOT_DIRTY, dirty),
    ):
        record[field // 8] = value
    return record


def touched_bytes(npages: int) -> int:
    """Size of a slot's SLOT_TOUCHED bitmap: 2 bits a page, in whole words."""
    return -(-npages // 32) * 8


def dirty_bytes(npages: int) -> int:
    """Size of a slot's SLOT_DIRTY bitmap: a bit a page, in whole words."""
    return -(-npages // 64) * 8


def with_slot(slots: Table, base_gfn: int, record: int) -> Table:
    """The table with one more memslot, or another record for the one at base_gfn."""
    pairs = entries(slots)
    at = int(np.searchsorted(pairs[:, 0], base_gfn))
    after = at + (at < len(pairs) and pairs[at, 0] == base_gfn)
    return _joined(pairs[:at], np.array([[base_gfn, record]], np.int64), pairs[after:])


def without_slot(slots: Table, base_gfn: int) -> Table:
    """The table without the memslot at base_gfn; KeyError if there is none."""
    pairs = entries(slots)
    at = int(np.searchsorted(pairs[:, 0], base_gfn))
    if at == len(pairs) or pairs[at, 0] != base_gfn:
        raise KeyError(base_gfn)
    return _joined(pairs[:at], pairs[at + 1 :])


# Memory attributes -----


def with_attributes(attributes: Table, first: int, end: int, value: int) -> Table:
    """The table with `value` for the gfns first to end - 1."""
    pairs = entries(attributes)
    low = int(np.searchsorted(pairs[:, 0], first, "left"))
    high = int(np.searchsorted(pairs[:, 0], end, "right"))
    before = pairs[low - 1, 1] if low else 0
    after = pairs[high - 1, 1] if high else 0
    steps = [(first, value)] if value != before else []
    if value != after:
        steps.append((end, after))
    return _joined(pairs[:low], np.array(steps, np.int64).reshape(-1, 2), pairs[high:])


def attributes_at(attributes: Table, gfn: int) -> int:
    """The attributes of one page."""
    pairs = entries(attributes)
    at = int(np.searchsorted(pairs[:, 0], gfn, "right"))
    return int(pairs[at - 1, 1]) if at else 0


def attribute_ranges(attributes: Table) -> Iterator[tuple[int, int, int]]:
    """(first gfn, end gfn, attributes) of each range that has any."""
    pairs = entries(attributes).tolist()
    for (first, value), (end, _) in pairwise(pairs):
        if value:
            yield first, end, value
