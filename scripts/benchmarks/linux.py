"""Debian's Linux in QEMU, on kvmfs and on TCG: from start to the guest's power-off; and what an idle guest costs.

`scripts/bench linux` prints this alone. KVMFS_VM names a directory with the kernel's vmlinux.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.tree import descendants
from tests.support.cpio import Archive

BUSYBOX = Path("/bin/busybox")
POWER_OFF = "exec /bin/busybox poweroff -f"
IDLE = "echo idle; while :; do /bin/busybox sleep 1000; done"
SETTLED, MEASURED = 5, 20  # seconds


def initramfs(script: str) -> bytes:
    """A busybox and an init that runs a script."""
    archive = Archive()
    for name in ("bin", "dev"):
        archive.directory(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    archive.file("init", f"#!/bin/busybox sh\n{script}\n".encode(), 0o755)
    return archive.finish()


def qemu(accelerator: str, work: Path, script: str) -> list[str]:
    """The command: one CPU, 512 MiB, the serial console on standard output."""
    image = work / "initramfs.cpio"
    image.write_bytes(initramfs(script))
    command = [
        "qemu-system-x86_64", "-accel", accelerator, "-M", "q35", "-cpu", "max", "-smp", "1", "-m", "512",
        "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
        "-kernel", f"{os.environ['KVMFS_VM']}/vmlinux", "-initrd", str(image),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off 8250.nr_uarts=1",
    ]  # fmt: skip
    return [sys.executable, "-m", "kvmfs", "run", "--", *command] if accelerator == "kvm" else command


def boot(accelerator: str) -> float:
    """Seconds from start to power-off."""
    with tempfile.TemporaryDirectory() as work:
        command = qemu(accelerator, Path(work), POWER_OFF)
        started = time.perf_counter()
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
        return time.perf_counter() - started


def idle() -> float:
    """Per cent of a core that an idle guest costs: QEMU, the VM's process and the broker."""
    with tempfile.TemporaryDirectory() as work:
        command = qemu("kvm", Path(work), IDLE)
        launcher = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            assert launcher.stdout
            while (line := launcher.stdout.readline()).strip() != b"idle":
                if not line:
                    raise RuntimeError("the guest did not get to its init")
            time.sleep(SETTLED)
            started, before = time.perf_counter(), spent(launcher.pid)
            time.sleep(MEASURED)
            return (spent(launcher.pid) - before) / (time.perf_counter() - started) * 100
        finally:
            launcher.terminate()
            launcher.communicate()


def spent(pid: int) -> float:
    """Seconds that the threads of a process and of its descendants have run, to the nanosecond (not to a tick)."""
    return sum(map(_thread_seconds, _threads(pid)))


def _threads(pid: int) -> Iterator[Path]:
    for process in (pid, *descendants(pid)):
        yield from Path(f"/proc/{process}/task").iterdir()


def _thread_seconds(task: Path) -> float:
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def table() -> Table:
    shown = Table(
        "Linux 6.12 in QEMU", "kvmfs", "QEMU TCG", "ratio", "wanted", title_justify="left", header_style="bold"
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    ours, theirs = boot("kvm"), boot("tcg")
    shown.add_row("start to power-off", f"{ours:.1f} s", f"{theirs:.1f} s", f"{ours / theirs:.1f}", "15 or less")
    shown.add_row("an idle guest, of a core", f"{idle():.2f} %", "", "", "1 % or less")
    return shown


if __name__ == "__main__":
    Console(width=None if sys.stdout.isatty() else 120).print(table())
