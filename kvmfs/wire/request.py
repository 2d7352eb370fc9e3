"""Bytes from the kernel -> typed requests. Together with ``reply`` the only code that cuts bytes.

``parse`` gives one object per message read from the device. A message that is shorter than its own opcode says is
``ShortRequest``; an opcode that kvmfs has no use for is ``Other`` (ENOSYS is the answer: for most operations the kernel
then stops asking).
"""

from collections.abc import Callable
from ctypes import sizeof
from dataclasses import dataclass
from typing import TypeVar

from kvmfs.wire import fuse_h
from kvmfs.wire.fuse_h import InitFlag, IoctlFlag, Opcode, SetAttrValid


class ProtocolError(Exception):
    """The kernel sent something that fuse.h does not allow."""


class ShortRequest(ProtocolError):
    """A message ends before its last field. ``unique`` is 0 where not even the header was complete."""

    def __init__(self, wanted: int, got: int, unique: int = 0) -> None:
        super().__init__(f"request {unique:#x}: {wanted} bytes wanted, {got} there")
        self.unique = unique


@dataclass(slots=True)
class Request:
    """What every request says."""

    unique: int
    nodeid: int
    uid: int
    gid: int
    tid: int
    """The calling thread, in the pid namespace of the mounter; 0 if it cannot be named there, or nobody called."""

    @property
    def resent(self) -> bool:
        """The kernel sends this a second time, after NOTIFY_RESEND: an earlier reader may have acted on it."""
        return bool(self.unique & fuse_h.UNIQUE_RESEND)


@dataclass(slots=True)
class Lookup(Request):
    name: bytes


@dataclass(slots=True)
class Forget(Request):
    """FORGET and BATCH_FORGET; no reply."""

    nodes: list[tuple[int, int]]
    """(node id, lookups forgotten)"""


@dataclass(slots=True)
class GetAttr(Request):
    fh: int | None


@dataclass(slots=True)
class SetAttr(Request):
    valid: SetAttrValid
    fh: int
    size: int
    mode: int
    owner: int
    group: int


@dataclass(slots=True)
class Open(Request):
    flags: int


@dataclass(slots=True)
class Read(Request):
    fh: int
    offset: int
    size: int
    flags: int


@dataclass(slots=True)
class Write(Request):
    fh: int
    offset: int
    data: bytes
    cached: bool
    """Written back from the page cache: ``fh`` is a guess."""


@dataclass(slots=True)
class Statfs(Request):
    pass


@dataclass(slots=True)
class Release(Request):
    fh: int
    flags: int


@dataclass(slots=True)
class Flush(Request):
    fh: int


@dataclass(slots=True)
class Fsync(Request):
    fh: int
    datasync: bool


@dataclass(slots=True)
class Access(Request):
    mask: int


@dataclass(slots=True)
class Init(Request):
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag


@dataclass(slots=True)
class CuseInit(Request):
    major: int
    minor: int
    flags: int


@dataclass(slots=True)
class Destroy(Request):
    pass


@dataclass(slots=True)
class Interrupt(Request):
    """A signal came for a waiting caller; no reply: answer the request it names, with EINTR or with its result."""

    target: int


@dataclass(slots=True)
class Ioctl(Request):
    fh: int
    flags: IoctlFlag
    cmd: int
    arg: int
    data: bytes
    """What the kernel copied in: _IOC_SIZE bytes at ``arg`` for _IOC_WRITE commands, or what a RETRY asked for."""
    out_size: int
    """How many bytes of the reply's data the kernel will copy out."""


@dataclass(slots=True)
class Poll(Request):
    fh: int
    kh: int
    """For ``reply.notify_poll``."""
    schedule: bool
    """The caller waits: notify ``kh`` when an event comes."""
    events: int


@dataclass(slots=True)
class NotifyReply(Request):
    """What NOTIFY_RETRIEVE asked for; ``unique`` is its ``notify_unique``. No reply."""

    offset: int
    data: bytes


@dataclass(slots=True)
class Fallocate(Request):
    fh: int
    offset: int
    length: int
    mode: int


@dataclass(slots=True)
class Lseek(Request):
    fh: int
    offset: int
    whence: int


@dataclass(slots=True)
class Other(Request):
    opcode: int


S = TypeVar("S", bound=fuse_h.Struct)
_Common = tuple[int, int, int, int, int]


class _Body:
    """The bytes after the header, cut from the front."""

    def __init__(self, data: memoryview, unique: int) -> None:
        self._data = data
        self._unique = unique

    def take(self, count: int) -> memoryview:
        if count > len(self._data):
            raise ShortRequest(count, len(self._data), self._unique)
        head, self._data = self._data[:count], self._data[count:]
        return head

    def struct(self, kind: type[S]) -> S:
        return kind.from_buffer_copy(self.take(sizeof(kind)))

    def name(self) -> bytes:
        name, nul, rest = bytes(self._data).partition(b"\0")
        if not nul:
            raise ShortRequest(len(name) + 1, len(name), self._unique)
        self._data = memoryview(rest)
        return name


def parse(message: bytes | bytearray | memoryview) -> Request:
    """One message as read from the device. The result owns its data; the buffer may be used again.

    :raises ShortRequest: it ends too early.
    """
    view = memoryview(message)
    if len(view) < sizeof(fuse_h.InHeader):
        raise ShortRequest(sizeof(fuse_h.InHeader), len(view))
    head = fuse_h.InHeader.from_buffer_copy(view)
    if not sizeof(fuse_h.InHeader) <= head.len <= len(view):
        raise ShortRequest(head.len, len(view), head.unique)
    common = (head.unique, head.nodeid, head.uid, head.gid, head.pid)
    cut = _PARSERS.get(head.opcode)
    if cut is None:
        return Other(*common, head.opcode)
    return cut(common, _Body(view[sizeof(fuse_h.InHeader) : head.len], head.unique))


def _forget(common: _Common, body: _Body) -> Request:
    return Forget(*common, [(common[1], body.struct(fuse_h.ForgetIn).nlookup)])


def _batch_forget(common: _Common, body: _Body) -> Request:
    count = body.struct(fuse_h.BatchForgetIn).count
    ones = (body.struct(fuse_h.ForgetOne) for _ in range(count))
    return Forget(*common, [(one.nodeid, one.nlookup) for one in ones])


def _getattr(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.GetAttrIn)
    return GetAttr(*common, arg.fh if arg.getattr_flags & fuse_h.GETATTR_FH else None)


def _setattr(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.SetAttrIn)
    return SetAttr(*common, SetAttrValid(arg.valid), arg.fh, arg.size, arg.mode, arg.uid, arg.gid)


def _read(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.ReadIn)
    return Read(*common, arg.fh, arg.offset, arg.size, arg.flags)


def _write(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.WriteIn)
    return Write(*common, arg.fh, arg.offset, bytes(body.take(arg.size)), bool(arg.write_flags & fuse_h.WRITE_CACHE))


def _release(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.ReleaseIn)
    return Release(*common, arg.fh, arg.flags)


def _fsync(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.FsyncIn)
    return Fsync(*common, arg.fh, bool(arg.fsync_flags & fuse_h.FSYNC_FDATASYNC))


def _init(common: _Common, body: _Body) -> Request:
    """Before 7.36 the message ends after ``flags``."""
    start = body.struct(fuse_h.CuseInitIn)  # the same four words
    flags = InitFlag(start.flags)
    if InitFlag.INIT_EXT in flags:
        flags |= InitFlag(int.from_bytes(body.take(4), "little") << 32)
    return Init(*common, start.major, start.minor, start.unused, flags)


def _cuse_init(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.CuseInitIn)
    return CuseInit(*common, arg.major, arg.minor, arg.flags)


def _ioctl(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.IoctlIn)
    data = bytes(body.take(arg.in_size))
    return Ioctl(*common, arg.fh, IoctlFlag(arg.flags), arg.cmd, arg.arg, data, arg.out_size)


def _poll(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.PollIn)
    return Poll(*common, arg.fh, arg.kh, bool(arg.flags & fuse_h.POLL_SCHEDULE_NOTIFY), arg.events)


def _notify_reply(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.NotifyRetrieveIn)
    return NotifyReply(*common, arg.offset, bytes(body.take(arg.size)))


def _fallocate(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.FallocateIn)
    return Fallocate(*common, arg.fh, arg.offset, arg.length, arg.mode)


def _lseek(common: _Common, body: _Body) -> Request:
    arg = body.struct(fuse_h.LseekIn)
    return Lseek(*common, arg.fh, arg.offset, arg.whence)


_PARSERS: dict[int, Callable[[_Common, _Body], Request]] = {
    Opcode.LOOKUP: lambda common, body: Lookup(*common, body.name()),
    Opcode.FORGET: _forget,
    Opcode.BATCH_FORGET: _batch_forget,
    Opcode.GETATTR: _getattr,
    Opcode.SETATTR: _setattr,
    Opcode.OPEN: lambda common, body: Open(*common, body.struct(fuse_h.OpenIn).flags),
    Opcode.READ: _read,
    Opcode.WRITE: _write,
    Opcode.STATFS: lambda common, body: Statfs(*common),
    Opcode.RELEASE: _release,
    Opcode.FSYNC: _fsync,
    Opcode.FLUSH: lambda common, body: Flush(*common, body.struct(fuse_h.FlushIn).fh),
    Opcode.ACCESS: lambda common, body: Access(*common, body.struct(fuse_h.AccessIn).mask),
    Opcode.INIT: _init,
    Opcode.CUSE_INIT: _cuse_init,
    Opcode.DESTROY: lambda common, body: Destroy(*common),
    Opcode.INTERRUPT: lambda common, body: Interrupt(*common, body.struct(fuse_h.InterruptIn).unique),
    Opcode.IOCTL: _ioctl,
    Opcode.POLL: _poll,
    Opcode.NOTIFY_REPLY: _notify_reply,
    Opcode.FALLOCATE: _fallocate,
    Opcode.LSEEK: _lseek,
}
