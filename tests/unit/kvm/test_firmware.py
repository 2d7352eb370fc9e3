"""Real mode from the reset vector on: a few instructions, and Debian's SeaBIOS on a machine without devices."""

from __future__ import annotations

import ctypes
import struct
import time
from pathlib import Path

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.cpuid import Cpuid2
from kvmfs.abi.exits import Exit
from kvmfs.abi.memory import KVM_MEM_READONLY
from kvmfs.abi.vcpu import Interrupt
from kvmfs.kvm.cpuid import supported_cpuid
from tests.unit.kvm.inprocess import Machine

FOUR_GIB = 1 << 32
BIOS = Path("/usr/share/seabios/bios-256k.bin")


class Reset(Machine):
    """The machine's second vCPU, as it is after RESET, and firmware below 4 GiB."""

    def __init__(self, rom: bytes) -> None:
        super().__init__("f4")
        self.vcpu = self.client.nodes[self.call(self.vm, ioctls.KVM_CREATE_VCPU, 1)]
        self.page = self.vcpu.run
        entries = supported_cpuid().entries
        table = ctypes.create_string_buffer(bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries)))
        self.vcpu.ioctl(self.client, ioctls.KVM_SET_CPUID2.number, ctypes.addressof(table))
        self.rom = self.client.memory(len(rom))
        ctypes.memmove(self.rom, rom, len(rom))
        self.set_slot(1, FOUR_GIB - len(rom), self.rom, len(rom), KVM_MEM_READONLY)

    def run(self) -> int:
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(self.vcpu.enter)
        return super().run()


def test_reset_vector() -> None:
    """The first instruction is at 0xFFFFFFF0; a far jump leaves the high base behind (SDM vol. 3, 10.1.4)."""
    rom = bytearray(b"\xf4" * 4096)
    rom[-16:-11] = bytes.fromhex("ea00000010")  # jmp 1000:0
    machine = Reset(bytes(rom))
    machine.put(0x10000, bytes.fromhex("b041 e680 f4"))
    assert machine.run() == 0
    assert (machine.page.exit_reason, machine.page.io.port, machine.pio[0]) == (Exit.IO, 0x80, 0x41)
    assert machine.run() == 0
    assert (machine.page.exit_reason, machine.regs.rip) == (Exit.HLT, 5)


CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
HOST_BRIDGE = struct.pack("<HH36xHH", 0x8086, 0x1237, 0x1AF4, 0x1100).ljust(256, b"\0")  # QEMU's i440FX at 00:00.0


class Board:
    """Answers to port I/O: a CMOS with 2 MiB of memory, a debug console, a host bridge."""

    def __init__(self) -> None:
        self.cmos = bytearray(128)
        self.cmos[0x0B], self.cmos[0x0D] = 2, 0x80  # 24 hours; the battery is good
        self.cmos[0x30:0x32] = (1024).to_bytes(2, "little")  # KiB above 1 MiB
        self.index, self.console = 0, b""
        self.bridge, self.address = bytearray(HOST_BRIDGE), 0

    def read(self, port: int, size: int) -> int:
        if port == 0x402:
            return 0xE9  # QEMU's console is there
        if port == 0x71:
            return self.cmos[self.index]
        if port & ~3 == CONFIG_DATA and self.address & 0xFFFF00 == 0:
            at = (self.address & 0xFC) + (port & 3)
            return int.from_bytes(self.bridge[at : at + size], "little")
        if port == 0x61:
            return 0x20  # the timer that the BIOS waits for is always done
        return 0 if port == 0x64 else (1 << 8 * size) - 1

    def write(self, port: int, value: int, size: int) -> None:
        if port == 0x402:
            self.console += bytes([value & 0xFF])
        elif port == CONFIG_ADDRESS:
            self.address = value
        elif port & ~3 == CONFIG_DATA and self.address & 0xFFFF00 == 0:
            at = (self.address & 0xFC) + (port & 3)
            self.bridge[at : at + size] = value.to_bytes(size, "little")
        elif port == 0x70:
            self.index = value & 0x7F
        elif port == 0x71:
            self.cmos[self.index] = value & 0xFF


def serve(machine: Reset, board: Board) -> Exit:
    """Run until an exit that the board has no answer to."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert machine.run() == 0
        reason = Exit(machine.page.exit_reason)
        if reason == Exit.IO:
            io = machine.page.io
            for number in range(io.count):
                at = machine.vcpu.page + io.data_offset + number * io.size
                if io.direction == 0:
                    value = board.read(io.port, io.size) & (1 << 8 * io.size) - 1
                    ctypes.memmove(at, value.to_bytes(io.size, "little"), io.size)
                else:
                    board.write(io.port, int.from_bytes(ctypes.string_at(at, io.size), "little"), io.size)
        elif reason == Exit.MMIO:
            for number in range(8):
                machine.page.mmio.data[number] = 0xFF
        elif reason == Exit.HLT and machine.page.if_flag:
            machine.call(machine.vcpu, ioctls.KVM_INTERRUPT, Interrupt(irq=8))  # the timer
        else:
            return reason
    raise AssertionError(board.console.decode("latin-1"))


@pytest.mark.skipif(not BIOS.exists(), reason="no SeaBIOS: apt-get install seabios")
def test_seabios() -> None:
    """16-bit, 32-bit and unreal code up to the search for a disk; it then reboots, with a triple fault at last."""
    rom = BIOS.read_bytes()
    machine, board = Reset(rom), Board()
    machine.put((1 << 20) - len(rom), rom)
    reason = serve(machine, board)
    assert b"Booting from Hard Disk" in board.console
    assert b"No bootable device" in board.console
    assert reason == Exit.SHUTDOWN
    assert machine.vcpu.state[S.CR0] & S.CR0_PE
