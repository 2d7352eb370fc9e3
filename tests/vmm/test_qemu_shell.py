"""A stock Debian 12: its 6.1 kernel as the package has it, a disk, a shell on the serial console."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuse.vm.initramfs import Modules
from tests.support import paths
from tests.vmm.conftest import Disk, Linux, with_init
from tests.vmm.qemu import Qemu

SECONDS = 300

pytestmark = pytest.mark.timeout(2 * SECONDS)

INIT = b"""#!/bin/busybox sh
mkdir -p /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module.ko"; done </modules/order
export PS1='guest# '
exec setsid -c sh
"""


@pytest.fixture(scope="session")
def debian12(tmp_path_factory: pytest.TempPathFactory) -> Linux:
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        paths.missing("no busybox")
    entry = paths.older_kernel()
    path = tmp_path_factory.mktemp("shell") / "initramfs.cpio"
    modules = Modules(entry / "modules").load_order(("virtio_pci", "virtio_blk", "virtio_net"))
    path.write_bytes(with_init(INIT, modules, busybox.read_bytes()))
    return Linux(entry / "vmlinuz", path)


def test_commands_on_the_console(start_qemu: Callable[..., Qemu], debian12: Linux, disk: Disk) -> None:
    qemu = start_qemu(
        "split",
        *("-M", "q35", "-m", "512", *disk.arguments, "-device", "virtio-blk-pci,drive=disk"),
        *debian12.arguments(""),
        monitor=True,
    )
    monitor = qemu.monitor
    assert monitor

    qemu.expect("^guest# ", SECONDS)
    qemu.type("echo $((6 * 7)) $(uname -r)\n")
    assert qemu.expect(r"^42 (\S+)\r", SECONDS)[1].startswith("6.1.")
    qemu.type("md5sum /dev/vda\n")
    assert qemu.expect(r"^(\w{32})  /dev/vda\r", SECONDS)[1] == hashlib.md5(disk.path.read_bytes()).hexdigest()

    qemu.expect("^guest# ", SECONDS)
    qemu.type("poweroff -f\n")
    assert monitor.event("SHUTDOWN", SECONDS)["data"]["reason"] == "guest-shutdown"
    done = qemu.wait(SECONDS)
    assert done.status == 0, done
