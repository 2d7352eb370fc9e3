"""The tables of kvmfs.abi, flattened for comparison with C."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from ctypes import Array
from dataclasses import dataclass
from types import ModuleType

import kvmfs.abi
from kvmfs.abi import layout

MODULES = {
    info.name: importlib.import_module(f"kvmfs.abi.{info.name}") for info in pkgutil.iter_modules(kvmfs.abi.__path__)
}

# Modules whose constants the kernel keeps to itself; all others are in its exported headers.
INTERNAL = {"apic", "limits", "msr_bits", "msr_index", "hyperv_msrs"}


def _constants(module: ModuleType) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) is int and not name.startswith("_") and (name.isupper() or name.startswith("MSR_"))
    }


EXPORTED_CONSTANTS = {
    name: value
    for module in MODULES.keys() - INTERNAL - {"layout"}
    for name, value in _constants(MODULES[module]).items()
}
INTERNAL_CONSTANTS = {name: value for module in INTERNAL for name, value in _constants(MODULES[module]).items()}

STRUCTS = {
    value.c_name: value
    for module in MODULES.values()
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, layout.Struct) and value.c_name
}


@dataclass(frozen=True)
class Member:
    """A member at any depth, by its C designator. ``size`` is None for a flexible array, in bytes for others."""

    path: str
    offset: int
    size: int | None
    signed: bool | None
    """None for what is not an integer."""
    bits: int


def members(aggregate: layout.Aggregate, prefix: str = "") -> Iterator[Member]:
    """All members of a struct, and theirs; of arrays the first element's."""
    for field in layout.fields(aggregate):
        path = prefix + field.name
        element, size, dimensions = field.type, field.size, ""
        while issubclass(element, Array):
            element, dimensions = element._type_, dimensions + "[0]"
        integer = not dimensions and not issubclass(element, (layout.Struct, layout.Union))
        flexible = bool(dimensions) and size == 0
        yield Member(
            path,
            field.offset,
            None if flexible else size,
            element(-1).value < 0 if integer else None,
            field.bits,
        )
        if issubclass(element, (layout.Struct, layout.Union)):
            for inner in members(element, f"{path}{dimensions}."):
                yield Member(inner.path, field.offset + inner.offset, inner.size, inner.signed, inner.bits)
