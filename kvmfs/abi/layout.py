"""Scalar types and the base classes of every struct of the ABI.

x86-64 is little endian with natural alignment, which is what ``ctypes.LittleEndianStructure`` does unasked. Pointers
of the client are ``u64``: they are numbers here, never to be followed. A C union without a name is a field listed in
``_anonymous_``; its members are attributes of the struct around it, as in C. Flexible array members have length 0, so
that ``sizeof`` is the fixed part, as in C.
"""

import re
from collections.abc import Iterator
from ctypes import (
    Array,
    LittleEndianStructure,
    LittleEndianUnion,
    c_int8,
    c_int16,
    c_int32,
    c_int64,
    c_uint8,
    c_uint16,
    c_uint32,
    c_uint64,
    sizeof,
)
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

u8 = c_uint8
u16 = c_uint16
u32 = c_uint32
u64 = c_uint64
s8 = c_int8
s16 = c_int16
s32 = c_int32
s64 = c_int64

PAGE_SIZE = 4096


class Struct(LittleEndianStructure):
    """A C struct. ``c_name`` is its C spelling, empty where C gives it no name."""

    c_name: ClassVar[str] = ""


class Union(LittleEndianUnion):
    """A C union."""

    c_name: ClassVar[str] = ""


Aggregate: TypeAlias = type[Struct] | type[Union]
"""A struct or union class."""


@dataclass(frozen=True, slots=True)
class Field:
    """A member, seen from the start of the struct it was asked of. Offsets and sizes are in bytes."""

    name: str
    type: Any
    offset: int
    bits: int = 0
    """Width of a bit field, 0 for all other members."""

    @property
    def size(self) -> int:
        return sizeof(self.type)


def fields(aggregate: Aggregate, base: int = 0) -> Iterator[Field]:
    """Members of a struct or union in declaration order, those of unnamed members in their place."""
    unnamed: tuple[str, ...] = tuple(getattr(aggregate, "_anonymous_", ()))
    for entry in aggregate._fields_:
        name, ctype = entry[0], entry[1]
        offset = base + getattr(aggregate, name).offset
        if name in unnamed:
            yield from fields(ctype, offset)  # type: ignore[arg-type]
        else:
            yield Field(name, ctype, offset, entry[2] if len(entry) == 3 else 0)


_STEP = re.compile(r"(\w+)((?:\[\d+\])*)")


def locate(aggregate: Aggregate, path: str) -> Field:
    """The member that a C designator names, such as ``"io.data_offset"`` or ``"ranges[3].bitmap"``.

    :raises KeyError: there is no such member.
    """
    found = Field("", aggregate, 0)
    for step in path.split("."):
        match = _STEP.fullmatch(step)
        if match is None or not issubclass(found.type, (Struct, Union)):
            raise KeyError(f"{aggregate.__name__}.{path}")
        member = {f.name: f for f in fields(found.type)}.get(match[1])
        if member is None:
            raise KeyError(f"{aggregate.__name__}.{path}")
        ctype, offset = member.type, found.offset + member.offset
        for index in map(int, re.findall(r"\d+", match[2])):
            if not issubclass(ctype, Array) or (ctype._length_ and index >= ctype._length_):
                raise KeyError(f"{aggregate.__name__}.{path}")
            ctype = ctype._type_
            offset += index * sizeof(ctype)
        found = Field(step, ctype, offset, member.bits)
    return found


def offset_of(aggregate: Aggregate, path: str) -> int:
    """C's ``offsetof``: byte offset of the member that ``path`` names."""
    return locate(aggregate, path).offset
