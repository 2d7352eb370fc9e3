"""Replies and notifications -> bytes for the kernel.

One function per message, each returning what is to be written in a single write(2). ``unique`` is that of the request.
Node attributes are ``Attributes``; times are left 0 and nothing is ever stale: what is cached stays valid for a day.
"""

import os
import stat
from collections.abc import Sequence
from ctypes import sizeof
from dataclasses import dataclass, field

from kvmfs.wire import fuse_h
from kvmfs.wire.fuse_h import InitFlag, IoctlFlag, Notify, OpenFlag

VALID = 86400
"""Seconds for which the kernel may keep names and attributes."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows of a node. ``mode`` has the file type. Default owner: the server, since others may have no
    mapping in its user namespace."""

    ino: int
    mode: int = stat.S_IFREG | 0o666
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    size: int = 0

    def pack(self) -> fuse_h.Attr:
        return fuse_h.Attr(
            ino=self.ino,
            size=self.size,
            blocks=(self.size + 511) // 512,
            mode=self.mode,
            nlink=1,
            uid=self.uid,
            gid=self.gid,
            blksize=4096,
        )


def _message(unique: int, error: int, *parts: fuse_h.Struct | bytes) -> bytes:
    length = sizeof(fuse_h.OutHeader) + sum(len(part) if isinstance(part, bytes) else sizeof(part) for part in parts)
    return b"".join(map(bytes, (fuse_h.OutHeader(length, error, unique), *parts)))


def error(unique: int, errno: int) -> bytes:
    """The request failed. :param errno: positive."""
    return _message(unique, -errno)


def ok(unique: int, *parts: fuse_h.Struct | bytes) -> bytes:
    """Success, with what the operation returns, if anything."""
    return _message(unique, 0, *parts)


def init(
    unique: int,
    *,
    minor: int,
    flags: InitFlag,
    max_write: int,
    max_stack_depth: int = 0,
    max_readahead: int = 0,
    major: int = fuse_h.KERNEL_VERSION,
) -> bytes:
    """:param flags: all 64 bits; put INIT_EXT in only if the kernel offered it.
    :param max_stack_depth: 1 where PASSTHROUGH is taken."""
    out = fuse_h.InitOut(
        major=major,
        minor=minor,
        max_readahead=max_readahead,
        flags=flags & 0xFFFFFFFF,
        max_write=max_write,
        time_gran=1,
        flags2=flags >> 32,
        max_stack_depth=max_stack_depth,
    )
    return ok(unique, out)


def cuse_init(unique: int, *, minor: int, name: str, max_transfer: int, device: tuple[int, int] = (0, 0)) -> bytes:
    """Makes the character device ``/dev/name`` (a "!" in it becomes a "/"), with unrestricted ioctls.

    :param max_transfer: bytes per read or write.
    :param device: major and minor; (0, 0) lets the kernel choose.
    """
    out = fuse_h.CuseInitOut(
        major=fuse_h.KERNEL_VERSION,
        minor=minor,
        flags=fuse_h.CUSE_UNRESTRICTED_IOCTL,
        max_read=max_transfer,
        max_write=max_transfer,
        dev_major=device[0],
        dev_minor=device[1],
    )
    info = f"DEVNAME={name}".encode() + b"\0"
    if len(info) > fuse_h.CUSE_INIT_INFO_MAX:
        raise ValueError(f"device name too long: {name!r}")
    return ok(unique, out, info)


def entry(unique: int, nodeid: int, attributes: Attributes, *, generation: int = 0, valid: int = VALID) -> bytes:
    """Answer to LOOKUP. Every one counts: the kernel gives it back in a FORGET.

    :param valid: seconds for which name and attributes may be kept; 0: look up again each time.
    """
    out = fuse_h.EntryOut(nodeid, generation, valid, valid, 0, 0, attributes.pack())
    return ok(unique, out)


def attr(unique: int, attributes: Attributes, *, valid: int = VALID) -> bytes:
    """Answer to GETATTR and SETATTR."""
    return ok(unique, fuse_h.AttrOut(valid, 0, 0, attributes.pack()))


def opened(unique: int, fh: int, flags: OpenFlag = OpenFlag.NONE, backing_id: int = 0) -> bytes:
    """Answer to OPEN. :param backing_id: with PASSTHROUGH, from ``Connection.backing_open``; one per inode."""
    return ok(unique, fuse_h.OpenOut(fh, flags, backing_id))


def written(unique: int, size: int) -> bytes:
    return ok(unique, fuse_h.WriteOut(size))


def statfs(unique: int) -> bytes:
    return ok(unique, fuse_h.StatfsOut(bsize=4096, frsize=4096, namelen=255))


def lseek(unique: int, offset: int) -> bytes:
    return ok(unique, fuse_h.LseekOut(offset))


def poll(unique: int, revents: int) -> bytes:
    return ok(unique, fuse_h.PollOut(revents))


def ioctl(unique: int, result: int, data: bytes = b"") -> bytes:
    """:param result: what ioctl(2) returns; a negative errno fails it, and ``data`` is copied out all the same.
    :param data: at most the request's ``out_size`` bytes."""
    return ok(unique, fuse_h.IoctlOut(result), data)


def ioctl_retry(unique: int, ins: Sequence[tuple[int, int]], outs: Sequence[tuple[int, int]]) -> bytes:
    """Unrestricted ioctls only: call again with these pieces of client memory.

    :param ins: (address, length) to be copied in, in the order in which ``Ioctl.data`` will hold them.
    :param outs: (address, length) to which the data of the last reply goes.
    """
    if len(ins) + len(outs) > fuse_h.IOCTL_MAX_IOV:
        raise ValueError("too many pieces")
    iovecs = b"".join(bytes(fuse_h.IoctlIovec(*piece)) for piece in (*ins, *outs))
    return ok(unique, fuse_h.IoctlOut(0, IoctlFlag.RETRY, len(ins), len(outs)), iovecs)


def notify_poll(kh: int) -> bytes:
    """An event came for the poll handle ``kh``: the kernel polls again."""
    return _message(0, Notify.POLL, fuse_h.NotifyPollWakeupOut(kh))


def notify_inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """Drop cached attributes, and pages of the range: length 0 means to the end, a negative offset none."""
    return _message(0, Notify.INVAL_INODE, fuse_h.NotifyInvalInodeOut(nodeid, offset, length))


def notify_store(nodeid: int, offset: int, data: bytes) -> bytes:
    """Put ``data`` into the page cache."""
    return _message(0, Notify.STORE, fuse_h.NotifyStoreOut(nodeid, offset, len(data)), data)


def notify_retrieve(notify_unique: int, nodeid: int, offset: int, size: int) -> bytes:
    """Ask for page cache content; the answer is a NotifyReply whose ``unique`` is ``notify_unique``."""
    return _message(0, Notify.RETRIEVE, fuse_h.NotifyRetrieveOut(notify_unique, nodeid, offset, size))


def notify_resend() -> bytes:
    """Send every request again that was read but not answered (7.40)."""
    return _message(0, Notify.RESEND)
