"""scripts/fuzz-cpu: prove the vCPU against other processors."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import compare, decoding, forms, fuzzer, report, undefined
from .design import DIFFERENCES
from .modes import design as modes_design
from .modes import fuzzer as modes_fuzzer
from .modes import report as modes_report

console = Console(highlight=False, soft_wrap=True)


class Against(StrEnum):
    """What our CPU is compared with."""

    host = "host"
    iced = "iced"
    unicorn = "unicorn"
    all = "all"


# Of those that execute: the fuzzer, and how it tells
FUZZERS = {Against.host: (fuzzer.Fuzzer, report), Against.unicorn: (modes_fuzzer.Fuzzer, modes_report)}


def _state_file(against: Against, seed: int, only: str | None) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmfs" / "fuzz"
    return cache / f"{against.value}-{seed}-{re.sub(r'[^a-z0-9]+', '-', (only or 'all').lower())}.json"


def _differences() -> None:
    table = Table("what", "why", show_lines=True)
    for name, rules in (("host", DIFFERENCES), ("Unicorn", modes_design.DIFFERENCES)):
        for rule in rules:
            table.add_row(f"{rule.name} ({name})", rule.reason)
    for name, reason in (*decoding.DIFFERENCES, *compare.LEFT_OUT):
        table.add_row(name, reason)
    for reason, names in forms.NOT_RUN.items():
        table.add_row(f"not run: {names.lower()}", reason)
    for names, _, words in undefined.TABLE:
        table.add_row(f"undefined flags of {names}", f'SDM vol. 2: "{words}"; compared on AMD but for {OPEN}')
    console.print(table)


def _tell(against: Against, made: Any, mismatch: Any) -> None:
    teller: Any = FUZZERS[against][1]
    console.print(escape(teller.text(teller.minimised(made, mismatch))), style="yellow")


def _replay(against: Against, word: str) -> int:
    make, teller = FUZZERS[against]
    with make() as made:
        found: Any = teller.unpacked(made, word)  # type: ignore[arg-type]
        for mismatch in found:
            _tell(against, made, mismatch)
    console.print("it differs" if found else "both agree")
    return 1 if found else 0


def _against_iced(cases: int, seed: int) -> int:
    total, started, kinds = 0, time.monotonic(), Counter[str]()
    first: dict[str, str] = {}
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        task = progress.add_task("decoding", total=cases, found=0)
        decoder, number = decoding.Decoding(), 0
        while total < cases:
            outcome = decoder.batch(seed, number)
            total, number = total + outcome.cases, number + 1
            for kind, example in outcome.mismatches:
                kinds[kind] += 1
                first.setdefault(kind, example)
            progress.update(task, completed=total, found=sum(kinds.values()))
    for kind, times in kinds.most_common():
        console.print(f"[yellow]{times} times {escape(kind)}[/]: {escape(first[kind])}")
    _summary(total, started, sum(kinds.values()))
    return 1 if kinds else 0


def _summary(cases: int, started: float, found: int) -> None:
    rate = cases / (time.monotonic() - started)
    console.print(f"{cases} cases, {rate:.0f} a second, {found or 'no'} mismatches")


OPEN = " ".join(undefined.OPEN)
COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    TextColumn("{task.fields[found]} mismatches"),
)  # fmt: skip


def _against_processor(against: Against, cases: int, seed: int, only: str | None, resume: bool, stop: bool) -> int:
    path = _state_file(against, seed, only)
    done: dict[str, int] = {"batches": 0, "cases": 0}
    kinds, missing, shown = Counter[str](), Counter[str](), set[str]()
    if resume and path.exists():
        kept = json.loads(path.read_text())
        done, kinds, missing = kept["done"], Counter(kept["kinds"]), Counter(kept["missing"])
        console.print(f"going on after {done['cases']} cases")
    path.parent.mkdir(parents=True, exist_ok=True)
    started, before = time.monotonic(), done["cases"]
    with FUZZERS[against][0](only) as made, Progress(*COLUMNS, console=console, transient=True) as progress:
        task = progress.add_task(only or "all", total=cases, completed=done["cases"], found=sum(kinds.values()))
        while done["cases"] < cases:
            outcome = made.batch(seed, done["batches"])
            done = {"batches": done["batches"] + 1, "cases": done["cases"] + outcome.cases}
            missing.update(outcome.missing)
            for mismatch in outcome.mismatches:
                kinds[mismatch.kind] += 1
                if mismatch.kind not in shown and len(shown) < MOST_SHOWN:
                    shown.add(mismatch.kind)
                    _tell(against, made, mismatch)
            path.write_text(json.dumps({"done": done, "kinds": kinds, "missing": missing}))
            progress.update(task, completed=done["cases"], found=sum(kinds.values()))
            if stop and kinds:
                break
    if missing:
        names = ", ".join(name for name, _ in missing.most_common())
        console.print(f"not implemented, so not compared ({sum(missing.values())} cases): {names}", style="dim")
    for kind, times in kinds.most_common():
        console.print(f"[yellow]{times} times[/] {escape(kind)}")
    _summary(done["cases"] - before, started, sum(kinds.values()))
    return 1 if kinds else 0


MOST_SHOWN = 40


def main(
    cases: Annotated[int, typer.Option(min=1, help="How many, in all.")] = 200_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other cases; the same seed, the same cases.")] = 1,
    only: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Only instructions whose mnemonic, or row in jit/cpu/opcodes*.py, matches."),
    ] = None,
    against: Annotated[
        Against, typer.Option(help="This host, iced-x86's decoder, Unicorn, or one after another.")
    ] = Against.host,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where this seed and --only were left.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="At the first batch with a mismatch.")] = False,
    replay: Annotated[
        str | None, typer.Option(metavar="WORD", help="Run one case again: the word its report ends with.")
    ] = None,
    differences: Annotated[
        bool, typer.Option("--differences", help="List the differences that are meant, and why.")
    ] = False,
) -> None:
    """Run single instructions on our vCPU and on another processor, and compare all that they leave behind.

    Forms come from the opcode tables: every row with the prefixes, operands, sizes and immediates that it can have, in
    64-, 32- and 16-bit code. Registers, memory, flags, FPU and vector state are random around the interesting values.
    The host runs each instruction in a guarded child process; faults are results like any other. Unicorn has the other
    modes, and system instructions: real, virtual-8086, 16- and 32-bit protected mode at CPL 0 and 3.

    Examples:

        scripts/fuzz-cpu --cases 5000000 --resume       # the whole proof; stop it and start it again at will

        scripts/fuzz-cpu --only '^(shl|shr|sar)'        # one group

        scripts/fuzz-cpu --only vex                     # everything in a VEX encoding

        scripts/fuzz-cpu --against unicorn --only real  # what real mode can do

        scripts/fuzz-cpu --against iced                 # lengths, operands and validity of random bytes

    Exit status: 0 when both agree everywhere, 1 when they do not.
    """
    if differences:
        _differences()
        status = 0
    elif replay:
        status = _replay(against, replay)
    else:
        status = 0
        for one in (Against.iced, *FUZZERS) if against is Against.all else (against,):
            console.print(f"next to {one}", style="dim")
            if one is Against.iced:
                status |= _against_iced(cases, seed)
            else:
                status |= _against_processor(one, cases, seed, only, resume, stop)
    raise SystemExit(status)


if __name__ == "__main__":
    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.command()(main)
    app(prog_name="scripts/fuzz-cpu")
