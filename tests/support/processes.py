"""Run a command under kvmfs, and account for every process it leaves behind.

The test process makes itself a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): whatever a command under test
starts and abandons, daemons included, becomes our child and so stays visible and reapable.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants() -> set[int]:
    """Pids of all living processes below this one; dead orphans are reaped on the way."""
    children: dict[int, list[int]] = {}
    states: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # comm may hold blanks and brackets: the fields start after the last ')'
                state, ppid, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(ppid), []).append(int(entry.name))
                states[int(entry.name)] = state
    alive: set[int] = set()
    todo = [(os.getpid(), pid) for pid in children.get(os.getpid(), [])]
    while todo:
        parent, pid = todo.pop()
        if states[pid] in "ZX":
            if parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            continue
        alive.add(pid)
        todo += [(pid, child) for child in children.get(pid, [])]
    return alive


def survivors(before: Iterable[int], seconds: float) -> set[int]:
    """Descendants that were not there `before` and do not end within `seconds`."""
    deadline = time.monotonic() + seconds
    known = set(before)
    while left := descendants() - known:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return left
        try:
            fd = os.pidfd_open(next(iter(left)))
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(remaining * 1000)
        finally:
            os.close(fd)
    return set()


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def describe(pid: int) -> str:
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
        return f"{pid} {argv or f'[{comm}]'}"
    return f"{pid} (gone)"


def kvmfs_mounts() -> set[str]:
    """Mounts of ours in this mount namespace, as lines of mountinfo."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line for line in lines if " - fuse" in line and "kvmfs" in line.partition(" - ")[2]}


def open_fds() -> dict[int, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found


@dataclass(frozen=True)
class Finished:
    argv: tuple[str, ...]
    status: int | None  # as a shell sees it: 128 + n for signal n; None: it ran out of time
    output: str  # stdout and stderr together
    seconds: float

    def __str__(self) -> str:
        ended = "timed out" if self.status is None else f"exit status {self.status}"
        return f"$ {' '.join(self.argv)}\n{self.output.rstrip()}\n({ended} after {self.seconds:.1f} s)"


def run(argv: Iterable[str | Path], *, timeout: float, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end, or kill it and all it started when `timeout` seconds are over."""
    words = tuple(str(word) for word in argv)
    before = descendants()
    started = time.monotonic()
    # A file, not a pipe: a process that outlives the command must not hold us up.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()
            process.wait()
            kill(descendants() - before)
            survivors(before, 5)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Finished(words, 128 - status if status is not None and status < 0 else status, text, seconds)


def run_under_kvmfs(
    *argv: str | Path, timeout: float = 60, options: Iterable[str] = (), env: Mapping[str, str] | None = None
) -> Finished:
    """`kvmfs run OPTIONS -- ARGV`."""
    return run([sys.executable, "-m", "kvmfs", "run", *options, "--", *argv], timeout=timeout, env=env)
