"""The client programs under kvmfs say what they said on Linux 6.12's KVM (scripts/compare-kvm --record)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import paths

from . import compare


@pytest.fixture(scope="module")
def transcripts(tmp_path_factory: pytest.TempPathFactory, linux_headers: Path) -> dict[str, list[str]]:
    if shutil.which("gcc") is None:
        paths.missing("no gcc")
    directory = tmp_path_factory.mktemp("programs")
    compare.build(directory, linux_headers, compare.PROGRAMS)
    return compare.on_kvmfs(directory, compare.PROGRAMS)


@pytest.mark.parametrize("program", compare.PROGRAMS)
def test_as_kvm(transcripts: dict[str, list[str]], program: str) -> None:
    difference = compare.difference(compare.recorded([program])[program], transcripts.get(program, []))
    assert difference is None, f"line {difference.line + 1}, in {difference.section}: {difference}"


def test_a_difference_is_found() -> None:
    found = compare.difference(["-- one", "a", "-- two", "b", "c"], ["-- one", "a", "-- two", "B"])
    assert found == compare.Difference(3, "-- two", "b", "B", 2)
    assert compare.difference(["a"], ["a"]) is None
