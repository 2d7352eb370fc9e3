"""Linux to its first process in a monitor of ours that makes other monitors' calls: programs/monitor.

Each is booted as its model boots: Firecracker enters an ELF image in 64-bit mode, crosvm a bzImage, Cloud Hypervisor an
ELF image by its PVH note in 32-bit mode, kvmtool a bzImage in real mode. Memory, interrupt controllers, the way of an
interrupt and of a kick are the models', too; twenty times during the boot all vCPUs are paused and resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Finished
from tests.vmm.verdicts import passed

COMMAND_LINE = "console=ttyS0 earlyprintk=serial,0x3f8 quiet panic=-1 mitigations=off 8250.nr_uarts=1"
CHECKS = "timer,preempt,fpu,tlb,serial"

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    ("model", "image", "cpus"),
    [
        ("firecracker", "vmlinux", 1),
        ("crosvm", "vmlinuz", 2),
        ("cloud-hypervisor", "vmlinux", 2),
        ("kvmtool", "vmlinuz", 1),
    ],
)
def test_linux_boots(
    kvmfs_run: Callable[..., Finished], monitor: Path, kernel: Path, initramfs: Path, model: str, image: str, cpus: int
) -> None:
    checks = f"cpus:{cpus},{CHECKS}"
    command = (monitor, model, kernel.with_name(image), initramfs, "512", str(cpus), f"{COMMAND_LINE} check={checks}")
    done = kvmfs_run(*command, timeout=550)
    passed(done, [check.partition(":")[0] for check in checks.split(",")], 0)
    assert "20 pauses" in done.output, done
