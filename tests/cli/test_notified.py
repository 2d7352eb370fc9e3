"""kvmfs run --transport seccomp: what is notified and what is not. With the toy server."""

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import PYTHON, TOY, finish, gone
from tests.support import processes
from tests.support.paths import missing

Toy = tuple[str, ...]
Spawn = Callable[..., "subprocess.Popen[str]"]
RUN = ("run", "--transport", "seccomp", "--")
PRELUDE = """
import errno, fcntl, os, sys
def error_of(function, *args):
    try:
        function(*args)
    except OSError as error:
        return error.errno
    return 0
def asks(fd):
    return fcntl.ioctl(fd, 0xAE00)
"""


def script(toy: Toy, text: str, **options: object) -> list[str]:
    """What a Python script prints, in lines, as a command."""
    done = finish((*toy, *RUN, PYTHON, "-c", PRELUDE + text), **options)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that makes KVM_GET_API_VERSION of another ABI: foreign {i386,x32} FD."""
    directory = tmp_path_factory.mktemp("foreign")
    directory.chmod(0o755)
    source = Path(__file__).parent / "programs" / "foreign.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", directory / "foreign", source], check=True)
    return directory / "foreign"


def test_every_way_to_open_it(toy: Toy) -> None:
    text = """
import ctypes
print(asks(os.open("/dev/kvm", os.O_RDWR)))
os.chdir("/dev")
print(asks(os.open("kvm", os.O_RDWR)), asks(os.open("../dev/./kvm", os.O_RDWR)))
directory = os.open("/dev", os.O_DIRECTORY)
print(asks(os.open("kvm", os.O_RDWR, dir_fd=directory)))
libc = ctypes.CDLL(None)
how = (ctypes.c_uint64 * 3)(os.O_RDWR | os.O_CLOEXEC)
print(asks(libc.syscall(437, -100, b"/dev/kvm", how, 24)), asks(libc.syscall(2, b"/dev/kvm", os.O_RDWR)))
print([os.get_inheritable(libc.syscall(2, b"/dev/kvm", flags)) for flags in (os.O_RDWR, os.O_RDWR | os.O_CLOEXEC)])
print(error_of(os.open, "/dev/kvm", os.O_RDWR | os.O_DIRECTORY) == errno.ENOTDIR)
print(error_of(os.open, "/dev/kvm", os.O_RDWR | os.O_CREAT | os.O_EXCL) == errno.EEXIST)
"""
    assert script(toy, text) == ["12", "12 12", "12", "12 12", "[True, False]", "True", "True"]


def test_other_files_are_what_they_are(tmp_path: Path) -> None:
    """Also one of that name, and one of ours for all but KVM."""
    tmp_path.chmod(0o755)
    (tmp_path / "kvm").write_text("no device")
    text = f"""
print(open("{tmp_path}/kvm").read(), error_of(asks, os.open("{tmp_path}/kvm", os.O_RDONLY)) == errno.ENOTTY)
print(error_of(open, "/dev/none"), error_of(os.open, b"/dev/" + b"x" * 5000, 0) == errno.ENAMETOOLONG)
print(error_of(asks, 0) == errno.ENOTTY, error_of(asks, 99) == errno.EBADF)
memfd = os.memfd_create("x")
os.posix_fallocate(memfd, 0, 4096)
print(os.fstat(memfd).st_size)
"""
    assert script(TOY, text) == ["no device True", "2 True", "True True", "4096"]


def test_the_modules_parameters() -> None:
    text = """
parameter = open("/sys/module/kvm/parameters/force_emulation_prefix")
print(parameter.read().strip(), error_of(os.write, parameter.fileno(), b"1") == errno.EBADF)
"""
    assert script(TOY, text) == ["0 True"]


def test_descendants_and_duplicates() -> None:
    text = f"""
import subprocess
fd = os.open("/dev/kvm", os.O_RDWR)
copy = fcntl.fcntl(fd, fcntl.F_DUPFD, 200)
os.close(fd)
print(asks(copy))
os.set_inheritable(copy, True)
child = "import fcntl, os; print(fcntl.ioctl(200, 0xAE00), fcntl.ioctl(200, 0xAE10) == os.getpid())"
print(subprocess.check_output(["{PYTHON}", "-c", child], close_fds=False, text=True).strip())
"""
    assert script(TOY, text) == ["12", "12 True"]


@pytest.mark.parametrize("abi", ["i386", "x32"])
def test_programs_of_other_abis_are_refused(foreign: Path, abi: str) -> None:
    """With ENOTTY, whatever the file."""
    if abi == "i386" and subprocess.run([foreign, abi, "99"], check=False).returncode == errno.ENOSYS:
        missing("a kernel that runs i386 programs")
    done = finish((*TOY, *RUN, "sh", "-c", f"exec {foreign} {abi} 3 3<>/dev/kvm"))
    assert done.returncode == errno.ENOTTY


def test_no_new_privileges_and_no_namespaces() -> None:
    text = """
status = open("/proc/self/status").read()
print("NoNewPrivs:\\t1" in status, sorted(os.listdir("/proc/self/fd")) == ["0", "1", "2", "3"])
print(*(os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "user", "pid")))
"""
    ours = " ".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "user", "pid"))
    assert script(TOY, text) == ["True True", ours]


def test_the_exit_status_and_a_command_that_is_not_there() -> None:
    assert finish((*TOY, *RUN, "sh", "-c", "exit 7")).returncode == 7
    assert finish((*TOY, *RUN, "/no/such/command")).returncode == 127


def test_one_in_another() -> None:
    """Linux allows one listener: that is said, and the command does not run."""
    done = finish((*TOY, *RUN, *TOY, *RUN, "true"))
    assert done.returncode == 125
    assert "seccomp user notification" in done.stderr


def test_everybody_ends_with_the_command(spawn: Spawn) -> None:
    before = processes.descendants()
    process = spawn(*TOY, *RUN, "cat")
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("ready\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    assert gone(before)


def test_a_server_that_dies_leaves_enosys() -> None:
    """As a filter without a listener has it; opens fail, too: the command had better end."""
    text = """
fd = os.open("/dev/kvm", os.O_RDWR)
error_of(fcntl.ioctl, fd, 0xAE11)
print(error_of(asks, fd) == errno.ENOSYS)
"""
    done = finish((*TOY, *RUN, PYTHON, "-c", PRELUDE + text))
    assert done.stdout == "True\n"
