"""docs/abi.md says what the code offers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.support import paths


@pytest.mark.skipif(
    importlib.util.find_spec("kvmfs.kvm") is None or importlib.util.find_spec("kvmfs.kvm.offered") is None,
    reason="no kvmfs.kvm.offered",
)
def test_abi_table_is_current() -> None:
    checked = subprocess.run(
        [sys.executable, paths.ROOT / "scripts" / "gen-abi-table", "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, f"run scripts/gen-abi-table\n{checked.stdout}{checked.stderr}"
