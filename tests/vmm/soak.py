"""Boot after boot: Linux in QEMU, several machines at a time, until one fails. `scripts/soak` runs it.

BOOTS, AT_ONCE: how many, in all and at a time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest

from tests.vmm.conftest import Disk, Linux
from tests.vmm.qemu import EXIT_DEVICE, POWERED_OFF, Qemu
from tests.vmm.verdicts import passed

BOOTS, AT_ONCE = int(os.environ.get("BOOTS", "30")), int(os.environ.get("AT_ONCE", "2"))
SECONDS = 400

# What the boots take in turn: interrupt controllers, machine, CPU model, CPUs.
MACHINES = (
    ("on", "q35", "host", 1),
    ("split", "pc", "max", 2),
    ("on", "pc", "qemu64", 2),
    ("off", "q35", "host", 1),
    ("split", "q35", "EPYC", 1),
)


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.timeout(SECONDS * BOOTS)
def test_boots_in_a_row(linux: Linux, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def boot(number: int) -> float:
        irqchip, model, cpu, cpus = MACHINES[number % len(MACHINES)]
        checks = {"cpus": cpus, "timer": "", "preempt": "", "fpu": "", "tlb": "", "disk": disk.checksum}
        arguments = (
            *("-M", model, "-cpu", cpu, "-smp", str(cpus), "-m", "512", "-no-reboot", *EXIT_DEVICE),
            *(*disk.arguments, "-device", "virtio-blk-pci,drive=disk", *linux.arguments("", **checks)),
        )
        with Qemu(tmp_path / str(number), irqchip, arguments) as qemu:
            done = qemu.wait(SECONDS)
        passed(done, checks, POWERED_OFF)
        return done.seconds

    with ThreadPoolExecutor(AT_ONCE) as pool:
        boots = {pool.submit(boot, number): number for number in range(BOOTS)}
        try:
            for count, future in enumerate(as_completed(boots), 1):
                machine = " ".join(map(str, MACHINES[boots[future] % len(MACHINES)]))
                with capsys.disabled():
                    print(f"boot {count} of {BOOTS}: {future.result():.1f} s ({machine})")
        finally:
            pool.shutdown(cancel_futures=True)
