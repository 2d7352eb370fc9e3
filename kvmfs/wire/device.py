"""A device node that clients open, and the connection behind it.

- A FUSE device is a mount whose root is a regular file, put over a path. The path must exist to be mounted on; where it
  does not, an empty file is made and taken away again. Its mode, owner and group are what the server answers to GETATTR
  (``Connection.attributes``); default_permissions makes the kernel check them.
- A CUSE device has a node of its own in devtmpfs while it lives; where /dev is no devtmpfs one is made by its number.
  Where the wanted name is there already (a static node, made for a module that is not loaded) devtmpfs would leave
  that one alone: then the device gets another name, in a directory for root alone, and its node is put over the path.

A server that was killed leaves its mount behind: open(2) says ENOTCONN (FUSE) or ENXIO (CUSE), and the next server
clears it away.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvmfs.wire import fuse_h, mount
from kvmfs.wire.connection import Connection, Kind
from kvmfs.wire.reply import Attributes

_SYSFS: Final = Path("/sys/class/cuse")
_PLACEHOLDER: Final = 0o600
"""Mode of the empty file that is mounted on where there is nothing."""
_DIRECTORY: Final = "kvmfs"
"""Of nodes in /dev that are put over others."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Who may open the device. ``mode``: permission bits."""

    mode: int = 0o666
    uid: int = 0
    gid: int = 0


class Device:
    """A node in the file system with a connection that has shaken hands. This process owns both until it gives up one.

    A second process that was forked since serves the connection and calls ``leave_node``; the first calls
    ``leave_connection``.
    """

    def __init__(self, connection: Connection, undo: ExitStack) -> None:
        """:param undo: takes the node away, then closes the connection."""
        self.connection = connection
        self._undo = undo

    def remove(self) -> None:
        """Take the node away and close the connection, which ends it if no other process has it."""
        self._undo.close()

    def leave_connection(self) -> None:
        """Another process serves it."""
        self.connection.close()

    def leave_node(self) -> None:
        """Another process takes the node away."""
        self._undo.pop_all()


def fuse_device(path: Path, permissions: Permissions, *, replace: bool = False) -> Device:
    """A FUSE file mounted over ``path``.

    :param replace: hide what is there already.
    :raises FileExistsError: something is there.
    """
    connection = Connection.open(Kind.FUSE)
    with ExitStack() as undo:
        undo.callback(connection.close)
        mode = stat.S_IFREG | permissions.mode
        everybody = permissions.mode & 0o666 == 0o666
        connection.attributes = Attributes(fuse_h.ROOT_ID, mode, permissions.uid, permissions.gid)
        with _closing(mount.fuse(connection.fileno(), root_mode=mode, default_permissions=not everybody)) as node:
            connection.handshake()
            undo.enter_context(_cover(path, node, replace))
        return Device(connection, undo.pop_all())


def cuse_device(path: Path, permissions: Permissions, *, name: str | None = None, replace: bool = False) -> Device:
    """A CUSE character device.

    :param name: below /dev; default: that of ``path`` if it is free. A "/" in it makes a directory for root alone.
    :param replace: hide what is at ``path`` already.
    :raises FileExistsError: name or path are taken.
    """
    path = path.parent.resolve() / path.name
    taken = os.path.lexists(path)
    if taken and not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if name is None:
        name = path.name if path.parent == Path("/dev") and not taken else f"{_DIRECTORY}/{path.name}"
    connection = Connection.open(Kind.CUSE)
    with ExitStack() as undo:
        undo.callback(connection.close)
        connection.handshake_cuse(name.replace("/", "!"))
        node = Path("/dev") / name
        if not node.exists():
            node.parent.mkdir(exist_ok=True)
            os.mknod(node, stat.S_IFCHR | 0o600, cuse_number(name))
            undo.callback(node.unlink, missing_ok=True)
        if node.parent != Path("/dev"):
            node.parent.chmod(0o700)
        os.chown(node, permissions.uid, permissions.gid)
        node.chmod(permissions.mode)
        if node != path:
            with _closing(mount.tree(node, recursive=False)) as copy:
                undo.enter_context(_cover(path, copy, replace))
        return Device(connection, undo.pop_all())


def cuse_number(name: str) -> int:
    """Device number of a CUSE device, as the kernel has it."""
    major, _, minor = (_SYSFS / name.replace("/", "!") / "dev").read_text().partition(":")
    return os.makedev(int(major), int(minor))


def clear_stale(path: Path) -> bool:
    """Unmount from ``path`` what a server left that was killed. :returns: whether there was something.

    :raises FileExistsError: a living server of ours has the path.
    """
    found = False
    while _ours(path):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENXIO, errno.ENODEV):
                raise
        else:
            raise FileExistsError(errno.EEXIST, "another kvmfs serves it", str(path))
        mount.unmount(path)
        found = True
    if found and path.stat().st_mode == stat.S_IFREG | _PLACEHOLDER and path.stat().st_size == 0:
        path.unlink()
    return found


def _ours(path: Path) -> bool:
    """The topmost mount at ``path`` is a FUSE mount or a CUSE node of ours."""
    ours = False
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, place = (
            re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), part) for part in before.split()[3:5]
        )
        if place == str(path):
            ours = after.split()[0] == "fuse.kvmfs" or root.startswith(f"/{_DIRECTORY}/")
    return ours


def _cover(path: Path, node: int, replace: bool) -> ExitStack:
    """Put the mount ``node`` over ``path``; the result undoes it."""
    path = path.resolve()
    with ExitStack() as undo:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PLACEHOLDER))
            undo.callback(path.unlink, missing_ok=True)
        except FileExistsError:
            if not replace:
                raise
        mount.attach(node, path)
        undo.callback(mount.unmount, path)
        return undo.pop_all()


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
