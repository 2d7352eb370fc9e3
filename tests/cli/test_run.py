"""kvmfs run: the device, the exit status, and what is left. With the toy server, as root and as nobody."""

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, TOY, finish, gone
from tests.support import processes
from tests.support.paths import ROOT

Toy = tuple[str, ...]
Spawn = Callable[..., "subprocess.Popen[str]"]
OPEN = "import fcntl, os, sys\ndevice = os.open('/dev/kvm', os.O_RDWR)\n"


def test_the_device_answers_and_knows_who_asks(toy: Toy) -> None:
    script = OPEN + "print(fcntl.ioctl(device, 0xAE00), fcntl.ioctl(device, 0xAE10) == os.getpid())"
    done = finish((*toy, "run", "--", PYTHON, "-c", script))
    assert (done.stdout, done.stderr, done.returncode) == ("12 True\n", "", 0)


def test_a_real_kvm_is_hidden_and_untouched(toy: Toy) -> None:
    def seen() -> tuple[int, int] | None:
        path = Path("/dev/kvm")
        return (path.stat().st_mode, path.stat().st_rdev) if path.exists() else None

    before = seen()
    done = finish((*toy, "run", "--", "stat", "-c", "%F", "/dev/kvm"))
    assert done.stdout == "regular empty file\n"
    assert seen() == before


def test_a_device_where_there_is_none(toy: Toy) -> None:
    """/dev becomes private; all else in it works as before."""
    path = Path("/dev/kvmfs-test")
    script = f"stat -c %F {path} && head -c 3 /dev/zero | wc -c && echo > /dev/null && ls -d /dev/shm /dev/pts"
    done = finish((*toy, "run", "--device", str(path), "--", "sh", "-c", script))
    assert done.stdout == "regular empty file\n3\n/dev/pts\n/dev/shm\n"
    assert not path.exists()
    names = finish((*toy, "run", "--device", str(path), "--", "ls", "-A", "/dev")).stdout.split()
    assert set(names) - {path.name} == {entry.name for entry in Path("/dev").iterdir()}


def test_a_device_elsewhere(toy: Toy, tmp_path: Path) -> None:
    place = tmp_path / "kvm"
    missing = finish((*toy, "run", "--device", str(place), "true"))
    assert missing.returncode == 125
    assert not place.exists()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 7"), 7),
        (("sh", "-c", "exit 2"), 2),
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("sh", "-c", "kill -KILL $$"), 128 + signal.SIGKILL),
        (("/no/such/program",), 127),
        (("no-such-program",), 127),
        (("/dev/null",), 126),
        (("/",), 126),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_exit_status(toy: Toy, command: tuple[str, ...], status: int) -> None:
    assert finish((*toy, "run", "--", *command)).returncode == status


@pytest.mark.parametrize("argv", [("run", "--bogus", "true"), ("run",), ("run", "--transport", "pigeon", "true")])
def test_wrong_usage_is_not_mistaken_for_the_command(root: None, argv: tuple[str, ...]) -> None:
    assert finish((*TOY, *argv)).returncode == 125


def test_options_of_the_command_need_no_dashes(toy: Toy) -> None:
    assert finish((*toy, "run", "echo", "--device", "-v")).stdout == "--device -v\n"


def test_a_script_without_interpreter_line(root: None, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$0 $1"; exit 3')
    script.chmod(0o755)
    done = finish((*TOY, "run", script, "one"))
    assert (done.stdout, done.returncode) == (f"{script} one\n", 3)


def test_streams_descriptors_and_directory_are_the_commands(toy: Toy) -> None:
    reading, writing = os.pipe()
    script = (
        f"import os, sys\nprint(input(), os.getcwd())\nprint('error', file=sys.stderr)\nos.write({writing}, b'pipe')"
    )
    done = finish((*toy, "run", "--", PYTHON, "-c", script), input="input\n", pass_fds=(writing,))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "pipe"
    assert (done.stdout, done.stderr) == (f"input {ROOT}\n", "error\n")


def test_without_standard_streams(toy: Toy) -> None:
    """What is closed stays closed for the command, and nothing of ours takes its place."""
    script = (
        "import fcntl, os\ndevice = os.open('/dev/kvm', os.O_RDWR)\nos._exit(device * 16 + fcntl.ioctl(device, 0xAE00))"
    )
    done = finish(("sh", "-c", 'exec "$@" <&- >&-', "sh", *toy, "run", "--", PYTHON, "-c", script))
    assert done.returncode == 12


def test_signals_are_as_they_were(root: None) -> None:
    """Ignored signals stay ignored, no signal is blocked, and what Python ignores is not."""
    script = "grep -E 'Sig(Blk|Ign)' /proc/self/status"
    plain = finish(("nohup", "sh", "-c", script)).stdout
    assert finish(("nohup", *TOY, "run", "--", "sh", "-c", script)).stdout == plain


def test_identity_stays(toy: Toy) -> None:
    done = finish((*toy, "run", "--", "sh", "-c", "id -u; id -g; grep CapEff /proc/self/status"))
    uid, gid, _, capabilities = done.stdout.split()
    if len(toy) == len(TOY):
        assert (uid, gid) == ("0", "0")
    else:
        assert (uid, gid, int(capabilities, 16)) == ("65534", "65534", 0)


def test_what_the_broker_executes_may_trace(toy: Toy) -> None:
    """The command itself has no capabilities in its user namespace: see above."""
    done = finish((*toy, "run", "--", PYTHON, "-c", OPEN + "print(fcntl.ioctl(device, 0xAE12))"))
    assert done.stdout == "1\n"


def test_the_command_is_no_child_of_the_broker(root: None) -> None:
    script = "ps -o ppid= -p $$; ps -eo comm=,pid= | grep kvmfs-broker"
    done = finish((*TOY, "run", "--", "sh", "-c", script))
    parent, *brokers = done.stdout.splitlines()
    assert brokers
    assert parent.strip() not in {line.split()[1] for line in brokers}


def test_a_broker_that_does_not_start(toy: Toy) -> None:
    done = finish((*toy, "run", "--", "echo", "ran"), env={**os.environ, "TOY": "broken"})
    assert done.returncode == 125
    assert done.stdout == ""
    assert "a broken broker" in done.stderr


def test_the_command_survives_the_broker(toy: Toy) -> None:
    """Its ioctl fails, later opens fail, it goes on, and its exit status counts."""
    script = OPEN + (
        "def errno(call):\n"
        "    try: call()\n"
        "    except OSError as error: return error.errno\n"
        "print(errno(lambda: fcntl.ioctl(device, 0xAE11)), errno(lambda: os.open('/dev/kvm', os.O_RDWR)))\n"
        "sys.exit(9)"
    )
    done = finish((*toy, "run", "--", PYTHON, "-c", script))
    assert done.stdout == f"{errno.ECONNABORTED} {errno.ENOTCONN}\n"
    assert done.returncode == 9
    assert "the broker is gone" in done.stderr


def test_a_killed_launcher_takes_all_with_it(toy: Toy, spawn: Spawn) -> None:
    before = processes.descendants()
    process = spawn(*toy, "run", "--", "sh", "-c", "echo ready; exec cat")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    family = processes.descendants() - before
    assert len(family) == 3
    process.kill()
    assert gone(family)


def test_children_the_command_leaves_lose_the_device(toy: Toy, spawn: Spawn) -> None:
    reading, writing = os.pipe()
    script = (
        f"import os\nos.read({reading}, 1)\n"
        "try: os.open('/dev/kvm', os.O_RDWR)\n"
        "except OSError as error: print(error.errno)"
    )
    process = spawn(*toy, "run", "--", "sh", "-c", '"$0" -c "$1" & exit 4', PYTHON, script, pass_fds=(reading,))
    assert process.wait(30) == 4
    os.write(writing, b"!")
    assert process.stdout is not None
    assert process.stdout.read() == f"{errno.ENOTCONN}\n"
    os.close(reading)
    os.close(writing)


def test_two_at_once_are_apart(toy: Toy, spawn: Spawn) -> None:
    script = OPEN + "print('open', flush=True); sys.stdin.read(); print(fcntl.ioctl(device, 0xAE00))"
    first = spawn(*toy, "run", "--", PYTHON, "-c", script)
    second = spawn(*toy, "run", "--", PYTHON, "-c", script)
    for process in (first, second):
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    assert first.communicate(timeout=30)[0] == "12\n"
    assert second.communicate(timeout=30)[0] == "12\n"


def test_mounts_of_the_command_stay_its_own(root: None) -> None:
    """It can pull everything from under itself; the broker serves on, and the host sees nothing."""
    before = Path("/proc/self/mountinfo").read_text()
    script = OPEN + (
        "import subprocess\n"
        "subprocess.run(['umount', '-l', '/proc'], check=True)\n"
        "print(fcntl.ioctl(device, 0xAE00), os.path.exists('/proc/self'))"
    )
    done = finish((*TOY, "run", "--", PYTHON, "-c", script))
    assert done.stdout == "12 False\n"
    assert Path("/proc/self/mountinfo").read_text() == before


def test_device_permissions_are_open(toy: Toy) -> None:
    done = finish((*toy, "run", "--", "stat", "-c", "%a", "/dev/kvm"))
    assert stat.S_IMODE(int(done.stdout, 8)) == 0o666


def test_nested(toy: Toy) -> None:
    inner = (
        *TOY,
        "run",
        "--",
        "sh",
        "-c",
        "cat /sys/module/kvm/parameters/nested /sys/module/fuse/parameters/*; exit 5",
    )
    assert finish((*toy, "run", "--", *inner)).returncode == 5
