"""Building the tables that fault resolution searches: memslots by gfn, memory attributes as merged ranges.

A table is an int64 array: a header, the first gfns of its entries, their values, an index (layout.py). It must live
until no vCPU can look at it (layout.py has the protocol).

A slot table is changed in place where one word does it: another record for a slot, none any more (its entry stays, with
the value 0), a slot behind all others. Other changes, and all of attributes, make a new table.

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
    SLOT_FIRST,
    SLOT_FLAGS,
    SLOT_HOST,
    SLOT_ID,
    SLOT_NPAGES,
    SLOT_PRIVATE,
    SLOT_RECORD,
    SLOT_TOUCHED,
    TABLE_BUCKETS,
    TABLE_CAPACITY,
    TABLE_COUNT,
    TABLE_HEADER,
    TABLE_SHIFT,
)

Table = np.ndarray

_HEADER = TABLE_HEADER // 8
_COUNT, _BUCKETS, _SHIFT, _CAPACITY = (at // 8 for at in (TABLE_COUNT, TABLE_BUCKETS, TABLE_SHIFT, TABLE_CAPACITY))
_MAX_BUCKETS = 2048
_ROOM = 8  # a slot table has room for an eighth more slots


def address(table: Table) -> int:
    """What the VM block's SLOTS or ATTRIBUTES points to."""
    return int(table.ctypes.data)


def table(entries: Iterable[tuple[int, int]] = ()) -> Table:
    """A table of {first gfn, value} entries, in any order."""
    pairs = np.array(sorted(entries), np.int64).reshape(-1, 2)
    return _build(pairs[:, 0], pairs[:, 1])


def firsts(of: Table) -> np.ndarray:
    """A view of the first gfns."""
    return of[_HEADER : _HEADER + int(of[_COUNT])]


def values(of: Table) -> np.ndarray:
    """A view of the values."""
    begin = _HEADER + int(of[_CAPACITY])
    return of[begin : begin + int(of[_COUNT])]


def entries(of: Table) -> list[tuple[int, int]]:
    """{first gfn, value} of all entries."""
    return list(zip(firsts(of).tolist(), values(of).tolist(), strict=True))


def _index(of: Table) -> np.ndarray:
    """A view of the index."""
    return of[_HEADER + 2 * int(of[_CAPACITY]) :].view(np.uint32)[: int(of[_BUCKETS]) + 1]


def _allocate(count: int, capacity: int, buckets: int) -> Table:
    result = np.zeros(_HEADER + 2 * capacity + (buckets + 2) // 2, np.int64)
    result[_COUNT], result[_CAPACITY], result[_BUCKETS] = count, capacity, buckets
    return result


def _build(keys: np.ndarray, data: np.ndarray, room: int = 0) -> Table:
    """A table of these entries, which can take `room` more."""
    count = len(keys)
    # Between one and two entries a bucket, if they lie evenly.
    bits = min((count // 2).bit_length(), _MAX_BUCKETS.bit_length() - 1)
    result = _allocate(count, count + room, 1 << bits if count else 0)
    if count:
        firsts(result)[:], values(result)[:] = keys, data
        shift = max(0, int(keys[-1] - keys[0]).bit_length() - bits)
        result[_SHIFT] = shift
        beginnings = keys[0] + (np.arange((1 << bits) + 1, dtype=np.int64) << shift)
        _index(result)[:] = np.searchsorted(firsts(result), beginnings, "right") - 1
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
    first: int = 0,
) -> ctypes.Array:
    """A memslot record; `host`, `private`, `touched`, `dirty` are addresses in this process, 0 as layout.py has it.

    `first`: the page of the memslot that the record begins with, and `dirty` is of the whole memslot.
    """
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
        (SLOT_FIRST, first),
    ):
        record[field // 8] = value
    return record


def touched_bytes(npages: int) -> int:
    """Size of a slot's SLOT_TOUCHED bitmap: 2 bits a page, in whole words."""
    return -(-npages // 32) * 8


def dirty_bytes(npages: int) -> int:
    """Size of a slot's SLOT_DIRTY bitmap: a bit a page, in whole words."""
    return -(-npages // 64) * 8


def slots(of: Table) -> list[tuple[int, int]]:
    """{first gfn, address of the record} of all slots."""
    return [(gfn, record) for gfn, record in entries(of) if record]


def with_slot(table: Table, base_gfn: int, npages: int, record: int) -> Table:
    """The table with one more memslot, or another record for the one at base_gfn: this one, changed, or a new one."""
    keys, data, count = firsts(table), values(table), int(table[_COUNT])
    at = int(np.searchsorted(keys, base_gfn))
    here = at < count and keys[at] == base_gfn
    after = at + here
    if after == count or keys[after] >= base_gfn + npages:  # else what is left of slots that are gone is in the way
        if here:
            data[at] = record
            return table
        if count and at == count < table[_CAPACITY]:
            return _appended(table, base_gfn, record)
    buckets = int(table[_BUCKETS])
    if at and not here and (buckets == _MAX_BUCKETS or count < 4 * buckets) and data.all():
        return _inserted(table, at, base_gfn, record)
    live = data != 0
    keys, data = keys[live], data[live]
    at = int(np.searchsorted(keys, base_gfn))
    return _build(np.insert(keys, at, base_gfn), np.insert(data, at, record), len(keys) // _ROOM + 1)


def _appended(table: Table, base_gfn: int, record: int) -> Table:
    """In place: an entry behind the last one."""
    count, capacity = int(table[_COUNT]), int(table[_CAPACITY])
    table[_HEADER + count], table[_HEADER + capacity + count] = base_gfn, record
    bucket = -(-(base_gfn - int(table[_HEADER])) >> int(table[_SHIFT]))  # the first one that begins at it or later
    _index(table)[bucket:] = count
    table[_COUNT] = count + 1  # last, so that nobody looks for it before it is there
    return table


def _inserted(table: Table, at: int, base_gfn: int, record: int) -> Table:
    """A copy with an entry in between, and the index shifted: the first entry stays the first."""
    count = int(table[_COUNT])
    result = _allocate(count + 1, count + 1 + count // _ROOM, int(table[_BUCKETS]))
    result[_SHIFT] = table[_SHIFT]
    for old, new, value in (
        (firsts(table), firsts(result), base_gfn),
        (values(table), values(result), record),
    ):
        new[:at], new[at], new[at + 1 :] = old[:at], value, old[at:]
    index = _index(result)
    index[:] = _index(table)
    index[-(-(base_gfn - int(table[_HEADER])) >> int(table[_SHIFT])) :] += 1
    return result


def without_slot(table: Table, base_gfn: int) -> Table:
    """Take the memslot at base_gfn out, in place; KeyError if there is none."""
    keys = firsts(table)
    at = int(np.searchsorted(keys, base_gfn))
    if at == len(keys) or keys[at] != base_gfn or not values(table)[at]:
        raise KeyError(base_gfn)
    values(table)[at] = 0
    return table


# Memory attributes -----


def with_attributes(attributes: Table, first: int, end: int, value: int) -> Table:
    """A new table with `value` for the gfns first to end - 1."""
    keys, data = firsts(attributes), values(attributes)
    low = int(np.searchsorted(keys, first, "left"))
    high = int(np.searchsorted(keys, end, "right"))
    before = data[low - 1] if low else 0
    after = data[high - 1] if high else 0
    steps = [(first, value)] if value != before else []
    if value != after:
        steps.append((end, after))
    new = np.array(steps, np.int64).reshape(-1, 2)
    return _build(
        np.concatenate((keys[:low], new[:, 0], keys[high:])), np.concatenate((data[:low], new[:, 1], data[high:]))
    )


def have_attributes(attributes: Table, first: int, end: int, value: int) -> bool:
    """Whether all of the gfns first to end - 1 have these attributes."""
    keys, data = firsts(attributes), values(attributes)
    low = int(np.searchsorted(keys, first, "right"))
    before = data[low - 1] if low else 0
    return before == value and (low == len(keys) or bool(keys[low] >= end))


def attributes_at(attributes: Table, gfn: int) -> int:
    """The attributes of one page."""
    at = int(np.searchsorted(firsts(attributes), gfn, "right"))
    return int(values(attributes)[at - 1]) if at else 0


def attribute_ranges(attributes: Table) -> Iterator[tuple[int, int, int]]:
    """(first gfn, end gfn, attributes) of each range that has any."""
    for (first, value), (end, _) in pairwise(entries(attributes)):
        if value:
            yield first, end, value
