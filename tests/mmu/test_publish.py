"""The protocol of layout.py on real threads: once a change is published and the vCPU has answered, the old is gone."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M
from kvmfs.jit.mmu import tables

from . import naive
from .machine import PAGE, Block, Machine

POISON = b"\xee" * 8


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    """Threads that wait for each other in Python should not wait for the interpreter."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@contextmanager
def running(machine: Machine, la: int) -> Iterator[set[bytes]]:
    """A thread that runs the vCPU: it reads eight bytes at `la` all the time. Yields what it has seen."""
    seen: set[bytes] = set()
    stop = threading.Event()
    started = threading.Event()

    def run() -> None:
        buffer = ctypes.create_string_buffer(8)
        machine("enter_guest")
        while not stop.is_set():
            if machine.vcpu[S.REQUEST] & S.REQ_TLB_FLUSH:
                machine("acknowledge_flush")
            if machine("read_slow", la, 8, ctypes.addressof(buffer)):
                seen.add(buffer.raw)
                started.set()
        machine("leave_guest")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(10)
        yield seen
    finally:
        stop.set()
        thread.join()


def publish(machine: Machine, field: int, table: tables.Table) -> None:
    machine.vm[field] = tables.address(table)
    machine.vm[M.GENERATION] += 1
    machine.vcpu[S.REQUEST] |= S.REQ_TLB_FLUSH  # the only bit in use here
    while machine.vcpu[S.REQUEST] & S.REQ_TLB_FLUSH and machine.vcpu[S.MODE]:
        pass


def test_slot_that_moves_is_never_read_at_its_old_place() -> None:
    machine = Machine(naive.Memory([naive.Slot(0, 1, bytearray(PAGE))]))
    machine.set_cpu(naive.Cpu(paging=False, long=False))
    places = [machine.shared[0], Block(PAGE)]
    places[0].write(0, b"........")
    with running(machine, 0) as seen:
        for turn in range(100):
            new, old = places[(turn + 1) % 2], places[turn % 2]
            new.write(0, turn.to_bytes(8, "little"))
            touched = Block(tables.touched_bytes(1))  # so that the client is asked, with MODE 0, each time
            record = tables.slot_record(0, 1, host=new.address, client=1 << 40, touched=touched.address)
            table = tables.table([(0, ctypes.addressof(record))])
            publish(machine, M.SLOTS, table)
            old.write(0, POISON)
            kept = (table, record, touched)  # until the next turn has published its own
    del kept
    assert POISON not in seen


def test_conversion_is_seen_by_all_once_it_is_published() -> None:
    memory = naive.Memory([naive.Slot(0, 1, bytearray(b"shared  " * 512), bytearray(b"private " * 512))])
    machine = Machine(memory)
    machine.set_cpu(naive.Cpu(paging=False, long=False))
    table, keep = machine.attribute_table, []
    with running(machine, 0) as seen:
        for turn in range(100):
            private = turn % 2 == 0
            table = tables.with_attributes(table, 0, 1, naive.PRIVATE if private else 0)
            keep.append(table)
            stale, current = machine.shared[0], machine.private[0]
            if not private:
                stale, current = current, stale
            current.write(0, turn.to_bytes(8, "little"))
            publish(machine, M.ATTRIBUTES, table)
            stale.write(0, POISON)
    assert POISON not in seen
