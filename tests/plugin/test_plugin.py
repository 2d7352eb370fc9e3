"""The pytest plugin, used by tests of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.plugin.conftest import PLUGIN
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(200)

Run = Callable[..., pytest.RunResult]

VMM = ROOT / "docs" / "examples" / "python" / "vmm.py"


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Runs a test file's text; and with options, again."""

    def go(text: str = "", *options: str) -> pytest.RunResult:
        if text:
            header = f"import sys\nimport pytest\nVMM = (sys.executable, {str(VMM)!r})\n"
            pytester.makepyfile(test_it=header + text)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *PLUGIN, *options)

    return go


def test_run_gives_exits_ioctls_and_output(run: Run) -> None:
    done = run(
        """
def test(kvmfs_run):
    result = kvmfs_run(*VMM)
    assert (result.status, result.stdout) == (0, "hello\\n")
    assert [event["name"] for event in result.exits][-1] == "KVM_EXIT_HLT"
    (created,) = result.ioctls("KVM_CREATE_VCPU")
    assert created["result"] > 2
    assert result.faults == []
    assert "exit status 0" in str(result)

def test_status_input_environment(kvmfs_run):
    result = kvmfs_run("sh", "-c", 'read word; echo $word $NAME; exit 3', input="hi\\n", env={"NAME": "you"})
    assert (result.status, result.stdout, result.trace) == (3, "hi you\\n", [])
"""
    )
    done.assert_outcomes(passed=2)


def test_marks_make_memory_go_wrong(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", slow='[[rule]]\ndo = "delay"\nfor = "1ms"\naccess = "fetch"\n')
    done = run(
        """
@pytest.mark.kvmfs_inject("slow.toml", "efault:access=fetch,after=1", "KVM_CREATE_VCPU=ENOMEM@9")
def test(kvmfs_run):
    result = kvmfs_run(*VMM)
    assert result.status == 1
    assert [(event["rule"], event["name"]) for event in result.injections] == [(1, "delayed"), (2, "EFAULT")]
    assert result.injections[0]["d"] > 1000
    assert result.exits[-1]["errno"] == "EFAULT"
"""
    )
    done.assert_outcomes(passed=1)


def test_a_mark_that_is_wrong_fails_its_test(run: Run) -> None:
    done = run(
        """
@pytest.mark.kvmfs_inject("efault:gap=1")
def test_key(kvmfs_run): ...

@pytest.mark.kvmfs_inject("none.toml")
def test_file(kvmfs_run): ...
"""
    )
    done.assert_outcomes(errors=2)
    done.stdout.fnmatch_lines(["*kvmfs_inject: efault:gap=1: 'gap' is no key of efault*", "*kvmfs_inject: *none.toml*"])


def test_marks_make_ioctls_fail(run: Run) -> None:
    done = run(
        """
@pytest.mark.kvmfs_fail("KVM_CREATE_VM=EMFILE")
def test(kvmfs_run):
    result = kvmfs_run(*VMM)
    assert result.status == 1
    assert result.ioctls()[-1]["errno"] == "EMFILE"

@pytest.mark.kvmfs_fail("KVM_CREATE_VM=ENONSENSE")
def test_nonsense(kvmfs_run):
    kvmfs_run(*VMM)
"""
    )
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["*ENONSENSE is no errno*"])


def test_golden_traces_are_recorded_and_compared(run: Run, pytester: pytest.Pytester) -> None:
    test = """
def test(kvmfs_run, kvmfs_golden):
    kvmfs_golden(kvmfs_run(*VMM))
"""
    missing = run(test)
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["*pytest --kvmfs-update records it*"])
    run("", "--kvmfs-update").assert_outcomes(passed=1)
    golden = pytester.path / "golden" / "test.json"
    assert golden.read_text().count("KVM_EXIT_IO") == 6
    run().assert_outcomes(passed=1)
    golden.write_text(golden.read_text().replace('"port":1016', '"port":1017', 1))
    changed = run()
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["*details.port: 0x3f9 became 0x3f8*"])


def test_a_device_is_there_for_one_test(run: Run) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    done = run(
        """
import fcntl, os
seen = []

def test_a(kvmfs_device):
    with kvmfs_device.open("r+b", buffering=0) as kvm:
        assert fcntl.ioctl(kvm, 0xAE00, 0) == 12
    seen.append(kvmfs_device)

def test_b(kvmfs_device):
    assert kvmfs_device not in seen
    with pytest.raises(OSError):
        fcntl.ioctl(os.open(seen[0], os.O_RDWR), 0xAE00, 0)
"""
    )
    done.assert_outcomes(passed=2)


def test_a_test_that_asks_for_nothing_pays_nothing(run: Run) -> None:
    done = run("def test():\n    assert not [name for name in sys.modules if name.startswith('numba')]\n")
    done.assert_outcomes(passed=1)


def test_the_markers_are_known(run: Run) -> None:
    run("@pytest.mark.kvmfs_fail()\ndef test():\n    pass\n", "--strict-markers").assert_outcomes(passed=1)
