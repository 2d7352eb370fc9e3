"""Replies byte by byte."""

import errno
import stat

import pytest

from kvmfs.wire import reply
from kvmfs.wire.fuse_h import InitFlag, OpenFlag


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


ATTR = (
    "0500000000000000 0030000000000000 1800000000000000"  # ino, size, blocks of 512
    "0000000000000000 0000000000000000 0000000000000000"  # atime, mtime, ctime
    "00000000 00000000 00000000"  # their nanoseconds
    "80810000 01000000"  # mode 0100600, nlink
    "e8030000 64000000"  # uid, gid
    "00000000 00100000 00000000"  # rdev, blksize, flags
)
NODE = reply.Attributes(5, stat.S_IFREG | 0o600, 1000, 100, 12288)
GOLDEN = {
    "error": (reply.error(0x10, errno.ENOTTY), "10000000 e7ffffff 1000000000000000"),  # len, error, unique
    "ok": (reply.ok(0x10), "10000000 00000000 1000000000000000"),
    "init": (
        reply.init(
            0x10,
            minor=41,
            flags=InitFlag.INIT_EXT | InitFlag.PASSTHROUGH,
            max_write=65536,
            max_stack_depth=1,
        ),
        "50000000 00000000 1000000000000000"
        "07000000 29000000 00000000"  # major, minor, max_readahead
        "00000040"  # flags: INIT_EXT
        "0000 0000 00000100"  # max_background, congestion_threshold: the kernel's; max_write
        "01000000 0000 0000"  # time_gran, max_pages, map_alignment
        "20000000 01000000" + "00000000" * 6,  # flags2: PASSTHROUGH, max_stack_depth
    ),
    "cuse_init": (
        reply.cuse_init(0x10, minor=41, name="kvm", max_transfer=131072),
        "64000000 00000000 1000000000000000"
        "07000000 29000000 00000000 01000000"  # major, minor, unused, CUSE_UNRESTRICTED_IOCTL
        "00000200 00000200"  # max_read, max_write
        "00000000 00000000" + "00000000" * 10 + b"DEVNAME=kvm\0".hex(),  # dev_major, dev_minor: the kernel's choice
    ),
    "entry": (
        reply.entry(0x10, 5, NODE, generation=2),
        "90000000 00000000 1000000000000000"
        "0500000000000000 0200000000000000"  # nodeid, generation
        "8051010000000000 8051010000000000 00000000 00000000" + ATTR,  # both valid for a day
    ),
    "attr": (
        reply.attr(0x10, NODE, valid=0),
        "78000000 00000000 1000000000000000"
        "0000000000000000 00000000 00000000" + ATTR,  # attr_valid, its nanoseconds, dummy
    ),
    "opened": (
        reply.opened(0x10, 7, OpenFlag.DIRECT_IO),
        "20000000 00000000 1000000000000000 0700000000000000 01000000 00000000",  # fh, open_flags, backing_id
    ),
    "opened with passthrough": (
        reply.opened(0x10, 7, OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, 3),
        "20000000 00000000 1000000000000000 0700000000000000 a0000000 03000000",
    ),
    "written": (reply.written(0x10, 9), "18000000 00000000 1000000000000000 09000000 00000000"),
    "lseek": (reply.lseek(0x10, 4096), "18000000 00000000 1000000000000000 0010000000000000"),
    "poll": (reply.poll(0x10, 5), "18000000 00000000 1000000000000000 05000000 00000000"),
    "ioctl": (
        reply.ioctl(0x10, 12),
        "20000000 00000000 1000000000000000 0c000000 00000000 00000000 00000000",  # result, flags, iovs
    ),
    "ioctl that fails with data": (
        reply.ioctl(0x10, -errno.E2BIG, hexed("0a000000")),
        "24000000 00000000 1000000000000000 f9ffffff 00000000 00000000 00000000 0a000000",
    ),
    "ioctl_retry": (
        reply.ioctl_retry(0x10, [(0x1000, 8)], [(0x1000, 8), (0x2000, 400)]),
        "50000000 00000000 1000000000000000"
        "00000000 04000000 01000000 02000000"  # result, FUSE_IOCTL_RETRY, in_iovs, out_iovs
        "0010000000000000 0800000000000000"
        "0010000000000000 0800000000000000"
        "0020000000000000 9001000000000000",
    ),
    "notify_poll": (reply.notify_poll(9), "18000000 01000000 0000000000000000 0900000000000000"),
    "notify_inval_inode": (
        reply.notify_inval_inode(5, -1),
        "28000000 02000000 0000000000000000 0500000000000000 ffffffffffffffff 0000000000000000",  # ino, off, len
    ),
    "notify_store": (
        reply.notify_store(5, 4096, b"hi"),
        "2a000000 04000000 0000000000000000 0500000000000000 0010000000000000 02000000 00000000 6869",
    ),
    "notify_retrieve": (
        reply.notify_retrieve(0x77, 5, 4096, 12288),
        "30000000 05000000 0000000000000000 7700000000000000 0500000000000000 0010000000000000 00300000 00000000",
    ),
    "notify_resend": (reply.notify_resend(), "10000000 07000000 0000000000000000"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_format(name: str) -> None:
    message, expected = GOLDEN[name]
    assert message.hex(" ", 4) == hexed(expected).hex(" ", 4)
    assert int.from_bytes(message[:4], "little") == len(message)


def test_a_device_name_that_does_not_fit_its_page() -> None:
    with pytest.raises(ValueError, match="too long"):
        reply.cuse_init(1, minor=41, name="x" * 4096, max_transfer=4096)


def test_more_pieces_than_the_kernel_takes() -> None:
    with pytest.raises(ValueError, match="too many"):
        reply.ioctl_retry(1, [(0, 1)] * 200, [(0, 1)] * 57)
