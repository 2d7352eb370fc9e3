"""Where `scripts/test` put what the tests need from outside the repository.

KVMFS_LINUX      a tree of Linux 6.12 with its exported headers in usr/include
KVMFS_SELFTESTS  the kernel's KVM selftests, built
KVMFS_VM         a 6.12 kernel with its modules, for the virtual machine that has CUSE (see tests/cuse/vm)
KVMFS_OLDER_VM   a 6.1 kernel with its modules, for guests

Unset, the newest finished one in the cache is taken.  Missing is a skip for a developer and a failure in CI.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvmfs"


def missing(what: str) -> NoReturn:
    """Skip the test because `what` is not there; in CI everything has to be there."""
    reason = f"{what}; scripts/test provides it"
    if IN_CI:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _newest(kind: str) -> Path | None:
    """The finished cache entry `kind`-VERSION with the highest version."""

    def version(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.name)]

    finished = [stamp.parent for stamp in cache_dir().glob(f"{kind}-*/complete")]
    return max(finished, key=version, default=None)


def _located(variable: str, kind: str, inside: str, probe: str, what: str) -> Path:
    if given := os.environ.get(variable):
        path = Path(given)
    elif entry := _newest(kind):
        path = entry / inside
    else:
        missing(f"no {what} in {cache_dir()}")
    if not (path / probe).exists():
        missing(f"no {what} in {path}")
    return path


def linux_tree() -> Path:
    return _located("KVMFS_LINUX", "linux", "tree", "usr/include/linux/kvm.h", "Linux headers")


def selftests() -> Path:
    return _located("KVMFS_SELFTESTS", "linux", "selftests", "guest_memfd_test", "kernel selftests")


def vm_kernel() -> Path:
    return _located("KVMFS_VM", "kernel", ".", "vmlinux", "kernel for the virtual machine")


def older_kernel() -> Path:
    return _located("KVMFS_OLDER_VM", "older-kernel", ".", "vmlinuz", "kernel of Debian 12 for guests")
