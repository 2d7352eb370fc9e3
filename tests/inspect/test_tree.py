"""The tree: files about VMs that run and die, for those who may read them, and for the kernel's own kvm_stat."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmfs.inspect import stats
from tests.inspect.conftest import Client
from tests.process.harness import wait_until
from tests.support import processes
from tests.support.paths import ROOT, missing

KVMFS = (sys.executable, "-m", "kvmfs")
NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("root's rights, or no /dev/fuse")


@pytest.fixture
def tree(tmp_path: Path, no_leaks: None) -> Iterator[Path]:
    directory = tmp_path / "tree"
    tmp_path.chmod(0o755)
    server = subprocess.Popen(
        [*KVMFS, "tree", "--mount", str(directory)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert server.stderr
        assert "the tree is at" in server.stderr.readline()
        yield directory
    finally:
        server.terminate()
        server.wait(20)
        server.stderr.close()
    assert server.returncode == 0
    assert not directory.exists()


def read(path: Path) -> str:
    return path.read_text().rstrip("\n")


def test_a_vms_files_tell_what_it_does(tree: Path, client: Client) -> None:
    folder = tree / client.vm.name
    names = {path.name for path in folder.iterdir()}
    assert {
        "exits",
        "io_exits",
        "slots",
        "attributes",
        "guest_memfd",
        "faults",
        "injection",
        "client",
        "vcpu0",
    } <= names
    before = int(read(folder / "io_exits"))
    client.tell("out")
    after = read(folder / "io_exits")
    assert int(after) == before + 1
    assert read(folder / "vcpu0" / "io_exits") == after
    assert int(read(tree / "io_exits")) >= int(after)
    assert "rax 0x55\n" in (folder / "vcpu0" / "registers").read_text()
    assert read(folder / "vcpu0" / "tsc-scaling-ratio-frac-bits") == "32"
    assert int(read(folder / "vcpu0" / "tsc-scaling-ratio")) == 1 << 32
    assert read(folder / "slots").splitlines()[1].split()[:3] == ["0", "0x0", "0x200000"]
    assert f"pid {client.pid}\n" in (folder / "client").read_text()


def test_the_fault_log_can_be_followed(tree: Path, own: Client) -> None:
    faults = tree / own.vm.name / "faults"
    assert faults.read_text() == ""
    with subprocess.Popen(["tail", "-s", "0.1", "-f", str(faults)], stdout=subprocess.PIPE, text=True) as tail:
        try:
            own.tell("fault")
            assert tail.stdout
            lines = []
            while not lines or "memory fault" not in lines[-1]:
                lines.append(tail.stdout.readline())
        finally:
            tail.kill()
    assert "gva 0x200000 gpa 0x200000 private write slot - memory fault: no slot ns " in lines[-1]
    assert faults.stat().st_size == len(faults.read_bytes()) == sum(map(len, lines))
    records = [json.loads(line) for line in (tree / own.vm.name / "faults.json").read_text().splitlines()]
    assert [record["number"] for record in records] == list(range(1, len(lines) + 1))
    assert (records[-1]["outcome"], records[-1]["gpa"]) == ("memory fault: no slot", 0x200000)
    assert "0x200000 0x400000 0x8 private" in (tree / own.vm.name / "attributes").read_text()


def test_reading_does_not_wait_for_the_guest(tree: Path, own: Client) -> None:
    own.tell("spin")
    folder = tree / own.vm.name
    wait_until(lambda: read(folder / "vcpu0" / "state") == "in guest", "the guest is entered")
    for path in (path for path in folder.rglob("*") if path.is_file()):
        path.read_bytes()
    assert read(folder / "vcpu0" / "state") == "in guest"


def test_files_of_a_vm_that_dies(tree: Path, own: Client) -> None:
    folder = tree / own.vm.name
    with (folder / "exits").open() as exits, (folder / "slots").open() as slots:
        os.kill(own.pid, signal.SIGKILL)
        wait_until(lambda: not folder.exists(), "the folder is gone")
        assert int(exits.read()) >= 0  # the last value
        with pytest.raises(OSError, match=r"Stale|Input/output"):
            slots.read()
    assert folder.name not in [path.name for path in tree.iterdir()]


def test_permissions_are_the_owners(tree: Path, client: Client) -> None:
    folder = tree / client.vm.name
    status = folder.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o500)
    as_nobody = subprocess.run(
        ["cat", str(folder / "exits")], capture_output=True, text=True, check=False, user=NOBODY, group=NOBODY
    )
    assert "Permission denied" in as_nobody.stderr
    with pytest.raises(OSError, match="Read-only"):
        (folder / "exits").write_text("0")


def test_every_statistic_is_a_file_with_a_number(tree: Path, client: Client) -> None:
    for name in (*stats.VCPU, *stats.VM):
        assert int(read(tree / client.vm.name / name)) >= 0
        assert int(read(tree / name)) >= 0


def test_the_kernels_kvm_stat_reads_it(
    no_leaks: None, start: Callable[..., Client], linux_tree: Path, tmp_path: Path
) -> None:
    """tools/kvm/kvm_stat of Linux, unmodified."""
    program = linux_tree / "tools" / "kvm" / "kvm_stat" / "kvm_stat"
    client = start()
    client.tell("spin")
    # It knows how to read exit reasons of Intel's and AMD's processors only, and looks for one, even for debugfs.
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu svm\n")
    kvm_stat = f"{sys.executable} {program} --once --debugfs --debugfs-include-past --pid {client.pid}"
    script = f"mount --bind {cpuinfo} /proc/cpuinfo && exec {kvm_stat}"
    done = processes.run([*KVMFS, "tree", "--debugfs", "--", "sh", "-c", script], timeout=60)
    assert done.status == 0, done
    counted = {line.split()[0]: int(line.split()[1]) for line in done.output.splitlines()[1:] if len(line.split()) > 1}
    assert counted["instructions"] > 10_000, done
