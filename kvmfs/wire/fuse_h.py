"""include/uapi/linux/fuse.h (7.41, Linux 6.12) as data: opcodes, flags, structs.

Structs lose the prefix: ``struct fuse_in_header`` is ``InHeader``; fields keep their names. ``offset(InHeader,
"unique")`` and ``size(InHeader)`` are plain ints, good as constants in compiled code.
"""

import ctypes
from enum import IntEnum, IntFlag
from typing import Annotated, Any, Final, TypeVar

KERNEL_VERSION: Final = 7
KERNEL_MINOR_VERSION: Final = 41
ROOT_ID: Final = 1
"""Node id of the root inode."""
MIN_READ_BUFFER: Final = 8192
IOCTL_MAX_IOV: Final = 256
CUSE_INIT_INFO_MAX: Final = 4096
UNIQUE_RESEND: Final = 1 << 63
"""Set in the ``unique`` of a request that the kernel sends again; the reply carries it too."""


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2  # no reply
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36  # no reply
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41  # no reply
    BATCH_FORGET = 42  # no reply
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    CUSE_INIT = 4096


class Notify(IntEnum):
    """What a message with ``unique`` 0 tells the kernel; stands in the header's ``error``."""

    POLL = 1
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    STORE = 4
    RETRIEVE = 5
    DELETE = 6
    RESEND = 7


class InitFlag(IntFlag):
    """Features offered and taken in INIT. Bits 32 and up travel in ``flags2``, if INIT_EXT is set."""

    NONE = 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    NO_EXPORT_SUPPORT = 1 << 38
    HAS_RESEND = 1 << 39


class OpenFlag(IntFlag):
    """FOPEN_*: how the kernel shall treat a file that is being opened."""

    NONE = 0
    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    CACHE_DIR = 1 << 3
    STREAM = 1 << 4
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6
    PASSTHROUGH = 1 << 7


class IoctlFlag(IntFlag):
    COMPAT = 1 << 0
    UNRESTRICTED = 1 << 1
    RETRY = 1 << 2
    BIT32 = 1 << 3
    DIR = 1 << 4
    COMPAT_X32 = 1 << 5


class SetAttrValid(IntFlag):
    """FATTR_*: which fields of a SETATTR count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    LOCKOWNER = 1 << 9
    CTIME = 1 << 10
    KILL_SUIDGID = 1 << 11


GETATTR_FH: Final = 1 << 0
FSYNC_FDATASYNC: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
POLL_SCHEDULE_NOTIFY: Final = 1 << 0
CUSE_UNRESTRICTED_IOCTL: Final = 1 << 0

u16 = Annotated[int, ctypes.c_uint16]
u32 = Annotated[int, ctypes.c_uint32]
u64 = Annotated[int, ctypes.c_uint64]
s32 = Annotated[int, ctypes.c_int32]
s64 = Annotated[int, ctypes.c_int64]


class Struct(ctypes.LittleEndianStructure):
    """A C struct of fuse.h; subclasses state their fields as annotations, in order."""


S = TypeVar("S", bound=Struct)


def _c_struct(cls: type[S]) -> type[S]:
    cls._fields_ = [(name, hint if isinstance(hint, type) else hint.__metadata__[0])
                    for name, hint in cls.__annotations__.items()]  # fmt: skip
    return cls


def offset(struct: type[Struct], field: str) -> int:
    """``offsetof``."""
    descriptor: Any = getattr(struct, field)
    return int(descriptor.offset)


size = ctypes.sizeof
"""``sizeof``."""


@_c_struct
class InHeader(Struct):
    len: u32
    opcode: u32
    unique: u64
    nodeid: u64
    uid: u32
    gid: u32
    pid: u32  # of the calling thread, in the pid namespace of the mounter
    total_extlen: u16  # length of extensions in 8 byte units
    padding: u16


@_c_struct
class OutHeader(Struct):
    len: u32
    error: s32
    unique: u64


@_c_struct
class Attr(Struct):
    ino: u64
    size: u64
    blocks: u64
    atime: u64
    mtime: u64
    ctime: u64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    nlink: u32
    uid: u32
    gid: u32
    rdev: u32
    blksize: u32
    flags: u32


@_c_struct
class EntryOut(Struct):
    nodeid: u64
    generation: u64  # nodeid:generation is unique for the connection's life
    entry_valid: u64  # seconds for which the kernel may keep the name
    attr_valid: u64  # seconds for which it may keep the attributes
    entry_valid_nsec: u32
    attr_valid_nsec: u32
    attr: Attr


@_c_struct
class ForgetIn(Struct):
    nlookup: u64


@_c_struct
class ForgetOne(Struct):
    nodeid: u64
    nlookup: u64


@_c_struct
class BatchForgetIn(Struct):
    count: u32
    dummy: u32


@_c_struct
class GetAttrIn(Struct):
    getattr_flags: u32
    dummy: u32
    fh: u64


@_c_struct
class AttrOut(Struct):
    attr_valid: u64
    attr_valid_nsec: u32
    dummy: u32
    attr: Attr


@_c_struct
class SetAttrIn(Struct):
    valid: u32
    padding: u32
    fh: u64
    size: u64
    lock_owner: u64
    atime: u64
    mtime: u64
    ctime: u64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    unused4: u32
    uid: u32
    gid: u32
    unused5: u32


@_c_struct
class OpenIn(Struct):
    flags: u32
    open_flags: u32


@_c_struct
class OpenOut(Struct):
    fh: u64
    open_flags: u32
    backing_id: s32


@_c_struct
class ReleaseIn(Struct):
    fh: u64
    flags: u32
    release_flags: u32
    lock_owner: u64


@_c_struct
class FlushIn(Struct):
    fh: u64
    unused: u32
    padding: u32
    lock_owner: u64


@_c_struct
class ReadIn(Struct):
    fh: u64
    offset: u64
    size: u32
    read_flags: u32
    lock_owner: u64
    flags: u32
    padding: u32


@_c_struct
class WriteIn(Struct):
    fh: u64
    offset: u64
    size: u32
    write_flags: u32
    lock_owner: u64
    flags: u32
    padding: u32


@_c_struct
class WriteOut(Struct):
    size: u32
    padding: u32


@_c_struct
class StatfsOut(Struct):
    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    bsize: u32
    namelen: u32
    frsize: u32
    padding: u32
    spare0: u64
    spare1: u64
    spare2: u64


@_c_struct
class FsyncIn(Struct):
    fh: u64
    fsync_flags: u32
    padding: u32


@_c_struct
class AccessIn(Struct):
    mask: u32
    padding: u32


@_c_struct
class InitIn(Struct):
    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    flags2: u32  # from here on since 7.36
    unused: Annotated[Any, ctypes.c_uint32 * 11]


@_c_struct
class InitOut(Struct):
    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    max_background: u16
    congestion_threshold: u16
    max_write: u32
    time_gran: u32
    max_pages: u16
    map_alignment: u16
    flags2: u32
    max_stack_depth: u32
    unused: Annotated[Any, ctypes.c_uint32 * 6]


@_c_struct
class CuseInitIn(Struct):
    major: u32
    minor: u32
    unused: u32
    flags: u32


@_c_struct
class CuseInitOut(Struct):
    major: u32
    minor: u32
    unused: u32
    flags: u32
    max_read: u32
    max_write: u32
    dev_major: u32
    dev_minor: u32
    spare: Annotated[Any, ctypes.c_uint32 * 10]


@_c_struct
class InterruptIn(Struct):
    unique: u64


@_c_struct
class IoctlIn(Struct):
    fh: u64
    flags: u32
    cmd: u32
    arg: u64
    in_size: u32
    out_size: u32


@_c_struct
class IoctlIovec(Struct):
    base: u64
    len: u64


@_c_struct
class IoctlOut(Struct):
    result: s32
    flags: u32
    in_iovs: u32
    out_iovs: u32


@_c_struct
class PollIn(Struct):
    fh: u64
    kh: u64
    flags: u32
    events: u32


@_c_struct
class PollOut(Struct):
    revents: u32
    padding: u32


@_c_struct
class FallocateIn(Struct):
    fh: u64
    offset: u64
    length: u64
    mode: u32
    padding: u32


@_c_struct
class LseekIn(Struct):
    fh: u64
    offset: u64
    whence: u32
    padding: u32


@_c_struct
class LseekOut(Struct):
    offset: u64


@_c_struct
class NotifyPollWakeupOut(Struct):
    kh: u64


@_c_struct
class NotifyInvalInodeOut(Struct):
    ino: u64
    off: s64
    len: s64


@_c_struct
class NotifyStoreOut(Struct):
    nodeid: u64
    offset: u64
    size: u32
    padding: u32


@_c_struct
class NotifyRetrieveOut(Struct):
    notify_unique: u64
    nodeid: u64
    offset: u64
    size: u32
    padding: u32


@_c_struct
class NotifyRetrieveIn(Struct):  # as large as WriteIn
    dummy1: u64
    offset: u64
    size: u32
    dummy2: u32
    dummy3: u64
    dummy4: u64


@_c_struct
class BackingMap(Struct):
    fd: s32
    flags: u32
    padding: u64


DEV_IOC_CLONE: Final = 0x8004E500  # _IOR(229, 0, uint32_t)
DEV_IOC_BACKING_OPEN: Final = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
DEV_IOC_BACKING_CLOSE: Final = 0x4004E502  # _IOW(229, 2, uint32_t)
