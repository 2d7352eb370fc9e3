import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmfs.cli.caps import Capability, effective
from tests.support import processes
from tests.support.paths import ROOT

PYTHON = sys.executable
TOY = (PYTHON, "-m", "tests.cli.toy")
UNPRIVILEGED = (PYTHON, "-m", "tests.cli.unprivileged")
TIMEOUT = 30


@pytest.fixture(autouse=True)
def _clean(no_leaks: None) -> None:
    """Every test here leaves no process, no mount and no descriptor behind."""


@pytest.fixture
def root() -> None:
    if Capability.SYS_ADMIN not in effective() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs root and /dev/fuse")


@pytest.fixture(params=["root", "nobody"])
def toy(request: pytest.FixtureRequest, root: None) -> tuple[str, ...]:
    """Words before "run": kvmfs with the toy server, as root, and in a user namespace."""
    return TOY if request.param == "root" else (*UNPRIVILEGED, *TOY)


def finish(argv: tuple[str | Path, ...], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end. What it prints goes to pipes: a process that it leaves behind would show as a time-out."""
    return subprocess.run(
        [str(word) for word in argv],
        cwd=ROOT,
        stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        **options,
    )


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a command with pipes; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def go(*argv: str | Path, **options: Any) -> "subprocess.Popen[str]":
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, **options}
        started.append(subprocess.Popen([str(word) for word in argv], **options))
        return started[-1]

    yield go
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def gone(pids: set[int]) -> bool:
    """Whether all of these descendants end."""
    return not processes.survivors(processes.descendants() - pids, TIMEOUT)
