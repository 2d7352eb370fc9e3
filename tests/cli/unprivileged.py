"""Run a program as nobody, with what a desktop gives to nobody: a /dev/fuse for all, and a Python that can be read.

Usage: python -m tests.cli.unprivileged PROGRAM ARGS...   (as root; in a mount namespace of its own)
"""

import os
import stat
import sys
from pathlib import Path

from kvmfs.wire import mount
from tests.support.paths import ROOT

NOBODY = 65534


def everybodys_fuse() -> None:
    """A node for all over /dev/fuse, which is root's on some systems. A file in a detached mount cannot be bound before
    Linux 6.15, so it is attached meanwhile."""
    nodes, place = mount.tmpfs(), Path("/mnt")
    mount.attach(nodes, place)
    os.mknod(place / "fuse", stat.S_IFCHR | 0o600, Path("/dev/fuse").stat().st_rdev)
    (place / "fuse").chmod(0o666)
    mount.attach(mount.tree(place / "fuse"), "/dev/fuse")
    mount.unmount(place)


def open_up(path: Path) -> None:
    """Make ``path`` reachable for everybody where a directory above it is not."""
    for directory in reversed(path.parents):
        if not directory.stat().st_mode & stat.S_IXOTH:
            wanted = mount.tree(path)
            mount.attach(mount.tmpfs(), directory)
            path.mkdir(parents=True)
            mount.attach(wanted, path)


def main() -> None:
    mount.private_namespace()
    everybodys_fuse()
    # The outermost first: an environment in the checkout comes along with it.
    opened: list[Path] = []
    for path in sorted({Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}):
        if not any(path.is_relative_to(above) for above in opened):
            open_up(path)
            opened.append(path)
    os.chdir(ROOT)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ["HOME"] = "/"
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
