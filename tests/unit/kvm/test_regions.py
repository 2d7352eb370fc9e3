"""Client memory made reachable: adopted once, found again, adopted ahead; mappings are released."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from kvmfs.kvm.caller import Backing, Kind
from kvmfs.kvm.client_maps import ClientMaps, Vma
from kvmfs.kvm.regions import PATIENCE, Regions, release
from tests.unit.kvm.fakes import PAGE, FakeClient

START = 0x10_0000
LENGTH = 64 * PAGE
MAPS = Path("/proc/self/maps")


class Client(FakeClient):
    """Anonymous memory from START on, which adoption replaces by memfds; it is its own ClientMaps."""

    def __init__(self) -> None:
        super().__init__()
        self.vmas = [Vma(START, START + LENGTH, 0, 0, 0)]
        self.refused = False

    def at(self, address: int) -> Vma | None:
        return next((vma for vma in self.vmas if vma.start <= address < vma.end), None)

    def backing(self, address: int, length: int) -> list[Backing]:
        pieces = []
        for vma in self.vmas:
            start, end = max(vma.start, address), min(vma.end, address + length)
            if start < end:
                kind = Kind.SHARED if vma.inode else Kind.ANONYMOUS
                pieces.append(Backing(start, end - start, kind))
        assert not any(piece.kind is Kind.SHARED for piece in pieces), "the broker is not to be asked again"
        return pieces

    def adopt(self, address: int, length: int) -> int:
        if self.refused:
            raise OSError(errno.EBUSY, "")
        memfd = super().adopt(address, length)
        status = os.fstat(memfd)
        vma = self.at(address)
        assert vma is not None
        assert not vma.inode, "adopted twice"
        self.vmas.remove(vma)
        self.vmas.append(Vma(address, address + length, 0, status.st_dev, status.st_ino))
        for start, end in ((vma.start, address), (address + length, vma.end)):
            if start < end:
                self.vmas.append(Vma(start, end, 0, 0, 0))
        self.vmas.sort(key=lambda vma: vma.start)
        return memfd


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def regions(client: Client) -> Regions:
    return Regions(client)


def put(host: int, value: int) -> None:
    ctypes.c_uint64.from_address(host).value = value


def at(host: int) -> int:
    return ctypes.c_uint64.from_address(host).value


def test_memory_adopted_before_is_found(client: Client, regions: Regions) -> None:
    (first,) = regions.reach(client, START, 4 * PAGE)
    put(first.host + PAGE, 42)
    (second,) = regions.reach(client, START + PAGE, 2 * PAGE)
    assert at(second.host) == 42
    assert len(client.adopted) == 1
    release([first])
    assert at(second.host) == 42  # kept by its second user
    release([second])


def test_a_range_that_begins_in_adopted_memory(client: Client, regions: Regions) -> None:
    first = regions.reach(client, START, 4 * PAGE)
    pieces = regions.reach(client, START + 2 * PAGE, 4 * PAGE)
    assert [(piece.address, piece.length) for piece in pieces] == [
        (START + 2 * PAGE, 2 * PAGE),
        (START + 4 * PAGE, 2 * PAGE),
    ]
    assert client.adopted == [(START, 4 * PAGE), (START + 4 * PAGE, 2 * PAGE)]
    release(first + pieces)


def test_many_neighbours_cost_few_adoptions(client: Client, regions: Regions) -> None:
    pieces = [piece for n in range(64) for piece in regions.reach(client, START + n * PAGE, PAGE)]
    assert [piece.address for piece in pieces] == [START + n * PAGE for n in range(64)]
    assert all(piece.host for piece in pieces)
    assert len(client.adopted) < PATIENCE + 5
    assert all(first + length <= START + LENGTH for first, length in client.adopted)
    release(pieces)


def test_strangers_are_adopted_as_asked(client: Client, regions: Regions) -> None:
    pieces = [piece for n in range(32) for piece in regions.reach(client, START + 2 * n * PAGE, PAGE)]
    assert {length for _, length in client.adopted} == {PAGE}
    release(pieces)


def test_adoption_refused_is_remote_and_tried_again(client: Client, regions: Regions) -> None:
    client.refused = True
    (piece,) = regions.reach(client, START, PAGE)
    assert not piece.host
    client.refused = False
    (piece,) = regions.reach(client, START, PAGE)
    assert piece.host
    release([piece])


def test_mappings_go_with_their_last_user(client: Client, regions: Regions) -> None:
    before = mappings()
    pieces = [piece for n in range(16) for piece in regions.reach(client, START + n * PAGE, PAGE)]
    assert mappings() > before
    release(pieces)
    assert mappings() == before


def mappings() -> int:
    return MAPS.read_text().count("memfd:adopted")


def test_client_maps_of_this_process() -> None:
    maps = ClientMaps(os.getpid())
    start, end = (int(part, 16) for part in MAPS.read_text().split(maxsplit=1)[0].split("-"))
    vma = maps.at(start)
    if vma is None:
        pytest.skip("no PROCMAP_QUERY before Linux 6.11")
    assert (vma.start, vma.end) == (start, end)
    assert maps.at(0) is None
    os.close(maps.fd)
    assert ClientMaps(-1).at(start) is None
