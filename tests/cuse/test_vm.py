"""The virtual machine itself: what it promises to those who use it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuse.vm import VM
from tests.support import paths


@pytest.fixture(scope="module")
def kernel() -> Path:
    return paths.vm_kernel()


def test_status_output_environment_and_directory_are_the_commands(kernel: Path) -> None:
    result = VM(kernel).run(
        'echo "$WORD"; pwd; printf unfinished; exit 200', 60, cwd=paths.ROOT, env={"WORD": "two words"}
    )
    assert (result.status, result.output) == (200, f"two words\n{paths.ROOT}\nunfinished")


def test_the_hosts_files_cannot_be_changed(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    result = VM(kernel).run("echo new >file && cat file", 60, cwd=tmp_path)
    assert result.status == 0, result
    assert (tmp_path / "file").read_text() == "old"


def test_a_machine_that_does_not_end_is_ended(kernel: Path) -> None:
    result = VM(kernel).run("echo before; sleep 1000", 12)
    assert result.status is None
    assert "before" in result.output


def test_a_panic_is_no_status(kernel: Path) -> None:
    result = VM(kernel).run("echo c >/proc/sysrq-trigger", 60)
    assert result.status is None


def test_the_oracle_is_a_real_kvm(kernel: Path, selftests_dir: Path) -> None:
    result = VM(kernel, ["kvm-amd"]).run(f"grep -w kvm /proc/misc && {selftests_dir}/x86_64/userspace_io_test", 120)
    assert result.status == 0, result
