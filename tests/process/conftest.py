from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.harness import Broker
from tests.support.paths import ROOT, missing

FAKE = "tests.process.fakecore"


@pytest.fixture(scope="session", autouse=True)
def _able() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("root's rights, or no /dev/fuse")


@pytest.fixture(scope="module", params=["passthrough", "cached", "seccomp"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker over the fake core, with run pages by passthrough, through the page cache, and without FUSE."""
    process = Broker(tmp_path_factory.mktemp("broker"), FAKE, request.param)
    yield process
    process.stop()


@pytest.fixture(scope="module", params=["passthrough", "cached", "seccomp"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker over the real core."""
    subprocess.run([sys.executable, "-m", "kvmfs", "warm"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    process = Broker(tmp_path_factory.mktemp("broker"), "real", request.param)
    yield process
    process.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Makes brokers for one test alone: `own_broker(core, pages)`."""
    made: list[Broker] = []

    def make(core: str = FAKE, pages: str = "passthrough") -> Broker:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Broker(directory, core, pages))
        return made[-1]

    yield make
    for process in made:
        process.stop()
