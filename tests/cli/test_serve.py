"""kvmfs serve: the daemon. With the toy server, over a path of the test's own."""

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmfs.cli.serve import names_nothing
from tests.cli.conftest import TOY, UNPRIVILEGED, finish, gone
from tests.support import processes

pytestmark = pytest.mark.usefixtures("root")
Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "kvm"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's end of sd_notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(30)
        yield end


def version(place: Path) -> int:
    device = os.open(place, os.O_RDWR)
    try:
        return fcntl.ioctl(device, 0xAE00)
    finally:
        os.close(device)


def test_foreground_tells_the_service_manager(place: Path, manager: socket.socket, spawn: Spawn) -> None:
    process = spawn(
        *TOY,
        *("serve", "--foreground", "--transport", "fuse", "--device", place),
        env={**os.environ, "NOTIFY_SOCKET": manager.getsockname()},
        stderr=subprocess.DEVNULL,
    )
    assert b"READY=1" in manager.recv(4096).splitlines()
    assert version(place) == 12
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert manager.recv(4096) == b"STOPPING=1"
    assert not place.exists()


def test_background(place: Path) -> None:
    before = processes.descendants()
    done = finish((*TOY, "serve", "--transport", "fuse", "--device", place))
    assert (done.returncode, done.stderr) == (0, "")
    family = processes.descendants() - before
    assert family == {int(done.stdout)}
    assert version(place) == 12
    os.kill(int(done.stdout), signal.SIGTERM)
    assert gone(family)
    assert not place.exists()


def test_mode_owner_group(place: Path) -> None:
    argv = ("serve", "--transport", "fuse", "--device", place, "--mode", "0640", "--owner", "1234", "--group", "77")
    pid = int(finish((*TOY, *argv)).stdout)
    status = place.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1234, 77)
    os.kill(pid, signal.SIGTERM)
    assert gone({pid})


def test_a_taken_name(place: Path) -> None:
    place.write_text("mine")
    done = finish((*TOY, "serve", "--transport", "fuse", "--device", place))
    assert done.returncode == 125
    assert "--replace" in done.stderr
    pid = int(finish((*TOY, "serve", "--transport", "fuse", "--replace", "--device", place)).stdout)
    assert version(place) == 12
    second = finish((*TOY, "serve", "--transport", "fuse", "--replace", "--device", place))
    assert second.returncode == 125
    assert "another kvmfs" in second.stderr
    os.kill(pid, signal.SIGTERM)
    assert gone({pid})
    assert place.read_text() == "mine"


def test_what_a_killed_daemon_left_is_taken_over(place: Path) -> None:
    first = int(finish((*TOY, "serve", "--transport", "fuse", "--device", place)).stdout)
    os.kill(first, signal.SIGKILL)
    assert gone({first})
    with pytest.raises(OSError) as caught:  # noqa: PT011
        version(place)
    assert caught.value.errno == errno.ENOTCONN
    second = int(finish((*TOY, "serve", "--transport", "fuse", "--device", place)).stdout)
    assert version(place) == 12
    os.kill(second, signal.SIGTERM)
    assert gone({second})
    assert not place.exists()


def test_not_without_root(place: Path) -> None:
    done = finish((*UNPRIVILEGED, *TOY, "serve", "--device", place))
    assert done.returncode == 125
    assert "needs root" in done.stderr


@pytest.mark.parametrize("option", [("--owner", "no-such-user"), ("--group", "no-such-group"), ("--mode", "rw")])
def test_wrong_options(place: Path, option: tuple[str, str]) -> None:
    done = finish((*TOY, "serve", "--device", place, *option))
    assert done.returncode in (2, 125)
    assert not place.exists()


def test_a_broker_that_does_not_start(place: Path) -> None:
    done = finish((*TOY, "serve", "--transport", "fuse", "--device", place), env={**os.environ, "TOY": "broken"})
    assert done.returncode == 125
    assert "a broken broker" in done.stderr
    assert not place.exists()


def test_a_node_without_its_module(place: Path) -> None:
    loaded = any(line.split()[1:] == ["kvm"] for line in Path("/proc/misc").read_text().splitlines())
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(10, 232))
    assert names_nothing(place) is not loaded
    place.unlink()
    os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert not names_nothing(place)
    assert not names_nothing(place.with_name("none"))
