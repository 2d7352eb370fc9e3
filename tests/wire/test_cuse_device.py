"""CUSE devices. Needs /dev/cuse: runs in the virtual machine of tests/cuse (`python -m tests.cuse.vm run`)."""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmfs.wire.device import Device, Permissions, clear_stale, cuse_device, cuse_number
from tests.support.paths import ROOT
from tests.wire.conftest import Server

pytestmark = pytest.mark.usefixtures("no_leaks")
PLACE = Path("/dev/kvmfs-test")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    if not os.access("/dev/cuse", os.R_OK | os.W_OK):
        pytest.skip("no /dev/cuse")
    yield
    assert not os.path.lexists(PLACE)
    assert not os.path.lexists("/dev/kvmfs")


class Forked:
    """Serves a device in a child: the connection of a CUSE device ends with its last descriptor, reader or not."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pid = os.fork()
        if self._pid == 0:
            try:
                Server(device.connection).join(None)
            finally:
                os._exit(0)
        device.leave_connection()

    def end(self) -> None:
        self._device.remove()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def opens(path: Path) -> bool:
    os.close(os.open(path, os.O_RDWR))
    return stat.S_ISCHR(path.stat().st_mode)


def test_node_is_there_with_its_permissions() -> None:
    device = cuse_device(PLACE, Permissions(0o640, 1234, 77))
    status = PLACE.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1234, 77)
    assert status.st_rdev == cuse_number(PLACE.name)
    server = Forked(device)
    assert opens(PLACE)
    server.end()


def test_name_that_is_taken() -> None:
    server = Forked(cuse_device(PLACE, Permissions()))
    with pytest.raises(FileExistsError):
        cuse_device(PLACE, Permissions())
    with pytest.raises(FileExistsError):
        cuse_device(Path("/dev/kvmfs-other"), Permissions(), name=PLACE.name)
    assert opens(PLACE)
    server.end()


def test_static_node_is_covered_and_comes_back() -> None:
    os.mknod(PLACE, stat.S_IFCHR | 0o600, os.makedev(10, 232))
    server = Forked(cuse_device(PLACE, Permissions(), replace=True))
    assert opens(PLACE)
    assert stat.S_IMODE(Path("/dev/kvmfs").stat().st_mode) == 0o700
    server.end()
    assert PLACE.stat().st_rdev == os.makedev(10, 232)
    PLACE.unlink()


def test_what_a_killed_server_leaves_is_cleared() -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kvmfs.wire.device import Permissions, cuse_device\n"
        "cuse_device(Path(sys.argv[1]), Permissions(), name='kvmfs/test')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, PLACE], check=False)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.open(PLACE, os.O_RDWR)
    assert caught.value.errno in (errno.ENXIO, errno.ENODEV)
    assert clear_stale(PLACE) is True


def test_under_kvmfs_run_the_host_sees_a_node_for_root_alone() -> None:
    script = "stat -c %F /dev/kvm; stat -c '%a %n' /dev/kvmfs"
    argv = [sys.executable, "-m", "tests.cli.toy", "run", "--transport", "cuse", "--", "sh", "-c", script]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("character special file\n700 /dev/kvmfs\n", 0)
