"""Mounts without paths: FUSE superblocks, bind mounts, small tmpfs trees, private mount namespaces.

Facts this relies on (fs/namespace.c, fs/fuse/inode.c, mount_namespaces(7), fsopen(2), open_tree(2)):

- fsopen/fsconfig/fsmount give a mount as a file descriptor. Nobody sees it until move_mount puts it somewhere; files in
  it are opened relative to the descriptor; when the descriptor and the last file in it are closed it is gone.
- The root of a FUSE mount may be a regular file (``rootmode``). Such a mount goes over a file or a device node.
- A mount is made by who has CAP_SYS_ADMIN in the user namespace that owns the caller's mount namespace. /dev/fuse must
  have been opened in that user namespace. Where that is not the initial one, processes outside of it cannot use the
  mount even with allow_other, and passthrough is refused.
- In such a mount a node whose owner or group has no mapping there cannot be opened for writing (EACCES), and the root
  node is root's until its attributes are first asked for.
- The tree of a less privileged mount namespace cannot be taken apart: what a bind mount of a directory would reveal
  must come along, so bind recursively.
- A mount namespace and all that is mounted only there are gone with its last process and descriptor.
"""

import ctypes
import os
import stat
import struct
from enum import IntEnum
from pathlib import Path
from typing import Final

from kvmfs.syscalls import Sys, syscall

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MS_REC: Final = 0x4000
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
CLONE_NEWNS: Final = 0x20000
CLONE_NEWUSER: Final = 0x10000000
AT_STATX_DONT_SYNC: Final = 0x4000
_STX_DEV_MINOR: Final = 140  # offsetof(struct statx, stx_dev_minor)


class _FsConfig(IntEnum):
    """enum fsconfig_command of linux/mount.h."""

    SET_FLAG = 0
    SET_STRING = 1
    CMD_CREATE = 6


def new_filesystem(kind: str, attributes: int = 0, **options: str | int | bool) -> int:
    """A filesystem of its own, detached: the mount's descriptor.

    :param attributes: MOUNT_ATTR_*.
    :param options: as in mount(8); True for those without a value.
    :raises OSError: with what the kernel logged about it.
    """
    context = syscall(Sys.FSOPEN, kind, FSOPEN_CLOEXEC)
    try:
        try:
            for name, value in options.items():
                if value is True:
                    syscall(Sys.FSCONFIG, context, _FsConfig.SET_FLAG, name, None, 0)
                elif value is not False:
                    syscall(Sys.FSCONFIG, context, _FsConfig.SET_STRING, name, str(value), 0)
            syscall(Sys.FSCONFIG, context, _FsConfig.CMD_CREATE, None, None, 0)
            return syscall(Sys.FSMOUNT, context, FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise OSError(error.errno, f"{kind}: {error.strerror}{_log(context)}") from None
    finally:
        os.close(context)


def _log(context: int) -> str:
    """What the kernel has to say about a failed fsconfig: each read of the context is one message."""
    try:
        return f" ({os.read(context, 1024).decode(errors='replace').strip()})"
    except OSError:
        return ""


def fuse(
    device_fd: int,
    *,
    root_mode: int = stat.S_IFDIR | 0o755,
    uid: int | None = None,
    gid: int | None = None,
    allow_other: bool = True,
    default_permissions: bool = False,
    subtype: str = "kvmfs",
) -> int:
    """Mount the connection of a fresh /dev/fuse descriptor, detached: the mount's descriptor.

    The kernel queues FUSE_INIT at once; until it is answered, all that use the mount wait.

    :param root_mode: type and first permissions of the root node; a regular file can be put over /dev/kvm.
    :param uid: the user who may use the mount if not ``allow_other``; default: the caller.
    :param allow_other: everybody of this user namespace may.
    :param default_permissions: the kernel checks mode, owner and group as the server reports them.
    """
    return new_filesystem(
        "fuse",
        MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        source=subtype,
        subtype=subtype,
        fd=device_fd,
        rootmode=f"{root_mode:o}",
        user_id=os.geteuid() if uid is None else uid,
        group_id=os.getegid() if gid is None else gid,
        allow_other=allow_other,
        default_permissions=default_permissions,
    )


def tmpfs(mode: int = 0o755) -> int:
    """An empty tmpfs, detached."""
    return new_filesystem("tmpfs", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, source="kvmfs", mode=f"{mode:o}")


def tree(path: str | Path, *, dir_fd: int = AT_FDCWD, recursive: bool = True) -> int:
    """A detached copy of what is mounted at and below ``path`` (the source of a bind mount)."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return syscall(Sys.OPEN_TREE, dir_fd, str(path), flags, path=str(path))


def attach(mount_fd: int, path: str | Path, *, dir_fd: int = AT_FDCWD) -> None:
    """Put a detached mount over ``path``: a directory over a directory, a file over anything else."""
    syscall(Sys.MOVE_MOUNT, mount_fd, "", dir_fd, str(path), MOVE_MOUNT_F_EMPTY_PATH, path=str(path))


def unmount(path: str | Path) -> None:
    """Take the topmost mount away from ``path``; files open in it stay usable."""
    syscall(Sys.UMOUNT2, str(path), MNT_DETACH, path=str(path))


def private_namespace(*, user: bool = False) -> None:
    """Give this process, which must have one thread, a mount namespace of its own.

    Mounts that the host makes later still appear in it; nothing goes the other way.

    :param user: and a user namespace, where only the caller's own user and group are mapped, to themselves. The caller
        has all capabilities in it until it executes a program, unless it is root there.
    """
    uid, gid = os.geteuid(), os.getegid()
    syscall(Sys.UNSHARE, CLONE_NEWNS | (CLONE_NEWUSER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    syscall(Sys.MOUNT, None, "/", None, MS_REC | MS_SLAVE, None)


def abort_fuse(mount_fd: int) -> None:
    """Abort the connection of a FUSE mount: all who wait get ECONNABORTED, and the server reads the end.

    :raises OSError: EPERM: needs CAP_SYS_ADMIN in the initial user namespace.
    """
    # fstat would ask the server, which may be the very one that hangs.
    answer = ctypes.create_string_buffer(256)
    syscall(Sys.STATX, mount_fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, ctypes.byref(answer))
    number = int.from_bytes(answer.raw[_STX_DEV_MINOR : _STX_DEV_MINOR + 4], "little")
    control = new_filesystem("fusectl")
    try:
        switch = os.open(f"{number}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        try:
            os.write(switch, b"1")
        finally:
            os.close(switch)
    finally:
        os.close(control)


def make_read_only(mount_fd: int) -> None:
    """Nothing can be written through this mount any more."""
    attributes = struct.pack("<QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)  # struct mount_attr: set, clear, propagation, userns
    syscall(Sys.MOUNT_SETATTR, mount_fd, "", AT_EMPTY_PATH, attributes, len(attributes))
