"""Linux to its first process by the ioctls of Firecracker and crosvm: no firmware, no real mode on the first CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import Finished
from tests.vmm.verdicts import passed

COMMAND_LINE = "console=ttyS0 earlyprintk=serial,0x3f8 quiet panic=-1 mitigations=off 8250.nr_uarts=0"
CHECKS = "timer,preempt,fpu,tlb"

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("cpus", [1, 2])
def test_linux_boots(
    kvmfs_run: Callable[..., Finished], boot64: Path, kernel: Path, initramfs: Path, cpus: int
) -> None:
    checks = f"cpus:{cpus},{CHECKS}"
    command_line = f"{COMMAND_LINE} check={checks}"
    done = kvmfs_run(boot64, kernel, initramfs, "512", str(cpus), command_line, timeout=360)
    passed(done, [check.partition(":")[0] for check in checks.split(",")], 0)
