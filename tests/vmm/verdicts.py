"""What guests with programs/check.c as their init tell."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.support.processes import Finished


def verdicts(output: str) -> dict[str, str]:
    """What was said about each check."""
    return dict(re.findall(r"^check (\w+): (.*?)\r?$", output, re.MULTILINE))


def passed(done: Finished, checks: Iterable[str], status: int) -> None:
    """AssertionError unless all these checks passed, and no others, and the guest ended with `status`."""
    assert verdicts(done.output) == dict.fromkeys(checks, "ok"), done
    assert done.status == status, done
