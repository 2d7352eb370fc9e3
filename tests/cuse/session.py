"""A job in the virtual machine in parts, each with a status and output of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest

from tests.cuse.vm import Result

COMMANDS: Final = """\
run() {
    echo "@@ $1"
    shift
    "$@" 2>&1
    echo "@@= $?"
}"""
"""Shell functions of a job: `run PART COMMAND...`."""


@dataclass(frozen=True)
class Part:
    status: int
    output: str


@dataclass(frozen=True)
class Session:
    machine: Result
    parts: dict[str, Part]

    def part(self, name: str) -> Part:
        if name not in self.parts:
            pytest.fail(f"the machine did not get as far as {name}\n{self.machine}", pytrace=False)
        return self.parts[name]

    def succeeded(self, name: str) -> str:
        part = self.part(name)
        if part.status:
            log = self.parts.get("log", Part(0, "")).output
            pytest.fail(f"{name}: status {part.status}\n{part.output}\nthe daemon:\n{log}", pytrace=False)
        return part.output


def parts(output: str) -> dict[str, Part]:
    found: dict[str, Part] = {}
    name, lines = "", list[str]()
    for line in output.splitlines():
        if line.startswith("@@= "):
            found[name] = Part(int(line[4:]), "\n".join(lines))
        elif line.startswith("@@ "):
            name, lines = line[3:], []
        else:
            lines.append(line)
    return found
