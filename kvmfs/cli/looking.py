"""The commands that look into VMs: `ls`, `show`, `top`, `faults`, `tree`, `trace`, `compare`; and `inject`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvmfs.cli.base import (
    DeviceOption,
    ExitStatus,
    Failures,
    Injections,
    Passthrough,
    TransportOption,
    Verbose,
    all_rules,
    app,
    checked,
    fail,
    log_to_stderr,
)
from kvmfs.cli.transport import Transport

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
VmArgument = Annotated[str, typer.Argument(metavar="VM", help="PID-FD as kvmfs ls has it; PID if that has one VM.")]


@app.command()
def ls(json: AsJson = False) -> None:
    """List the VMs that you may see: your own; as root, all.

    They are found in the network namespace that this runs in, whoever serves them.
    """
    from kvmfs.cli import look

    look.ls(json)


@app.command(epilog="Exit status: **1** there is no such VM, or it is not yours.")
def show(vm: VmArgument, json: AsJson = False) -> None:
    """Show a VM: vCPUs, registers, memslots, attributes, guest_memfd, memory faults.

    The VM is not stopped: what belongs together may be a moment apart.
    """
    from kvmfs.cli import look

    try:
        look.show(vm, json)
    except (OSError, ValueError) as error:
        fail(error, 1)


@app.command()
def top(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object a look, for scripts.")] = False,
    interval: Annotated[float, typer.Option("--interval", "-d", min=0.05, help="Seconds between looks.")] = 1.0,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="How often. Default: until interrupted.", show_default=False),
    ] = None,
) -> None:
    """Watch the VMs: exits, faults, millions of instructions a second."""
    from contextlib import suppress

    from kvmfs.cli import look

    with suppress(KeyboardInterrupt):
        look.top(interval, count, json)


@app.command(epilog="Exit status: **1** there is no such VM, or it is not yours.")
def faults(
    vm: VmArgument,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until the VM ends.")] = False,
) -> None:
    """Show the fault log: every memory access that left the fast path, what became of it, and how long that took.

    The VM keeps the last 32,768; what was overwritten before it was read is counted on stderr.

    `kvmfs faults --json --follow 4711-4`
    """
    from contextlib import suppress

    from kvmfs.cli import faults as log

    try:
        with suppress(KeyboardInterrupt):
            log.show(vm, json, follow)
    except (OSError, ValueError) as error:
        fail(error, 1)


@app.command(epilog="Exit status: **1** there is no such VM, or it is not yours; **2** a rule is wrong.")
def inject(
    vm: VmArgument,
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="RULE|FILE.toml", help="More rules. Default: list those there are.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Forget the rules that are there first.")] = False,
    json: AsJson = False,
) -> None:
    """Have memory accesses and ioctls of a running VM go wrong on purpose; or list the rules, and how often they fired.

    `kvmfs inject 4711-4 memory-fault:gpa=0x402000,access=write,times=3`

    `kvmfs inject 4711-4 delay:for=5ms,probability=0.01,seed=7`
    """
    from kvmfs.cli import inject as injection

    found = checked(rules, "RULE")
    try:
        if found or clear:
            injection.add(vm, found, clear)
        else:
            injection.show(vm, json)
    except OSError as error:
        fail(error, 1)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""Exit status: that of CMD as with kvmfs run; **1** there is no such VM of yours, or it is traced.""",
)
def trace(
    command: Annotated[list[str], typer.Argument(metavar="CMD|VM", help="A program and its arguments, or PID-FD.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stderr.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    exits: Annotated[bool, typer.Option("--exits", help="Exits only, no ioctls.")] = False,
    summary: Annotated[
        bool, typer.Option("--summary", "-c", help="Counts, times and errors at the end; without -o nothing else.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Leave nothing out of lines for people.")] = False,
    device: DeviceOption = Path("/dev/kvm"),
    transport: TransportOption = Transport.AUTO,
    passthrough: Passthrough = None,
    failures: Failures = None,
    injections: Injections = None,
    verbose: Verbose = 0,
) -> None:
    """Show every ioctl and every exit, decoded: of CMD, run as kvmfs run does, or of a VM that runs.

    `kvmfs trace -- ./my-vmm --its-options`

    `kvmfs trace --json -o golden.json -- ./my-vmm` records, and kvmfs compare tells what is different later.
    """
    from kvmfs.cli import trace as tracing
    from kvmfs.cli.processes import SetupError, StartError
    from kvmfs.cli.run import Options

    options = tracing.Options(output, json, exits, summary, full)
    try:
        if tracing.names_vm(command):
            tracing.vm(command[0], options)
            return
        how = Options(device, transport, passthrough)
        rules = all_rules(failures, injections)
        raise ExitStatus(tracing.command(command, options, how, log_to_stderr(verbose), rules))
    except SetupError as error:
        fail(f"{error} (kvmfs check tells what is missing)", 125)
    except StartError as error:
        fail(error, error.status)
    except OSError as error:
        fail(error, 1)


@app.command(epilog="Exit status: 0 they agree, **1** they differ, **2** a file is no trace.")
def compare(
    expected: Annotated[Path, typer.Argument(metavar="EXPECTED", help="What kvmfs trace --json wrote.")],
    found: Annotated[Path, typer.Argument(metavar="FOUND", help="And later.")],
    ioctls: Annotated[bool, typer.Option("--ioctls", help="Compare ioctls, too, not only exits.")] = False,
) -> None:
    """Compare two traces: the first difference, for each VM and vCPU.

    Times, processes, host addresses, descriptors and interruptions by signals do not count.
    """
    from kvmfs.cli import trace as tracing

    try:
        difference = tracing.compare(expected, found, exits_only=not ioctls)
    except (OSError, ValueError) as error:
        fail(error, 2)
    if difference:
        print(difference)
        raise ExitStatus(1)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status: that of CMD; **125** there is no tree.",
)
def tree(
    command: Annotated[list[str] | None, typer.Argument(metavar="CMD", help="With --debugfs.")] = None,
    mount: Annotated[Path, typer.Option("--mount", metavar="DIR", help="Where; made if it is not there.")] = Path(
        "/run/kvmfs"
    ),
    debugfs: Annotated[
        bool, typer.Option("--debugfs", help="Run CMD, which sees the tree as /sys/kernel/debug/kvm (root).")
    ] = False,
    verbose: Verbose = 0,
) -> None:
    """Show the VMs as files, like debugfs' folder kvm; until SIGTERM.

    A VM's files are its owner's. Reading does not stop a VM, and costs it nothing.

    `kvmfs tree --mount /run/kvmfs`

    `kvmfs tree --debugfs -- kvm_stat -d`
    """
    from kvmfs.cli import tree as files
    from kvmfs.cli.processes import StartError

    if debugfs != bool(command):
        raise typer.BadParameter("--debugfs wants a command, and only it does", param_hint="CMD")
    try:
        if command:
            raise ExitStatus(files.run_with_debugfs(command))
        files.serve(mount.absolute(), log_to_stderr(max(verbose, 1)))
    except files.TreeError as error:
        fail(error, 125)
    except StartError as error:
        fail(error, error.status)


@app.command(epilog="Exit status: 0, **1** nothing happened to memory, **2** the file is no trace.")
def map(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="What kvmfs trace --json wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("map.html"),
) -> None:
    """Draw what happened to guest memory: private, shared, faults, conversions, over time, as an HTML page."""
    from kvmfs.inspect import picture
    from kvmfs.inspect.trace import golden

    try:
        with trace.open(encoding="utf-8") as lines:
            found = picture.histories(golden.load(lines))
    except (OSError, ValueError) as error:
        fail(error, 2)
    if not found:
        fail(f"{trace}: no VM with memory in it", 1)
    output.write_text(picture.page(found, f"Guest memory: {trace.name}"), encoding="utf-8")
