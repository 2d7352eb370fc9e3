"""The handlers as plain Python (NUMBA_DISABLE_JIT=1) pass the same comparisons, on fewer cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kvmfs.jit.raw import PLAIN

HERE = Path(__file__).parent
SUITES = ("test_integer.py", "test_sse.py", "test_branch.py", "test_string.py", "test_float.py", "test_vex_handlers.py")


@pytest.mark.skipif(PLAIN, reason="this run is plain already")
def test_without_jit() -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / suite) for suite in SUITES)]
    run = subprocess.run(
        argv, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, cwd=HERE.parent.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
