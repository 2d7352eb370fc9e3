"""Firmware of QEMU's PCs: SeaBIOS, and UEFI by OVMF.

SeaBIOS goes through real, big real and protected mode, takes timer interrupts, reprograms PIC and PIT, wakes the other
processors by INIT and SIPI, and runs an option ROM that KVM_SET_VAPIC_ADDR is for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import paths
from tests.vmm.qemu import EXIT_DEVICE, POWERED_OFF, Qemu

SECONDS = 200

pytestmark = pytest.mark.timeout(2 * SECONDS)


@pytest.mark.parametrize("irqchip", ["on", "split"])
@pytest.mark.parametrize(("machine", "processors"), [("pc", 1), ("pc", 2), ("q35", 2)])
def test_it_finds_the_processors_and_nothing_to_boot(
    start_qemu: Callable[..., Qemu], machine: str, irqchip: str, processors: int
) -> None:
    qemu = start_qemu(
        irqchip,
        *("-machine", machine, "-smp", str(processors), "-m", "64"),
        *("-chardev", "stdio,id=bios,signal=off", "-device", "isa-debugcon,iobase=0x402,chardev=bios"),
        serial="null",
    )
    qemu.expect(f"Found {processors} cpu\\(s\\)", SECONDS)
    qemu.expect("No bootable device.", SECONDS)


def boots_from_a_disk(
    start_qemu: Callable[..., Qemu], irqchip: str, disk: Path, *arguments: str, transport: str = "auto"
) -> None:
    # A boot sector that powers the machine off: mov al, 0; out 0xf4, al
    disk.write_bytes(bytes.fromhex("b000e6f4ebfe").ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    qemu = start_qemu(
        irqchip,
        *("-m", "64", "-machine", "graphics=off", "-boot", "menu=on,splash-time=1"),
        *("-drive", f"file={disk},format=raw,if=ide", *EXIT_DEVICE, *arguments),
        transport=transport,
    )
    qemu.expect("SeaBIOS \\(version", SECONDS)
    qemu.expect("Press ESC for boot menu", SECONDS)
    qemu.expect("Booting from Hard Disk", SECONDS)
    done = qemu.wait(SECONDS)
    assert done.status == POWERED_OFF, done


@pytest.mark.parametrize("irqchip", ["off", "on", "split"])
def test_it_boots_from_a_disk(start_qemu: Callable[..., Qemu], irqchip: str, tmp_path: Path) -> None:
    boots_from_a_disk(start_qemu, irqchip, tmp_path / "disk")


def test_it_boots_without_fuse(start_qemu: Callable[..., Qemu], tmp_path: Path) -> None:
    """Timer interrupts by KVM_INTERRUPT: a signal to the vCPU's thread for each."""
    boots_from_a_disk(start_qemu, "off", tmp_path / "disk", transport="seccomp")


@pytest.mark.usefixtures("huge_pages")
@pytest.mark.parametrize("share", ["on", "off"])
def test_it_boots_in_huge_pages(start_qemu: Callable[..., Qemu], share: str, tmp_path: Path) -> None:
    memory = f"memory-backend-memfd,id=memory,size=64M,hugetlb=on,hugetlbsize=2M,share={share}"
    arguments = ("-object", memory, "-machine", "memory-backend=memory")
    boots_from_a_disk(start_qemu, "on", tmp_path / "disk", *arguments)


def test_uefi_shell(start_qemu: Callable[..., Qemu], tmp_path: Path) -> None:
    """Flash chips: memory that is read as a memslot, code and all, and whose writes are exits that a device answers."""
    code, variables = (Path(f"/usr/share/OVMF/OVMF_{name}_4M.fd") for name in ("CODE", "VARS"))
    if not code.exists():
        paths.missing("no ovmf")
    flash = tmp_path / "variables"
    shutil.copy(variables, flash)
    qemu = start_qemu(
        "on",
        *("-M", "q35", "-m", "128"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={flash}"),
    )
    qemu.expect("UEFI Interactive Shell", SECONDS)
    qemu.expect("in 5 seconds to skip", SECONDS)
    qemu.type("\x1b")
    qemu.expect("Shell> ", SECONDS)
    qemu.type("reset -s\r")
    done = qemu.wait(SECONDS)
    assert done.status == 0, done
    assert flash.read_bytes() != variables.read_bytes()  # the boot order has been stored
