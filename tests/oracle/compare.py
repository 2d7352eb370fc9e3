"""Build the client programs, run them on either side, and find the first line that differs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cuse.vm import VM
from tests.support.paths import ROOT

TRANSCRIPTS = Path(__file__).with_name("transcripts")  # KVM's, as recorded
PROGRAMS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.c")))
SECONDS = 120  # for one program

KERNEL_LOG = re.compile(r"\[ *\d+\.\d+\] ")  # comes in between, on the machine's console
_STARTS, _ENDS = "@@ ", "@@= "


@dataclass(frozen=True)
class Difference:
    """Where two transcripts part: line numbers from 0, and what led there."""

    line: int
    section: str
    expected: str
    found: str
    more: int  # lines that differ, in all


def build(directory: Path, headers: Path, programs: Sequence[str]) -> None:
    """Static programs: the virtual machine need not have our libraries."""
    for name in programs:
        source = Path(__file__).with_name(f"{name}.c")
        flags = ["-std=gnu11", "-O1", "-static", "-Wall", "-Wextra", "-Werror", f"-I{headers}"]
        subprocess.run(["gcc", *flags, "-o", directory / name, source], check=True)


def _script(directory: Path, programs: Sequence[str]) -> str:
    lines = []
    for name in programs:
        program = shlex.quote(str(directory / name))
        lines += [f"echo '{_STARTS}{name}'", f"timeout {SECONDS} {program} 2>&1", f'echo "{_ENDS}$?"']
    return "\n".join(lines)


def _transcripts(output: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in output.splitlines():
        if line.startswith(_ENDS):
            lines.append(f"exit status {line.removeprefix(_ENDS)}")
        elif line.startswith(_STARTS):
            lines = found.setdefault(line.removeprefix(_STARTS), [])
        elif not KERNEL_LOG.match(line):
            lines.append(line.rstrip())
    return found


def on_kvm(directory: Path, kernel: Path, programs: Sequence[str]) -> dict[str, list[str]]:
    """Transcripts by program, from Linux 6.12's KVM in a virtual machine."""
    result = VM(kernel, ["kvm-amd"]).run(_script(directory, programs), SECONDS * len(programs))
    return _transcripts(result.output)


def recorded(programs: Sequence[str]) -> dict[str, list[str]]:
    """KVM's transcripts as scripts/compare-kvm --record kept them."""
    return {name: (TRANSCRIPTS / f"{name}.txt").read_text().splitlines() for name in programs}


def record(transcripts: dict[str, list[str]]) -> None:
    """Keep KVM's transcripts for recorded()."""
    TRANSCRIPTS.mkdir(exist_ok=True)
    for name, lines in transcripts.items():
        (TRANSCRIPTS / f"{name}.txt").write_text("\n".join(lines) + "\n")


def on_kvmfs(directory: Path, programs: Sequence[str]) -> dict[str, list[str]]:
    """Transcripts by program, from this tree."""
    argv = [sys.executable, "-m", "kvmfs", "run", "--", "sh", "-c", _script(directory, programs)]
    return _transcripts(subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False).stdout)


def difference(expected: Sequence[str], found: Sequence[str]) -> Difference | None:
    """The first line that differs."""
    longest = max(len(expected), len(found))
    pairs = [
        (side[n] if n < len(side) else "(the end)", other[n] if n < len(other) else "(the end)")
        for n in range(longest)
        for side, other in [(expected, found)]
    ]
    unequal = [number for number, (theirs, ours) in enumerate(pairs) if theirs != ours]
    if not unequal:
        return None
    first = unequal[0]
    headings = [line for line in expected[: first + 1] if line.startswith(("--", "=="))]
    return Difference(first, headings[-1] if headings else "the beginning", *pairs[first], len(unequal))
