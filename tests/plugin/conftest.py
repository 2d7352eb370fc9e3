from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Final

import pytest
from kvmfs.jit import cache

from tests.support.paths import ROOT

PLUGIN: Final = () if any(point.name == "pytest-kvmfs" for point in entry_points(group="pytest11")) else (
    "-p", "kvmfs.testing.plugin",
)  # fmt: skip
"""What pytest has to be told where kvmfs is not installed: a checkout."""


CACHE: Final = str(cache.base_dir().parent)


@pytest.fixture(autouse=True)
def _finds_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMFS_CACHE_DIR", CACHE)  # pytester's tests have a home of their own
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
