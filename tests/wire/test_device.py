"""Device nodes: who may open them, what they cover, what is left of them."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kvmfs.wire import mount
from kvmfs.wire.device import Permissions, clear_stale, fuse_device
from tests.wire.conftest import Server

pytestmark = pytest.mark.usefixtures("no_leaks")
NOBODY = 65534


def opens(path: Path, uid: int, *groups: int) -> bool:
    """Whether a process of that user can open it for reading and writing."""
    script = "import os, sys\ntry: os.open(sys.argv[1], os.O_RDWR)\nexcept PermissionError: sys.exit(13)"
    status = subprocess.run(
        ["/usr/bin/env", "python3", "-c", script, path], user=uid, group=uid, extra_groups=groups, check=False
    ).returncode
    assert status in (0, 13)
    return status == 0


@pytest.fixture
def reachable(tmp_path: Path) -> None:
    """Other users can get at tmp_path."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(0o755)


@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(
    ("permissions", "owner", "member", "other"),
    [
        (Permissions(0o666), True, True, True),
        (Permissions(0o660, 1234, 77), True, True, False),
        (Permissions(0o600, 1234, 77), True, False, False),
        (Permissions(0o060, 1234, 77), False, True, False),
    ],
    ids=["666", "660", "600", "060"],
)
def test_mode_owner_and_group_count(
    place: Path, permissions: Permissions, owner: bool, member: bool, other: bool
) -> None:
    device = fuse_device(place, permissions)
    server = Server(device.connection)
    try:
        status = place.stat()
        assert stat.S_ISREG(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == permissions.mode
        assert (status.st_uid, status.st_gid) == (permissions.uid, permissions.gid)
        assert opens(place, 1234) is owner
        assert opens(place, NOBODY, 77) is member
        assert opens(place, NOBODY) is other
    finally:
        device.remove()
        server.join()


def test_taken(place: Path) -> None:
    place.write_text("mine")
    with pytest.raises(FileExistsError):
        fuse_device(place, Permissions())
    device = fuse_device(place, Permissions(), replace=True)
    server = Server(device.connection)
    assert place.stat().st_size == 0
    device.remove()
    server.join()
    assert place.read_text() == "mine"
    place.unlink()


def test_covers_a_device_node(place: Path) -> None:
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    device = fuse_device(place, Permissions(), replace=True)
    server = Server(device.connection)
    assert stat.S_ISREG(place.stat().st_mode)
    device.remove()
    server.join()
    assert stat.S_ISCHR(place.stat().st_mode)
    place.unlink()


def test_a_link_is_followed(tmp_path: Path, place: Path) -> None:
    (tmp_path / "target").touch()
    place.symlink_to("target")
    device = fuse_device(place, Permissions(), replace=True)
    server = Server(device.connection)
    os.close(os.open(tmp_path / "target", os.O_RDWR))
    assert server.seen
    device.remove()
    server.join()
    place.unlink()


def test_what_a_killed_server_leaves_is_cleared(place: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kvmfs.wire.device import Permissions, fuse_device\n"
        "fuse_device(Path(sys.argv[1]), Permissions())\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, place], check=False)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.open(place, os.O_RDWR)
    assert caught.value.errno == errno.ENOTCONN
    assert clear_stale(place) is True
    assert clear_stale(place) is False


def test_a_living_server_is_not_cleared(place: Path) -> None:
    device = fuse_device(place, Permissions())
    server = Server(device.connection)
    with pytest.raises(FileExistsError):
        clear_stale(place)
    device.remove()
    server.join()


def test_a_file_of_the_users_own_survives_clearing(place: Path) -> None:
    place.write_text("mine")
    device = fuse_device(place, Permissions(), replace=True)
    device.connection.close()
    assert clear_stale(place) is True
    assert place.read_text() == "mine"
    place.unlink()


def test_nothing_is_left_where_mounting_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(mount, "attach", refuse)
    with pytest.raises(PermissionError):
        fuse_device(place, Permissions())
