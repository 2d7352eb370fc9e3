"""Debian's QEMU, unmodified, under `kvmfs run`, boots Linux; and its firmware asks which disk to boot from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import paths
from tests.support.processes import Finished
from tests.vmm.test_boot64 import verdicts

pytestmark = pytest.mark.timeout(600)

# -no-user-config and -nodefaults: what is on the command line is all there is.
MACHINE = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off 8250.nr_uarts=1"
POWERED_OFF = 1  # isa-debug-exit: the guest's status * 2 + 1


@pytest.fixture
def qemu(kvmfs_run: Callable[..., Finished]) -> Callable[..., Finished]:
    """`qemu(irqchip, *arguments, timeout=S)` runs it under kvmfs."""
    program = shutil.which("qemu-system-x86_64")
    if not program:
        paths.missing("no qemu-system-x86_64")

    def run(irqchip: str, *arguments: str | Path, timeout: float) -> Finished:
        return kvmfs_run(program, "-accel", f"kvm,kernel-irqchip={irqchip}", *MACHINE, *arguments, timeout=timeout)

    return run


@pytest.mark.parametrize("irqchip", ["off", "on"])
def test_seabios_comes_to_its_boot_menu(qemu: Callable[..., Finished], irqchip: str, tmp_path: Path) -> None:
    """Real mode, big real mode, protected mode, PCI, a disk without a system: all in the firmware of every QEMU PC."""
    disk = tmp_path / "disk"
    # A boot sector that powers the machine off: mov al, 0; out 0xf4, al
    disk.write_bytes(bytes.fromhex("b000e6f4ebfe").ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    done = qemu(
        irqchip,
        *("-m", "64", "-machine", "graphics=off", "-boot", "menu=on,splash-time=1"),
        *("-drive", f"file={disk},format=raw,if=ide"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        timeout=120,
    )
    assert "SeaBIOS (version" in done.output, done
    assert "Press ESC for boot menu" in done.output, done
    assert "Booting from Hard Disk" in done.output, done
    assert done.status == POWERED_OFF, done


@pytest.mark.parametrize(("irqchip", "cpus"), [("on", 2), ("off", 1)])
def test_linux_boots(qemu: Callable[..., Finished], kernel: Path, initramfs: Path, irqchip: str, cpus: int) -> None:
    checks = f"cpus:{cpus},timer,preempt,fpu,tlb"
    done = qemu(
        irqchip,
        *("-M", "q35,smm=off", "-cpu", "host", "-m", "512", "-smp", str(cpus)),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        *("-kernel", kernel, "-initrd", initramfs, "-append", f"{COMMAND_LINE} check={checks}"),
        timeout=500,
    )
    assert verdicts(done.output) == dict.fromkeys([check.partition(":")[0] for check in checks.split(",")], "ok"), done
    assert done.status == POWERED_OFF, done
