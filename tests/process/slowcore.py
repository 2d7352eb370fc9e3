"""The fake core, after a wait as for a compilation: until somebody writes into the FIFO that KVMFS_TEST_GATE names."""

import os
from pathlib import Path

Path(os.environ["KVMFS_TEST_GATE"]).read_text()

from tests.process.fakecore import create_vm, preload  # noqa: E402

__all__ = ["create_vm", "preload"]
