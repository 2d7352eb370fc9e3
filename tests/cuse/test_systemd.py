"""The units of systemd/, installed by scripts/install, under a real systemd: in the virtual machine, which has CUSE."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuse.session import COMMANDS, Session, parts
from tests.cuse.vm import VM
from tests.support import paths

pytestmark = pytest.mark.timeout(900)  # whichever test comes first waits for the machine

_JOB = """
export SYSTEMD_PAGER=cat SYSTEMD_COLORS=0 TERM=dumb
{commands}
property() {{ systemctl show --value -p "$1" kvmfs.service; }}
device() {{ stat -c '%F %U:%G %a' /dev/kvm; }}
as_user() {{ setpriv --reuid=65534 --regid=65534 "$@"; }}
ask() {{ echo "$1" >&3 && read -r answer <&4 && echo "$answer"; }}
# a VMM of a user in group kvm, that goes on until its input ends
begin() {{
    mkfifo /tmp/in /tmp/out && chmod 666 /tmp/in /tmp/out
    as_user --groups=kvm {vmm} </tmp/in >/tmp/out 2>/tmp/errors &
    exec 3>/tmp/in 4</tmp/out
    read -r pid <&4 && echo "pid $pid"
}}
answers() {{ until systemctl is-active -q kvmfs && [ -c /dev/kvm ]; do sleep 0.2; done; }}
crash() {{
    before=$(property MainPID)
    kill -KILL "$before"
    until [ "$(property NRestarts)" = 1 ] && [ "$(property MainPID)" != "$before" ]; do sleep 0.2; done
    answers
}}
hang() {{
    mkdir -p /run/systemd/system/kvmfs.service.d
    printf '[Service]\\nWatchdogSec=3\\n' >/run/systemd/system/kvmfs.service.d/watchdog.conf
    systemctl daemon-reload && systemctl restart kvmfs && answers
    before=$(property MainPID)
    kill -STOP "$before"
    while [ "$(property MainPID)" = "$before" ]; do sleep 0.2; done
    answers && journalctl -u kvmfs --no-pager -o cat | grep -i watchdog
}}
run install {root}/scripts/install --prefix /tmp/prefix --units /run --kvmfs {kvmfs}
run verify systemd-analyze verify /run/systemd/system/kvmfs.service /run/systemd/system/kvmfs-tree.service
run start systemctl start kvmfs
run status property StatusText
run device device
run user as_user --groups=kvm {conversions}
run stranger as_user --clear-groups {conversions}
run begin begin
run before ask out
run restart systemctl restart kvmfs
run lives ask out
run after as_user --groups=kvm {conversions}
exec 3>&- 4<&-
run crash crash
run recovered as_user --groups=kvm {conversions}
run hang hang
run tree systemctl start kvmfs-tree
run look cat /run/kvmfs/exits
run untree systemctl stop kvmfs-tree
run stop systemctl stop kvmfs
run gone test ! -e /dev/kvm
run result property Result
run uninstall {root}/scripts/uninstall --prefix /tmp/prefix
run clean test ! -e /run/systemd/system/kvmfs.service
run log journalctl -u kvmfs -u kvmfs-tree --no-pager -o short-monotonic
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, linux_headers: Path) -> Session:
    kernel = paths.vm_kernel()
    built = tmp_path_factory.mktemp("systemd")
    built.chmod(0o755)
    built.parent.chmod(0o755)
    sources = {
        "conversions": paths.ROOT / "docs" / "examples" / "c" / "conversions.c",
        "vmm": paths.ROOT / "tests" / "inspect" / "vmm.c",
    }
    for name, source in sources.items():
        subprocess.run(
            ["cc", "-static", "-O2", "-isystem", linux_headers, "-o", built / name, source, "-lpthread"], check=True
        )
    # Nothing is installed from a registry in there: the units call this very checkout.
    kvmfs = (
        f"/usr/bin/env PYTHONPATH={paths.ROOT} KVMFS_CACHE_DIR={paths.cache_dir() / 'vm'} NUMBA_CPU_NAME=x86-64-v2 "
        f"NUMBA_CPU_FEATURES= {sys.executable} -m kvmfs"
    )
    job = _JOB.format(
        commands=COMMANDS,
        root=shlex.quote(str(paths.ROOT)),
        kvmfs=shlex.quote(kvmfs),
        # where a user may read; what pytest makes is its own user's only
        conversions="/run/conversions",
        vmm="/run/vmm",
    )
    copy = f"install -m 755 {built}/conversions {built}/vmm /run/"
    machine = VM(kernel, ["cuse", "kvm"]).run(f"{copy}\n{job}", 800, cwd=paths.ROOT, systemd=True)
    return Session(machine, parts(machine.output))


def test_the_units_are_right(session: Session) -> None:
    assert "installed" in session.succeeded("install")
    session.succeeded("verify")


def test_ready_means_that_the_device_answers(session: Session) -> None:
    session.succeeded("start")
    assert "Serving /dev/kvm (cuse)" in session.succeeded("status")
    assert "character special file root:kvm 660" in session.succeeded("device")


def test_a_user_of_group_kvm_runs_a_vm_and_another_does_not(session: Session) -> None:
    assert session.succeeded("user").endswith("guest: done")
    stranger = session.part("stranger")
    assert stranger.status == 1
    assert "Permission denied" in stranger.output


def test_a_vm_that_runs_outlives_a_restart(session: Session) -> None:
    assert "0x10" in session.succeeded("before")
    session.succeeded("restart")
    assert "0x10" in session.succeeded("lives")
    assert session.succeeded("after").endswith("guest: done")


def test_after_a_crash_it_is_there_again(session: Session) -> None:
    session.succeeded("crash")
    assert session.succeeded("recovered").endswith("guest: done")


def test_a_server_that_hangs_is_replaced(session: Session) -> None:
    assert "watchdog" in session.succeeded("hang").lower()


def test_the_tree_is_a_unit_of_its_own(session: Session) -> None:
    session.succeeded("tree")
    assert session.succeeded("look").strip() == "0"
    session.succeeded("untree")


def test_a_stop_takes_the_device_away(session: Session) -> None:
    session.succeeded("stop")
    session.succeeded("gone")
    assert "success" in session.succeeded("result")


def test_uninstalling_leaves_nothing(session: Session) -> None:
    session.succeeded("uninstall")
    session.succeeded("clean")
