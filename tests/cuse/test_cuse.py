"""`kvmfs serve` with a real character device: CUSE, in a virtual machine whose kernel has it.

The machine boots once.  In it the daemon starts, the clients run one after the other, the daemon is told to end; each
test then looks at its own part of the transcript.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuse.session import COMMANDS, Session, parts
from tests.cuse.vm import VM
from tests.support import paths

pytestmark = pytest.mark.timeout(700)  # whichever test comes first waits for the machine

SELFTESTS = [
    "guest_memfd_test",
    "x86_64/private_mem_kvm_exits_test",
    "x86_64/private_mem_conversions_test",
    "x86_64/userspace_io_test",
]

_JOB = """
{commands}
stop() {{
    kill $daemon && tail --pid=$daemon -f /dev/null && [ ! -e /dev/kvm ]
}}
run suite {python} -m pytest -q --color=no -p no:cacheprovider tests/wire/test_cuse_device.py
# serve goes to the background once the device answers
daemon=$({python} -m kvmfs serve -v 2>/tmp/log)
run daemon stat -c %F /dev/kvm
{runs}
run stop stop
run log cat /tmp/log
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, linux_headers: Path, selftests_dir: Path) -> Session:
    kernel = paths.vm_kernel()
    client = tmp_path_factory.mktemp("cuse") / "conversions"
    source = paths.ROOT / "docs" / "examples" / "c" / "conversions.c"
    subprocess.run(["cc", "-static", "-O2", "-isystem", linux_headers, "-o", client, source], check=True)

    programs = {"conversions": client, **{Path(path).name: selftests_dir / path for path in SELFTESTS}}
    runs = "\n".join(f"run {name} {shlex.quote(str(path))}" for name, path in programs.items())
    job = _JOB.format(commands=COMMANDS, python=shlex.quote(sys.executable), runs=runs)
    # kvm: the selftests look into its parameters in sysfs; without a vendor module it makes no device.
    vm = VM(kernel, ["cuse", "kvm"])
    # Compiled by scripts/setup, for the CPU that QEMU emulates.
    env = {"KVMFS_CACHE_DIR": str(paths.cache_dir() / "vm"), "NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": ""}
    machine = vm.run(job, 600, cwd=paths.ROOT, env=env)
    return Session(machine, parts(machine.output))


def test_the_daemon_makes_a_character_device(session: Session) -> None:
    assert session.succeeded("daemon") == "character special file"


def test_a_client_of_ours_converts_memory_and_resolves_faults(session: Session) -> None:
    output = session.succeeded("conversions")
    assert "memory fault: gpa 0x402000 size 0x1000 flags 0x8" in output
    assert "memory fault: gpa 0x600000 size 0x1000 flags 0x8" in output
    assert output.endswith("guest: done")


@pytest.mark.parametrize("program", [Path(path).name for path in SELFTESTS])
def test_kernel_selftest_on_the_character_device(session: Session, program: str) -> None:
    session.succeeded(program)


def test_the_suite_that_needs_cuse_passes_here(session: Session) -> None:
    """On a host without /dev/cuse it is skipped."""
    output = session.succeeded("suite")
    assert "passed" in output
    assert "skipped" not in output


def test_the_device_goes_with_the_daemon(session: Session) -> None:
    session.succeeded("stop")
