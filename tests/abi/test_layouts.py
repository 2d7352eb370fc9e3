"""Every struct has the size, the offsets, the widths and the signs that a C compiler gives it."""

from __future__ import annotations

from ctypes import sizeof

import pytest

from kvmfs.abi import layout
from tests.abi import conftest as c
from tests.abi import tables


@pytest.mark.parametrize("c_name", sorted(tables.STRUCTS))
def test_struct(c_name: str, exported: dict[str, int]) -> None:
    struct = tables.STRUCTS[c_name]
    ours: dict[str, int] = {f"sizeof({c_name})": sizeof(struct)}
    for member in tables.members(struct):
        if member.bits:
            instance = struct()
            _set_bits(instance, member.path, (1 << member.bits) - 1)
            ours[c.bits_of(c_name, member.path, member.offset)] = bytes(instance)[member.offset]
            continue
        ours[c.offset_of(c_name, member.path)] = layout.offset_of(struct, member.path)
        if member.size is not None:
            ours[c.size_of(c_name, member.path)] = member.size
        if member.signed is not None:
            ours[c.is_signed(c_name, member.path)] = member.signed
    assert ours == {expression: exported[expression] for expression in ours}


def _set_bits(instance: object, path: str, value: int) -> None:
    *owners, name = path.replace("[0]", ".[0]").split(".")
    for owner in owners:
        instance = instance[0] if owner == "[0]" else getattr(instance, owner)  # type: ignore[index]
    setattr(instance, name, value)


def test_offsets_of_array_elements_and_unnamed_members() -> None:
    from kvmfs.abi import msrs, run

    assert layout.offset_of(run.Run, "immediate_exit") == 1
    assert layout.offset_of(run.Run, "io.data_offset") == layout.offset_of(run.Run, "io") + 8
    assert layout.offset_of(run.Run, "hypercall.longmode") == layout.offset_of(run.Run, "hypercall.flags")
    second = layout.locate(msrs.MsrFilter, "ranges[1].bitmap")
    assert (second.offset, second.size) == (8 + 24 + 16, 8)


@pytest.mark.parametrize(
    "path", ["", "nothing", "ranges[16].bitmap", "flags[0]", "flags.x", "ranges[0", "ranges.flags"]
)
def test_wrong_paths(path: str) -> None:
    from kvmfs.abi import msrs

    with pytest.raises(KeyError):
        layout.offset_of(msrs.MsrFilter, path)
