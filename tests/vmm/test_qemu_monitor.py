"""What QEMU's monitor does with a guest: stop it, let it go on, save and restore it, move it to another QEMU, reset."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import paths
from tests.vmm.conftest import Linux
from tests.vmm.qemu import EXIT_DEVICE, POWERED_OFF, Qemu
from tests.vmm.verdicts import passed

SECONDS = 300

pytestmark = pytest.mark.timeout(2 * SECONDS)

BEAT = r"^beat (\d+) at ([\d.]+) real ([\d.]+)\n"


def beat(qemu: Qemu) -> tuple[int, float, float]:
    """The guest's next sign of life: its number, the guest's monotonic clock and its wall clock, in seconds."""
    number, monotonic, real = qemu.expect(BEAT, int(__import__("os").environ.get("S", "200"))).groups()
    return int(number), float(monotonic), float(real)


def test_stopped_saved_moved_and_reset(start_qemu: Callable[..., Qemu], linux: Linux, tmp_path: Path) -> None:
    """One guest goes through all of it; its clock and its computations notice the reset only."""
    disk, cable = tmp_path / "disk.qcow2", tmp_path / "migration"
    try:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    except FileNotFoundError:
        paths.missing("no qemu-img")
    machine = (
        *("-M", "q35", "-cpu", "host", "-smp", "2", "-m", "512", *EXIT_DEVICE),
        *("-drive", f"file={disk},format=qcow2,if=virtio"),
        *linux.arguments("", cpus=2, alive="", tlb=""),
    )
    qemu = start_qemu("on", *machine, monitor=True)
    monitor = qemu.monitor
    assert monitor
    beat(qemu)

    monitor.execute("stop")
    monitor.event("STOP")
    registers = monitor.human("info registers -a")
    assert monitor.human("info registers -a") == registers
    monitor.execute("cont")
    beat(qemu)

    assert monitor.human("savevm here") == ""
    saved = beat(qemu)
    for _ in range(5):
        later = beat(qemu)
    assert monitor.human("loadvm here") == ""
    number = later[0]
    while number >= later[0]:  # what was on its way when it was loaded
        number, monotonic, _ = beat(qemu)
    assert abs(number - saved[0]) <= 2
    assert monotonic < later[1]

    other = start_qemu("on", *machine, "-incoming", f"unix:{cable}", monitor=True)
    assert other.monitor
    monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])
    monitor.execute("migrate", uri=f"unix:{cable}")
    while monitor.event("MIGRATION", SECONDS)["data"]["status"] != "completed":
        pass
    arrived = beat(other)
    assert arrived[0] > number
    assert arrived[1] > monotonic
    assert beat(other)[0] == arrived[0] + 1
    monitor.execute("quit")
    assert qemu.wait(SECONDS).status == 0

    other.monitor.execute("system_reset")
    assert other.monitor.event("RESET")["data"]["guest"] is False
    while beat(other)[0] != 0:  # those from before the reset
        pass
    other.type("quit\n")
    passed(other.wait(SECONDS), ["alive", "tlb"], POWERED_OFF)
