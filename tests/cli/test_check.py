"""kvmfs check."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmfs.cli import check, probes
from kvmfs.cli.check import Level
from tests.cli.conftest import PYTHON, UNPRIVILEGED, finish
from tests.support.paths import ROOT

CODES = [
    *("arch", "kernel", "fuse.device", "cuse.device", "userns", "fuse.mount", "passthrough", "seccomp", "ptrace"),
    *("device", "jit.compiler", "jit.cache"),
]
KVMFS = (PYTHON, "-m", "kvmfs")


def levels(report: check.Report) -> dict[str, Level]:
    return {finding.code: finding.level for finding in report.findings}


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_cache", lambda: (True, "/cache"))


@pytest.mark.usefixtures("root", "jit")
def test_root() -> None:
    report = check.check()
    assert list(levels(report)) == CODES
    assert report.usable
    assert report.run == "fuse"
    assert report.serve in ("fuse", "cuse")


@pytest.mark.usefixtures("root")
def test_as_nobody_and_as_json() -> None:
    done = finish((*UNPRIVILEGED, *KVMFS, "check", "--json"))
    report = json.loads(done.stdout)
    assert report["run"] == "fuse in a user namespace"
    assert report["serve"] is None
    assert report["findings"]["passthrough"]["level"] == "note"
    assert report["findings"]["ptrace"]["level"] == "ok"
    assert done.returncode == (0 if report["usable"] else 1)


@pytest.mark.usefixtures("root")
def test_table_names_every_code() -> None:
    done = finish((*KVMFS, "check"), env={**os.environ, "COLUMNS": "200"})
    for line in done.stdout.splitlines()[1:9]:
        assert line.split()[0] in ("ok", "note", "missing")
    assert "kvmfs run: fuse" in done.stdout


def refuse(error: OSError) -> Callable[..., None]:
    def probe(*args: object, **options: object) -> None:
        raise error

    return probe


@pytest.mark.usefixtures("root", "jit")
@pytest.mark.parametrize("what", [("namespaces", "notification"), ("fuse_mount", "notification"), ("trace",)])
def test_what_is_refused_is_missing_and_has_a_cure(monkeypatch: pytest.MonkeyPatch, what: tuple[str, ...]) -> None:
    if what[0] == "fuse_mount":
        monkeypatch.setattr(check, "_device_file", _no_cuse(check._device_file))
    for probe in what:
        monkeypatch.setattr(probes, probe, refuse(PermissionError(1, "Operation not permitted")))
    report = check.check()
    code = {"namespaces": "userns", "fuse_mount": "fuse.mount", "trace": "ptrace"}[what[0]]
    (finding,) = (finding for finding in report.findings if finding.code == code)
    assert finding.level is Level.MISSING
    assert finding.cure
    assert not report.usable


def _no_cuse(real: Callable[[str, str], check.Finding]) -> Callable[[str, str], check.Finding]:
    missing = check.Finding("cuse.device", Level.MISSING, "there is no /dev/cuse", "")
    return lambda name, module: missing if name == "cuse" else real(name, module)


@pytest.mark.usefixtures("root", "jit")
@pytest.mark.parametrize("what", ["namespaces", "fuse_mount"])
def test_one_carrier_is_enough(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As in a container without privileges."""
    monkeypatch.setattr(check, "_device_file", _no_cuse(check._device_file))
    monkeypatch.setattr(probes, what, refuse(PermissionError(1, "Operation not permitted")))
    report = check.check()
    assert report.run == "seccomp"
    assert report.usable
    assert levels(report)["cuse.device"] is Level.NOTE
    assert levels(report)["seccomp"] is Level.OK


@pytest.mark.usefixtures("root", "jit")
def test_a_cold_cache_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_cache", lambda: (False, "/tmp/to/be/made"))
    report = check.check()
    assert levels(report)["jit.cache"] is Level.NOTE
    assert report.usable


@pytest.mark.usefixtures("root", "jit")
def test_a_cache_that_cannot_be_filled_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(check, "_cache", lambda: (False, str(tmp_path / "file" / "cache")))
    assert levels(check.check())["jit.cache"] is Level.MISSING


def test_a_probe_that_dies_is_an_answer() -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TimeoutError):
        probes.in_child(die)


def test_a_probe_leaves_no_mount(root: None) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    probes.in_child(lambda: probes.fuse_mount(False))
    assert Path("/proc/self/mountinfo").read_text() == before


def test_the_documentation_names_every_code() -> None:
    text = (ROOT / "docs" / "ci.md").read_text()
    assert [code for code in CODES if f"`{code}`" not in text] == []
