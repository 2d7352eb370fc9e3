"""A pytest plugin: VMMs run with a /dev/kvm of their own, and what they did can be asserted.

    def test_boots(kvmfs_run):
        result = kvmfs_run("./my-vmm", "--tiny")
        assert result.status == 0
        assert [fault["gpa"] for fault in result.faults] == [0x402000]

    @pytest.mark.kvmfs_fail("KVM_CREATE_VCPU=ENOMEM@2")
    def test_second_vcpu_cannot_be_had(kvmfs_run): ...

    @pytest.mark.kvmfs_inject("memory-fault:gpa=0x402000,times=2")
    def test_faults_for_nothing(kvmfs_run): ...

    def test_same_as_ever(kvmfs_run, kvmfs_golden):
        kvmfs_golden(kvmfs_run("./my-vmm"))          # pytest --kvmfs-update records

Nothing of kvmfs is imported until a test asks for it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from kvmfs.testing.result import Result

_KVMFS: Final = (sys.executable, "-m", "kvmfs")
_READY: Final = 120.0
"""Seconds until a device answers: the first one may have to wait for the compiler."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kvmfs")
    group.addoption("--kvmfs-update", action="store_true", help="record golden traces instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kvmfs_fail(*rules): ioctls that fail under kvmfs_run, each NAME=ERRNO[@N[+]] (kvmfs run --help)"
    )
    config.addinivalue_line(
        "markers",
        "kvmfs_inject(*rules): memory accesses and ioctls that go wrong under kvmfs_run, each a line such as"
        " memory-fault:gpa=0x402000,times=2 or the name of a TOML file beside the test (docs/fault-injection.md)",
    )


@pytest.fixture
def kvmfs_run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Result]:
    """Runs a command with a /dev/kvm of its own, and traces it.

    `kvmfs_run(*argv, timeout=60, env=None, cwd=None, input="", options=())` gives a kvmfs.testing.result.Result.
    `env` is added to the environment; `options` are more ones of `kvmfs trace`. TimeoutExpired; and the test fails if
    there can be no device here, with the reason.
    """
    from kvmfs.testing.result import Result

    rules = [*_rules(request, "kvmfs_fail", "--fail"), *_rules(request, "kvmfs_inject", "--inject")]

    def run(
        *argv: str | os.PathLike[str],
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        input: str = "",
        options: tuple[str, ...] = (),
    ) -> Result:
        from kvmfs.inspect.trace import golden

        words = tuple(os.fspath(word) for word in argv)
        number = 0
        while (trace := tmp_path / f"kvmfs-{number}.json").exists():
            number += 1
        started = time.monotonic()
        done = subprocess.run(
            [*_KVMFS, "trace", "--json", "-o", str(trace), *rules, *options, "--", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            input=input,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            check=False,
        )
        seconds = time.monotonic() - started
        if done.returncode == 125:
            pytest.fail(f"no device: {done.stderr.strip()}", pytrace=False)
        with trace.open(encoding="utf-8") as lines:
            events = golden.load(lines)
        return Result(words, done.returncode, done.stdout, done.stderr, seconds, events)

    return run


def _rules(request: pytest.FixtureRequest, mark: str, option: str) -> list[str]:
    """Command line options for the rules of a test's marks."""
    from kvmfs.kvm.inject.rules import load_all

    # The mark that is nearest to the test comes first; rules are tried in the order in which they were written.
    words = [word for found in reversed(list(request.node.iter_markers(mark))) for word in found.args]
    words = [str(request.path.parent / word) if word.endswith(".toml") else word for word in words]
    try:
        load_all(words)
    except (ValueError, OSError) as error:
        pytest.fail(f"{mark}: {error}", pytrace=False)
    return [option_or_word for word in words for option_or_word in (option, word)]


@pytest.fixture
def kvmfs_golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares a result's exits with the recorded ones, and fails the test at the first difference.

    `kvmfs_golden(result, name=None, ioctls=False)`: `golden/NAME.json` beside the test file; by default named after the
    test. With --kvmfs-update it is written instead. `ioctls`: compare these, too.
    """
    directory = request.path.parent / "golden"

    def check(result: Result, name: str | None = None, ioctls: bool = False) -> None:
        path = directory / f"{name or request.node.name}.json"
        if request.config.getoption("--kvmfs-update"):
            result.save(path, exits_only=not ioctls)
            return
        if not path.exists():
            pytest.fail(f"there is no {path}; pytest --kvmfs-update records it", pytrace=False)
        if difference := result.difference(path, exits_only=not ioctls):
            pytest.fail(f"not as in {path.name}\n{difference}", pytrace=False)

    return check


@pytest.fixture
def kvmfs_device(tmp_path: Path) -> Iterator[Path]:
    """The path of a device for this test alone, for code in the test's own process: needs root.

    A VMM under `kvmfs_run` needs no root.
    """
    if os.geteuid() != 0:
        pytest.skip("a device with a name needs root; kvmfs_run does not")
    path = tmp_path / "kvm"
    command = [*_KVMFS, "serve", "--foreground", "--transport", "fuse", "--device", str(path), "--mode", "0666"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stderr
        try:
            _wait_for_device(server)
            yield path
        finally:
            server.terminate()
            server.stderr.read()


def _wait_for_device(server: subprocess.Popen[str]) -> None:
    assert server.stderr
    said = []
    deadline = time.monotonic() + _READY
    while select.select([server.stderr], [], [], max(0.0, deadline - time.monotonic()))[0]:
        line = server.stderr.readline()
        said.append(line)
        if "serving" in line:
            return
        if not line:
            break
    pytest.fail(f"no device: {''.join(said).strip() or 'it does not answer'}", pytrace=False)
