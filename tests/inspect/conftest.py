"""A VM under `kvmfs run` that a test looks into: a client that does what it is told, and is there until it is told to
end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmfs.inspect import finder
from kvmfs.inspect.finder import Listed
from tests.support.paths import ROOT


class Client:
    """A VMM (vmm.c). A word in, a word out."""

    def __init__(self, program: Path, options: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvmfs", *options, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = 0

    def hear(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            pytest.fail(f"the client ended\n{self.process.stderr.read()}", pytrace=False)
        return line.strip()

    def tell(self, word: str) -> str:
        """Its answer."""
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.hear()

    @property
    def vm(self) -> Listed:
        (vm,) = (vm for vm in finder.vms() if vm.pid == self.pid)
        return vm

    def end(self) -> str:
        """End it: what it and kvmfs wrote to stderr."""
        assert self.process.stdin
        assert self.process.stderr
        if not self.process.stdin.closed:
            self.process.stdin.close()
        errors = self.process.stderr.read()
        self.process.wait()
        return errors

    def close(self) -> None:
        """The launcher goes as it should: it takes its broker along."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()


@pytest.fixture(scope="session")
def vmm(tmp_path_factory: pytest.TempPathFactory, linux_headers: Path) -> Path:
    program = tmp_path_factory.mktemp("vmm") / "vmm"
    source = Path(__file__).with_name("vmm.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-isystem", linux_headers, "-o", program, source], check=True)
    return program


@contextmanager
def _starter(vmm: Path) -> Iterator[Callable[..., Client]]:
    started: list[Client] = []

    def go(*options: str) -> Client:
        client = Client(vmm, options or ("run", "--"))
        started.append(client)
        client.pid = int(client.hear())
        return client

    try:
        yield go
    finally:
        for client in started:
            client.close()


@pytest.fixture
def start(vmm: Path) -> Iterator[Callable[..., Client]]:
    """Starts clients: `start(*options)`, by default under `kvmfs run`."""
    with _starter(vmm) as go:
        yield go


@pytest.fixture(scope="module")
def client(vmm: Path) -> Iterator[Client]:
    """One that is shared, and only ever told "out"."""
    with _starter(vmm) as go:
        yield go()


@pytest.fixture
def own(start: Callable[..., Client]) -> Client:
    """One for a test alone."""
    return start()
