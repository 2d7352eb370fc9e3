"""QEMU's gdbstub: KVM_SET_GUEST_DEBUG with software and hardware breakpoints, watchpoints and single step."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from tests.vmm import gdb
from tests.vmm.gdb import RAX, RIP, TRAPPED, Debugger
from tests.vmm.qemu import EXIT_DEVICE, Qemu

BOOT, DATA = 0x7C00, 0x7E00
SECTOR = bytes.fromhex(
    "31db 8edb"  # 00 xor bx, bx; mov ds, bx
    "b83412"  # 04 mov ax, 0x1234
    "40"  # 07 inc ax
    "a3007e"  # 08 mov [0x7e00], ax
    "40"  # 0b inc ax
    "e6f4"  # 0c out 0xf4, al
    "ebfe"  # 0e jmp $
)


def test_breakpoints_and_steps(start_qemu: Callable[..., Qemu], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "gdb"))
        listener.listen()
        listener.settimeout(60)
        qemu = start_qemu(
            "on",
            *("-m", "64", "-smp", "2", "-drive", f"file={disk},format=raw,if=ide", *EXIT_DEVICE, "-S"),
            *("-chardev", f"socket,id=gdb,path={tmp_path / 'gdb'}", "-gdb", "chardev:gdb"),
        )
        connection, _ = listener.accept()
    with Debugger(connection) as debugger:
        assert debugger.register(RIP) == 0xFFF0
        debugger.break_at(gdb.HARDWARE, BOOT)
        assert debugger.go().startswith(TRAPPED)
        assert debugger.register(RIP) == BOOT
        assert debugger.memory(BOOT, len(SECTOR)) == SECTOR
        debugger.unbreak(gdb.HARDWARE, BOOT)

        steps = []
        for _ in range(3):
            assert debugger.step().startswith(TRAPPED)
            steps.append(debugger.register(RIP) - BOOT)
        assert steps == [2, 4, 7]
        assert debugger.register(RAX) & 0xFFFF == 0x1234

        debugger.break_at(gdb.WRITE_WATCHPOINT, DATA, 2)
        assert f"watch:{DATA:016x}" in debugger.go()
        assert debugger.memory(DATA, 2) == bytes.fromhex("3512")
        debugger.unbreak(gdb.WRITE_WATCHPOINT, DATA, 2)

        debugger.break_at(gdb.SOFTWARE, BOOT + 0xC)
        assert debugger.go().startswith(TRAPPED)
        assert debugger.register(RIP) == BOOT + 0xC
        assert debugger.register(RAX) & 0xFFFF == 0x1236
        debugger.unbreak(gdb.SOFTWARE, BOOT + 0xC)
        debugger.set_memory(BOOT + 0xC, bytes.fromhex("e6f4"))
        debugger.detach()
    done = qemu.wait(60)
    assert done.status == (0x36 << 1 | 1) & 0xFF, done
