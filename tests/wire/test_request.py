"""Messages as the kernel writes them, byte by byte, and what becomes of them."""

import pytest

from kvmfs.wire import fuse_h, request
from kvmfs.wire.fuse_h import InitFlag, IoctlFlag, SetAttrValid

COMMON = (0x10, 3, 1000, 100, 4242)  # unique, nodeid, uid, gid, tid


def message(opcode: int, body: str, unique: int = 0x10) -> bytes:
    rest = bytes.fromhex(body)
    header = (
        (40 + len(rest)).to_bytes(4, "little")  # len
        + opcode.to_bytes(4, "little")
        + unique.to_bytes(8, "little")
        + bytes.fromhex("0300000000000000")  # nodeid 3
        + bytes.fromhex("e8030000")  # uid 1000
        + bytes.fromhex("64000000")  # gid 100
        + bytes.fromhex("92100000")  # pid 4242
        + bytes.fromhex("0000 0000")  # total_extlen, padding
    )
    return header + rest


GOLDEN = {
    "lookup": (message(1, "766370753000"), request.Lookup(*COMMON, b"vcpu0")),
    "forget": (message(2, "0200000000000000"), request.Forget(*COMMON, [(3, 2)])),
    "batch_forget": (
        message(
            42,
            "02000000 00000000"  # count, dummy
            "0500000000000000 0100000000000000"  # nodeid 5, nlookup 1
            "0600000000000000 0300000000000000",  # nodeid 6, nlookup 3
        ),
        request.Forget(*COMMON, [(5, 1), (6, 3)]),
    ),
    "getattr by handle": (
        message(3, "01000000 00000000 0700000000000000"),  # FUSE_GETATTR_FH, dummy, fh
        request.GetAttr(*COMMON, 7),
    ),
    "getattr": (message(3, "00000000 00000000 0700000000000000"), request.GetAttr(*COMMON, None)),
    "setattr": (
        message(
            4,
            "09000000 00000000"  # valid: MODE | SIZE, padding
            "0700000000000000 0010000000000000 0000000000000000"  # fh, size, lock_owner
            "0000000000000000 0000000000000000 0000000000000000"  # atime, mtime, ctime
            "00000000 00000000 00000000"  # their nanoseconds
            "a4810000 00000000"  # mode 0100644, unused4
            "01000000 02000000 00000000",  # uid, gid, unused5
        ),
        request.SetAttr(*COMMON, SetAttrValid.MODE | SetAttrValid.SIZE, 7, 4096, 0o100644, 1, 2),
    ),
    "open": (message(14, "02800000 00000000"), request.Open(*COMMON, 0o100002)),  # flags, open_flags
    "read": (
        message(
            15,
            "0700000000000000 0010000000000000"  # fh, offset
            "00020000 00000000"  # size 512, read_flags
            "0000000000000000 02000000 00000000",  # lock_owner, flags, padding
        ),
        request.Read(*COMMON, 7, 4096, 512, 2),
    ),
    "write back": (
        message(
            16,
            "0700000000000000 0010000000000000"  # fh, offset
            "03000000 01000000"  # size, FUSE_WRITE_CACHE
            "0000000000000000 00000000 00000000"  # lock_owner, flags, padding
            "616263",
        ),
        request.Write(*COMMON, 7, 4096, b"abc", True),
    ),
    "statfs": (message(17, ""), request.Statfs(*COMMON)),
    "release": (
        message(18, "0700000000000000 02800000 00000000 0000000000000000"),  # fh, flags, release_flags, lock_owner
        request.Release(*COMMON, 7, 0o100002),
    ),
    "fsync": (message(20, "0700000000000000 01000000 00000000"), request.Fsync(*COMMON, 7, True)),
    "flush": (
        message(25, "0700000000000000 00000000 00000000 0000000000000000"),  # fh, unused, padding, lock_owner
        request.Flush(*COMMON, 7),
    ),
    "init 7.31": (
        message(26, "07000000 1f000000 00000200 08000000"),  # major, minor, max_readahead, flags
        request.Init(*COMMON, 7, 31, 0x20000, InitFlag.ATOMIC_O_TRUNC),
    ),
    "init 7.41": (
        message(
            26,
            "07000000 29000000 00000200 08000040"  # major, minor, max_readahead, flags with FUSE_INIT_EXT
            "20000000" + "00000000" * 11,  # flags2: FUSE_PASSTHROUGH, unused
        ),
        request.Init(*COMMON, 7, 41, 0x20000, InitFlag.ATOMIC_O_TRUNC | InitFlag.INIT_EXT | InitFlag.PASSTHROUGH),
    ),
    "access": (message(34, "06000000 00000000"), request.Access(*COMMON, 6)),
    "interrupt": (message(36, "2200000000000000"), request.Interrupt(*COMMON, 0x22)),
    "destroy": (message(38, ""), request.Destroy(*COMMON)),
    "ioctl": (
        message(
            39,
            "0700000000000000 00000000"  # fh, flags
            "09ae0840 0000abab007f0000"  # cmd 0x4008ae09, arg
            "08000000 00000000"  # in_size, out_size
            "1122334455667788",
        ),
        request.Ioctl(*COMMON, 7, IoctlFlag(0), 0x4008AE09, 0x7F00ABAB0000, bytes.fromhex("1122334455667788"), 0),
    ),
    "ioctl without direction, unrestricted, 32-bit": (
        message(39, "0700000000000000 0b000000 80ae0000 2a00000000000000 00000000 00000000"),
        request.Ioctl(*COMMON, 7, IoctlFlag.COMPAT | IoctlFlag.UNRESTRICTED | IoctlFlag.BIT32, 0xAE80, 42, b"", 0),
    ),
    "poll": (
        message(40, "0700000000000000 0900000000000000 01000000 05000000"),  # fh, kh, SCHEDULE_NOTIFY, events
        request.Poll(*COMMON, 7, 9, True, 5),
    ),
    "notify_reply": (
        message(
            41,
            "0000000000000000 0010000000000000"  # dummy1, offset
            "02000000 00000000"  # size, dummy2
            "0000000000000000 0000000000000000"  # dummy3, dummy4
            "6869",
        ),
        request.NotifyReply(*COMMON, 4096, b"hi"),
    ),
    "fallocate": (
        message(43, "0700000000000000 0010000000000000 0020000000000000 03000000 00000000"),  # fh, offset, length, mode
        request.Fallocate(*COMMON, 7, 4096, 8192, 3),
    ),
    "lseek": (
        message(46, "0700000000000000 0010000000000000 03000000 00000000"),  # fh, offset, whence SEEK_DATA
        request.Lseek(*COMMON, 7, 4096, 3),
    ),
    "cuse_init": (
        message(4096, "07000000 29000000 00000000 01000000"),  # major, minor, unused, CUSE_UNRESTRICTED_IOCTL
        request.CuseInit(*COMMON, 7, 41, 1),
    ),
    "an opcode from the future": (message(77, "0102"), request.Other(*COMMON, 77)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_parse(name: str) -> None:
    data, expected = GOLDEN[name]
    assert request.parse(data) == expected


@pytest.mark.parametrize(
    "name", [name for name, (data, _) in GOLDEN.items() if len(data) > 40 and "future" not in name]
)
def test_every_message_cut_short_is_a_typed_error(name: str) -> None:
    data, _ = GOLDEN[name]
    cut = bytearray(data[:-1])
    if "init 7.41" in name:
        cut = cut[: 40 + 16 + 3]  # what follows flags2 is unused
    cut[0:4] = len(cut).to_bytes(4, "little")
    with pytest.raises(request.ShortRequest) as caught:
        request.parse(cut)
    assert caught.value.unique == 0x10


@pytest.mark.parametrize("length", [0, 39])
def test_less_than_a_header(length: int) -> None:
    with pytest.raises(request.ShortRequest) as caught:
        request.parse(bytes(length))
    assert caught.value.unique == 0


def test_length_beyond_the_buffer() -> None:
    with pytest.raises(request.ShortRequest):
        request.parse(GOLDEN["open"][0][:-8])


def test_trailing_bytes_of_the_buffer_are_not_the_message() -> None:
    assert request.parse(GOLDEN["lookup"][0] + b"rubbish") == GOLDEN["lookup"][1]


def test_a_request_owns_its_data() -> None:
    buffer = bytearray(GOLDEN["write back"][0])
    parsed = request.parse(buffer)
    buffer[:] = bytes(len(buffer))
    assert parsed == GOLDEN["write back"][1]


def test_resent() -> None:
    again = request.parse(message(17, "", unique=0x10 | fuse_h.UNIQUE_RESEND))
    assert again.resent
    assert again.unique == 0x8000000000000010  # the reply carries the bit
    assert not request.parse(message(17, "")).resent
