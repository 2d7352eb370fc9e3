"""--inject and --fail on the command line: what they take, and what they say of mistakes. No device is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvmfs.cli import base
from kvmfs.cli.app import app


def complaint(*words: str) -> str:
    """What a command says that ends for wrong usage."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "400", "TERM": "dumb"})
    assert result.exit_code == base.USAGE
    return result.output


@pytest.mark.parametrize("command", [("run",), ("trace",), ("serve", "--foreground")])
@pytest.mark.parametrize(
    ("option", "rule", "expected"),
    [
        ("--inject", "efault:gap=1", "no key of efault"),
        ("--inject", "none.toml", "No such file"),
        ("--fail", "KVM_RUN=EIO", "no ioctl that can be made to fail"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    command: tuple[str, ...], option: str, rule: str, expected: str
) -> None:
    rest = () if command[0] == "serve" else ("--", "true")
    said = complaint(*command, option, rule, *rest)
    assert option in said
    assert expected in said


def test_both_options_make_one_list(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\ndo = "efault"\n[[rule]]\ndo = "delay"\nfor = "1ms"\n')
    rules = base.all_rules(["KVM_NMI=EIO"], [str(file), "hwpoison:memory=private"])
    assert [rule.do for rule in rules] == ["fail", "efault", "delay", "hwpoison"]
