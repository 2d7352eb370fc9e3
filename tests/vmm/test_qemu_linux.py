"""Linux in QEMU: interrupt controllers, numbers of processors, CPU models, kinds of memory, virtio devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vmm.conftest import Disk, Linux
from tests.vmm.qemu import EXIT_DEVICE, POWERED_OFF, Qemu
from tests.vmm.verdicts import passed

SECONDS = 400

pytestmark = pytest.mark.timeout(2 * SECONDS)

BLOCK = ("-device", "virtio-blk-pci,drive=disk")
# A thread of its own for the disk: what the guest writes to the queue's doorbell gets there by ioeventfd, and the
# thread's interrupts by irqfd.
BLOCK_THREAD = ("-object", "iothread,id=thread", "-device", "virtio-blk-pci,drive=disk,iothread=thread")


@dataclass(frozen=True)
class Machine:
    irqchip: str
    cpus: int
    arguments: tuple[str, ...]
    block: tuple[str, ...] = BLOCK_THREAD


def memory(kind: str) -> tuple[str, ...]:
    """512 MiB of it."""
    return ("-object", f"memory-backend-{kind},id=memory,size=512M", "-machine", "memory-backend=memory")


MACHINES = {
    "nothing in the kernel": Machine("off", 1, ("-M", "q35", "-cpu", "host", "-m", "512"), BLOCK),
    "2 CPUs like the host": Machine("on", 2, ("-M", "q35", "-cpu", "host", "-m", "512", *memory("ram"))),
    "4 CPUs, split": Machine("split", 4, ("-M", "q35", "-cpu", "max", "-m", "512", *memory("memfd,share=on"))),
    "8 CPUs, defaults": Machine("on", 8, ("-m", "512", *memory("memfd,share=off"))),
}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_it_boots(start_qemu: Callable[..., Qemu], linux: Linux, disk: Disk, machine: Machine) -> None:
    checks = {"cpus": machine.cpus, "timer": "", "preempt": "", "fpu": "", "tlb": "", "disk": disk.checksum}
    qemu = start_qemu(
        machine.irqchip,
        *(*machine.arguments, "-smp", str(machine.cpus), "-no-reboot", *EXIT_DEVICE),
        *(*disk.arguments, *machine.block),
        *linux.arguments("", **checks),
    )
    passed(qemu.wait(SECONDS), checks, POWERED_OFF)


def link(mine: Path, other: Path) -> tuple[str, ...]:
    """A network card whose cable ends in sockets of the host: frames are datagrams."""
    ends = f"local.type=unix,local.path={mine},remote.type=unix,remote.path={other}"
    return ("-netdev", f"dgram,id=cable,{ends}", "-device", "virtio-net-pci,netdev=cable")


def test_two_machines_talk(start_qemu: Callable[..., Qemu], linux: Linux, tmp_path: Path) -> None:
    """Two at a time, of models that never were: what the host lacks QEMU takes from them."""
    one, two = tmp_path / "one", tmp_path / "two"
    machines = [
        start_qemu(
            irqchip,
            *("-M", model, "-cpu", cpu, "-m", "512", "-no-reboot", *EXIT_DEVICE),
            *link(mine, other),
            *linux.arguments("", cpus=1, net=number),
        )
        for irqchip, model, cpu, mine, other, number in (
            ("split", "q35", "EPYC", one, two, 1),
            ("on", "pc", "Skylake-Client", two, one, 2),
        )
    ]
    for qemu in machines:
        passed(qemu.wait(SECONDS), ["cpus", "net"], POWERED_OFF)
