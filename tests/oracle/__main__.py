"""scripts/compare-kvm: what does KVM do, and do we do the same?"""

from __future__ import annotations

import difflib
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tests.support import paths

from . import compare

console = Console(highlight=False, soft_wrap=True)


def main(
    programs: Annotated[
        list[str] | None, typer.Argument(help=f"Which: {', '.join(compare.PROGRAMS)}. All, if none.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show all lines that differ, not the first only.")] = False,
    kvmfs_only: Annotated[bool, typer.Option("--kvmfs-only", help="Run here, and print the transcripts.")] = False,
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Compare with what KVM said when it was recorded: no machine is booted.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Keep what KVM says in tests/oracle/transcripts, for the tests.")
    ] = False,
) -> None:
    """Run small VMMs on the real KVM of Linux 6.12 and on kvmfs, and print the first line in which they differ.

    The programs are tests/oracle/*.c: each prints what its ioctls answer, its exits, registers and memory. The real KVM
    runs in an emulated machine (half a minute); --recorded saves that when only our side changes.

    Exit status: 0 when all transcripts are equal, 1 when some are not.
    """
    chosen = tuple(programs or compare.PROGRAMS)
    with tempfile.TemporaryDirectory(prefix="kvmfs-oracle-", dir=Path.home()) as name:
        directory = Path(name)
        compare.build(directory, paths.linux_tree() / "usr" / "include", chosen)
        ours = compare.on_kvmfs(directory, chosen)
        if kvmfs_only:
            for program in chosen:
                console.print(f"[bold]{program}[/]", escape("\n".join(ours.get(program, []))), sep="\n")
            raise SystemExit(0)
        theirs = compare.recorded(chosen) if recorded else compare.on_kvm(directory, paths.vm_kernel(), chosen)
    if record:
        compare.record(theirs)
    raise SystemExit(_tell(chosen, theirs, ours, everything))


def _tell(chosen: tuple[str, ...], theirs: dict[str, list[str]], ours: dict[str, list[str]], everything: bool) -> int:
    status = 0
    for program in chosen:
        expected, found = theirs.get(program, []), ours.get(program, [])
        unequal = compare.difference(expected, found)
        if unequal is None:
            console.print(f"[green]{program}[/]: {len(expected)} lines, equal")
            continue
        status = 1
        console.print(f"[red]{program}[/]: line {unequal.line + 1} of {len(expected)}, in {escape(unequal.section)}")
        console.print(f"  KVM:   {escape(unequal.expected)}\n  kvmfs: {escape(unequal.found)}")
        if everything:
            for line in difflib.unified_diff(expected, found, "KVM", "kvmfs", lineterm="", n=2):
                console.print(escape(line))
        else:
            console.print(f"  {unequal.more} lines differ in all (--all shows them)", style="dim")
    return status


if __name__ == "__main__":
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    app(prog_name="scripts/compare-kvm")
