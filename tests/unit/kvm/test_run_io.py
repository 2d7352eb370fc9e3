"""KVM_RUN and I/O: where RIP stands at an exit, and how the next KVM_RUN completes it."""

from __future__ import annotations

import ctypes
import errno

import pytest

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.vm import EnableCap
from tests.unit.kvm.inprocess import CODE, DATA, MMIO, PAGE, Machine, finish

HLT = "f4"
OUT80 = "e680"  # out 0x80, al
LOAD, STORE = "488b03", "488903"  # mov rax, [rbx]; mov [rbx], rax


# Port I/O


def test_out_leaves_rip_and_the_next_run_moves_it() -> None:
    machine = Machine(OUT80 + HLT)
    machine.set_regs(rax=0x41)
    assert machine.run() == 0
    io = machine.page.io
    assert machine.page.exit_reason == Exit.IO
    assert (io.direction, io.port, io.size, io.count, io.data_offset) == (1, 0x80, 1, 1, PAGE)
    assert machine.pio[0] == 0x41
    assert machine.regs.rip == CODE
    assert finish(machine) == -errno.EINTR
    assert machine.regs.rip == CODE + 2
    assert machine.page.exit_reason == Exit.IO  # immediate_exit does not touch it
    assert machine.run() == 0
    assert machine.page.exit_reason == Exit.HLT


def test_a_client_that_moves_rip_is_believed() -> None:
    machine = Machine(OUT80 + "90" * 6 + HLT)
    machine.run()
    machine.set_regs(rip=CODE + 8)
    machine.run()
    assert machine.page.exit_reason == Exit.HLT
    assert machine.regs.rip == CODE + 9


@pytest.mark.parametrize("quirk", [True, False])
def test_port_7e(quirk: bool) -> None:
    machine = Machine("e67e" + HLT)
    if not quirk:
        machine.call(machine.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.DISABLE_QUIRKS2, args=(1 << 3,)))
    machine.run()
    assert machine.regs.rip == (CODE + 2 if quirk else CODE)
    machine.run()
    assert machine.regs.rip == CODE + 3


@pytest.mark.parametrize(
    ("code", "size", "rax"),
    [("ec", 1, 0xFFFF_FFFF_FFFF_FF11), ("66ed", 2, 0xFFFF_FFFF_FFFF_2211), ("ed", 4, 0x4433_2211)],
)
def test_in_merges_or_extends(code: str, size: int, rax: int) -> None:
    machine = Machine(code + HLT)
    machine.set_regs(rax=(1 << 64) - 1, rdx=0x1234)
    machine.run()
    io = machine.page.io
    assert (io.direction, io.port, io.size, io.count) == (0, 0x1234, size, 1)
    machine.pio[:4] = [0x11, 0x22, 0x33, 0x44]
    assert finish(machine) == -errno.EINTR
    assert (machine.regs.rax, machine.regs.rip) == (rax, CODE + len(code) // 2)


def test_rep_ins_comes_in_batches() -> None:
    machine = Machine("f36c" + HLT)  # rep insb
    machine.set_regs(rdi=DATA + PAGE - 100, rcx=2000, rdx=0x80)
    counts = []
    while machine.run() == 0 and machine.page.exit_reason == Exit.IO:
        counts.append(machine.page.io.count)
        machine.pio[: counts[-1]] = [len(counts)] * counts[-1]
    assert counts == [100, 1024, 876]  # to the page's end; what the buffer holds; the rest
    assert machine.at(DATA + PAGE - 101, 102) == b"\0" + b"\1" * 100 + b"\2"
    assert (machine.regs.rcx, machine.regs.rdi) == (0, DATA + PAGE - 100 + 2000)


def test_outs_is_one_exit_an_element() -> None:
    machine = Machine("f36e" + HLT)  # rep outsb
    machine.put(DATA, b"abc")
    machine.set_regs(rsi=DATA, rcx=3, rdx=0x80)
    written = []
    while machine.run() == 0 and machine.page.exit_reason == Exit.IO:
        assert machine.page.io.count == 1
        written.append(machine.pio[0])
    assert bytes(written) == b"abc"
    assert machine.page.exit_reason == Exit.HLT


# MMIO


def test_mmio_read() -> None:
    machine = Machine(LOAD + HLT)
    machine.set_regs(rbx=MMIO + 8)
    machine.run()
    mmio = machine.page.mmio
    assert machine.page.exit_reason == Exit.MMIO
    assert (mmio.phys_addr, mmio.len, mmio.is_write) == (MMIO + 8, 8, 0)
    mmio.data[:] = list(range(8))
    assert finish(machine) == -errno.EINTR
    assert (machine.regs.rax, machine.regs.rip) == (0x0706050403020100, CODE + 3)


def test_mmio_write_is_done_when_it_is_reported() -> None:
    machine = Machine(STORE + HLT)
    machine.set_regs(rbx=MMIO, rax=0x1122334455667788)
    machine.run()
    mmio = machine.page.mmio
    assert (mmio.phys_addr, mmio.len, mmio.is_write) == (MMIO, 8, 1)
    assert bytes(mmio.data) == (0x1122334455667788).to_bytes(8, "little")
    assert machine.regs.rip == CODE + 3
    machine.run()
    assert machine.page.exit_reason == Exit.HLT


def test_an_access_across_pages_is_an_exit_a_piece() -> None:
    machine = Machine(LOAD + STORE + HLT)
    machine.set_regs(rbx=MMIO + PAGE - 3)
    machine.run()
    assert (machine.page.mmio.phys_addr, machine.page.mmio.len) == (MMIO + PAGE - 3, 3)
    machine.page.mmio.data[:3] = [1, 2, 3]
    machine.run()
    assert (machine.page.mmio.phys_addr, machine.page.mmio.len) == (MMIO + PAGE, 5)
    machine.page.mmio.data[:5] = [4, 5, 6, 7, 8]
    machine.run()
    assert machine.regs.rax == 0x0807060504030201
    pieces = []
    while machine.page.exit_reason == Exit.MMIO:
        mmio = machine.page.mmio
        pieces.append((mmio.phys_addr, mmio.len, mmio.is_write, bytes(mmio.data[: mmio.len])))
        machine.run()
    assert pieces == [(MMIO + PAGE - 3, 3, 1, b"\1\2\3"), (MMIO + PAGE, 5, 1, b"\4\5\6\7\x08")]
    assert machine.page.exit_reason == Exit.HLT


def test_write_to_a_read_only_slot_is_mmio() -> None:
    machine = Machine(LOAD + STORE + HLT)
    rom = machine.client.memory(2 * PAGE)
    ctypes.memmove(rom, b"romdata!", 8)
    machine.set_slot(1, MMIO, rom, 2 * PAGE, flags=2)
    machine.set_regs(rbx=MMIO)
    machine.run()
    assert machine.regs.rax == int.from_bytes(b"romdata!", "little")
    assert (machine.page.exit_reason, machine.page.mmio.is_write) == (Exit.MMIO, 1)
    assert ctypes.string_at(rom, 8) == b"romdata!"
