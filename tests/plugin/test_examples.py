"""The example projects under docs, as who copies them finds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin.conftest import PLUGIN
from tests.support.paths import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.timeout(600)  # each of them starts kvmfs a few times
@pytest.mark.parametrize("name", ["c", "python"])
def test_a_copied_project_passes_its_tests(name: str, tmp_path: Path) -> None:
    project = tmp_path / name
    shutil.copytree(EXAMPLES / name, project, ignore=shutil.ignore_patterns("__pycache__", "conversions"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *PLUGIN, "--color=no", "-p", "no:cacheprovider", "-rA"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if os.geteuid() == 0:
        assert "skipped" not in done.stdout
