"""QEMU, unmodified, with its interrupt controllers in KVM: SeaBIOS gets through its start and finds nothing to boot.

On its way it takes timer interrupts, reprograms PIC and PIT, wakes the other processors by INIT and SIPI, and runs an
option ROM that KVM_SET_VAPIC_ADDR is for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

QEMU = "qemu-system-x86_64"
SECONDS = 120
END = "No bootable device."


@pytest.mark.usefixtures("no_leaks")
@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("irqchip", ["on", "split"])
@pytest.mark.parametrize(("machine", "processors"), [("pc", 1), ("pc", 2), ("q35", 2)])
def test_seabios(tmp_path: Path, machine: str, irqchip: str, processors: int) -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(f"no {QEMU}: apt-get install qemu-system-x86")
    log, output = tmp_path / "bios.log", tmp_path / "output"
    log.touch()
    command = [
        sys.executable, "-m", "kvmfs", "run", "--", QEMU, "-accel", f"kvm,kernel-irqchip={irqchip}",
        "-machine", machine, "-smp", str(processors), "-m", "64", "-display", "none", "-nodefaults", "-no-reboot",
        "-chardev", f"file,id=bios,path={log}", "-device", "isa-debugcon,iobase=0x402,chardev=bios",
    ]  # fmt: skip
    with output.open("wb") as file:
        qemu = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until = time.monotonic() + SECONDS
        while END not in log.read_text(errors="replace"):
            if qemu.poll() is not None or time.monotonic() > until:
                pytest.fail(f"{log.read_text(errors='replace')[-2000:]}\n{output.read_text()}", pytrace=False)
            time.sleep(0.1)
    finally:
        qemu.terminate()
        qemu.wait()
    assert f"Found {processors} cpu(s)" in log.read_text()
