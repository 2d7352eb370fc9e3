"""What lies behind a range of memory, and how to get at it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmfs.client import maps, pagemap
from kvmfs.client.maps import Kind, backing, open_backing
from tests.client.expect import raises_errno

PAGE = mmap.PAGESIZE
ME = os.getpid()
RW = mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED, MAP_NORESERVE, MAP_HUGETLB = 0x10, 0x4000, 0x40000
HUGE = 2 << 20


class Space:
    """A stretch of addresses to map things in. It is reserved: a hole of any size would soon be somebody's heap."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._size = 16 * HUGE
        whole: int = self._libc.mmap(None, self._size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._whole = whole
        self.start = (whole + HUGE) & -HUGE

    def map(self, page: int, pages: int, flags: int, fd: int = -1, prot: int = RW, offset: int = 0) -> int:
        assert self.start + (page + pages) * PAGE <= self._whole + self._size
        address: int = self._libc.mmap(self.start + page * PAGE, pages * PAGE, prot, flags | MAP_FIXED, fd, offset)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        return address

    def unmap(self, address: int, length: int) -> None:
        assert not self._libc.munmap(address, length)

    def close(self) -> None:
        self.unmap(self._whole, self._size)


@pytest.fixture
def space() -> Iterator[Space]:
    space = Space()
    yield space
    space.close()


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("with blank\nand newline")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


def only(address: int, length: int = PAGE) -> maps.Piece:
    (piece,) = backing(ME, address, length)
    assert (piece.address, piece.length) == (address, length)
    return piece


def test_a_range_of_everything(space: Space, memfd: int) -> None:
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for hole in (0, 11):
        space.unmap(space.start + hole * PAGE, PAGE)
    space.map(1, 4, anonymous)
    space.map(5, 2, anonymous, prot=0)
    space.map(7, 4, mmap.MAP_SHARED, memfd, mmap.PROT_READ, 3 * PAGE)
    space.map(12, 4, mmap.MAP_PRIVATE, memfd)
    pieces = backing(ME, space.start, 15 * PAGE)
    found = [((piece.address - space.start) // PAGE, piece.length // PAGE, piece.kind, piece.prot) for piece in pieces]
    assert found == [
        (0, 1, Kind.HOLE, 0),
        (1, 4, Kind.ANONYMOUS, RW),
        (5, 2, Kind.ANONYMOUS, 0),
        (7, 4, Kind.SHARED, mmap.PROT_READ),
        (11, 1, Kind.HOLE, 0),
        (12, 3, Kind.PRIVATE, RW),
    ]
    inside = only(space.start + 8 * PAGE, 2 * PAGE)
    assert inside.offset == 4 * PAGE
    assert inside.inode == (os.fstat(memfd).st_dev, os.fstat(memfd).st_ino)


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        pytest.param(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, Kind.ANONYMOUS, id="private"),
        pytest.param(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, Kind.SHARED, id="shared"),
        pytest.param(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, Kind.PRIVATE, id="huge"),
        pytest.param(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE, Kind.SHARED, id="shared-huge"),
    ],
)
def test_anonymous_memory(space: Space, flags: int, kind: Kind) -> None:
    try:
        address = space.map(0, HUGE // PAGE, flags)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    assert only(address).kind is kind


def test_named_anonymous_memory_is_adoptable(space: Space) -> None:
    address = space.map(0, 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc = ctypes.CDLL(None)
    prctl = (0x53564D41, 0, ctypes.c_ulong(address), ctypes.c_ulong(PAGE), b"guest ram")
    if libc.prctl(*prctl):
        pytest.skip("this kernel does not name anonymous memory")
    assert only(address).kind is Kind.ANONYMOUS


def test_stack_heap_and_vdso() -> None:
    kinds = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        name = line.split(maxsplit=5)[5:]
        if name and name[0].startswith("["):
            kinds[name[0]] = only(int(line.partition("-")[0], 16)).kind
    assert kinds["[stack]"] is Kind.OTHER
    assert kinds["[vdso]"] is Kind.OTHER
    assert kinds["[heap]"] is Kind.ANONYMOUS


@pytest.mark.parametrize("address", [0, 1 << 47, 1 << 63, (1 << 64) - PAGE, 1 << 70, -PAGE])
def test_addresses_where_nothing_can_be(address: int) -> None:
    assert only(address).kind is Kind.HOLE


def test_nothing_of_nobody() -> None:
    assert backing(ME, 0, 0) == []
    with pytest.raises(ProcessLookupError):
        backing((1 << 22) + 1, 0, PAGE)


@pytest.mark.parametrize("how", ["map_files", "descriptor"])
def test_memfd_is_opened(space: Space, memfd: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = space.map(0, 4, mmap.MAP_SHARED, memfd, offset=PAGE)
    if how == "descriptor":
        deny_map_files(monkeypatch)
    read_only = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY)
    fd = open_backing(ME, only(address))
    try:
        assert os.path.sameopenfile(fd, memfd)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        os.pwrite(fd, b"there", only(address + PAGE).offset)
        assert ctypes.string_at(address + PAGE, 5) == b"there"
    finally:
        os.close(fd)
        os.close(read_only)


def deny_map_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(link: Path) -> int:
        raise PermissionError(errno.EPERM, "no CAP_CHECKPOINT_RESTORE", str(link))

    monkeypatch.setattr(maps, "_open_mapped", denied)


def test_file_that_nothing_leads_to(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    address = space.map(0, 1, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    deny_map_files(monkeypatch)
    with pytest.raises(PermissionError):
        open_backing(ME, only(address))


def test_shared_anonymous_memory_is_opened(space: Space) -> None:
    address = space.map(0, 4, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    fd = open_backing(ME, only(address, 4 * PAGE))
    try:
        os.pwrite(fd, b"there", 3 * PAGE)
        assert ctypes.string_at(address + 3 * PAGE, 5) == b"there"
    finally:
        os.close(fd)


def test_file_opened_for_reading_stays_so(space: Space, tmp_path: Path) -> None:
    path = tmp_path / "deleted, with blank"
    path.write_bytes(bytes(PAGE))
    source = os.open(path, os.O_RDONLY)
    address = space.map(0, 1, mmap.MAP_SHARED, source, mmap.PROT_READ)
    os.close(source)
    path.unlink()
    fd = open_backing(ME, only(address))
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    finally:
        os.close(fd)


def test_device_is_not_opened(space: Space) -> None:
    attributes = (ctypes.c_uint64 * 16)(1 | 128 << 32)  # struct perf_event_attr: PERF_TYPE_SOFTWARE, its size
    libc = ctypes.CDLL(None, use_errno=True)
    perf = libc.syscall(298, attributes, 0, -1, -1, 0)
    if perf < 0:
        pytest.skip("no perf events to map")
    try:
        address = space.map(0, 1, mmap.MAP_SHARED, perf)
        with raises_errno(errno.ENODEV):
            open_backing(ME, only(address))
    finally:
        os.close(perf)


def test_mapping_that_is_gone(space: Space, memfd: int) -> None:
    address = space.map(0, 1, mmap.MAP_SHARED, memfd)
    piece = only(address)
    space.unmap(address, PAGE)
    with pytest.raises(FileNotFoundError):
        open_backing(ME, piece)


def written_pages(address: int, pages: list[int], among: int) -> list[tuple[int, int]]:
    """Write to pages, at least one apart, among so many; the runs that they are."""
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(among * PAGE), mmap.MADV_NOHUGEPAGE)
    for page in pages:
        ctypes.memset(address + page * PAGE, 1, 1)
    return [(address + page * PAGE, address + (page + 1) * PAGE) for page in pages]


@pytest.mark.parametrize("how", [pagemap.scan, pagemap.read])
def test_pages_that_hold_something(space: Space, how: object) -> None:
    assert callable(how)
    address = space.map(0, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    expected = written_pages(address, list(range(1, 4096, 2)), 4096)  # more runs than go into one call
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        try:
            assert list(how(file.fileno(), address, 4096 * PAGE)) == expected
        except OSError as error:
            if error.errno != errno.ENOTTY:
                raise
            pytest.skip("PAGEMAP_SCAN needs Linux 6.7")
    assert list(pagemap.present(ME, address, 4096 * PAGE)) == expected


def test_pages_that_were_only_read_hold_nothing(space: Space) -> None:
    address = space.map(0, 16, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    expected = written_pages(address, [3], 16)
    assert ctypes.string_at(address + 5 * PAGE, 1) == b"\0"
    assert list(pagemap.present(ME, address, 16 * PAGE)) == expected
