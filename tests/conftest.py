"""Fixtures for every suite: the kernel's headers and selftests, a command under kvmfs, and a check for leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import paths, processes


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    processes.become_subreaper()


@pytest.fixture(scope="session")
def linux_tree() -> Path:
    """A tree of Linux 6.12 (the parts that its KVM selftests are built from)."""
    return paths.linux_tree()


@pytest.fixture(scope="session")
def linux_headers(linux_tree: Path) -> Path:
    """Linux 6.12's exported headers, an include directory: linux/kvm.h, asm/kvm.h, linux/fuse.h."""
    return linux_tree / "usr" / "include"


@pytest.fixture(scope="session")
def selftests_dir() -> Path:
    """The kernel's KVM selftests, built: guest_memfd_test, x86_64/cpuid_test, ..."""
    return paths.selftests()


@pytest.fixture(scope="session")
def kvmfs_run() -> Callable[..., processes.Finished]:
    """`kvmfs_run(*argv, timeout=60, options=(), env=None)` runs a command under `kvmfs run`."""
    return processes.run_under_kvmfs


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail if the test leaves a process, a mount of ours or a file descriptor behind."""
    children, mounts, fds = processes.descendants(), processes.kvmfs_mounts(), processes.open_fds()
    yield
    left = processes.survivors(children, 10)
    names = [processes.describe(pid) for pid in sorted(left)]
    processes.kill(left)
    problems = [f"process {name}" for name in names]
    problems += [f"mount {line}" for line in sorted(processes.kvmfs_mounts() - mounts)]
    problems += [f"fd {fd} -> {target}" for fd, target in processes.open_fds().items() if fd not in fds]
    if problems:
        pytest.fail("left behind:\n" + "\n".join(problems), pytrace=False)
