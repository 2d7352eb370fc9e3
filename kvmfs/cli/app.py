"""Commands and options; what they do is in the modules of their names."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

import kvmfs
from kvmfs.cli.transport import Transport

USAGE: Final = 2
"""Exit status of click for wrong usage."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A **/dev/kvm** without a hypervisor: unmodified VMMs, guests run in software.",
    epilog="Start with **kvmfs check**, then **kvmfs run -- CMD**.",
)


class ExitStatus(SystemExit):
    """The exit status of a command that ran, whatever it is."""


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvmfs {kvmfs.__version__}")
        raise ExitStatus(0)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of all commands; the help is that of `app`."""


TransportOption = Annotated[
    Transport,
    typer.Option(help="What carries the device: a FUSE file, or a CUSE character device (root, /dev/cuse)."),
]
DeviceOption = Annotated[Path, typer.Option(metavar="PATH", readable=False, help="Where the device is.")]
Passthrough = Annotated[
    bool | None,
    typer.Option(
        "--passthrough/--no-passthrough",
        help="Map vCPU state as memory through FUSE passthrough (root, Linux 6.9). Default: if the kernel can.",
        show_default=False,
    ),
]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more to stderr; twice: everything.")]


def _log(verbose: int) -> logging.Logger:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="kvmfs: %(message)s" if level > logging.DEBUG else _DEBUG_FORMAT)
    return logging.getLogger("kvmfs")


_DEBUG_FORMAT: Final = "kvmfs %(process)d %(relativeCreated)d ms %(name)s: %(message)s"


def _fail(message: object, status: int) -> NoReturn:
    print(f"kvmfs: {message}", file=sys.stderr)
    raise ExitStatus(status)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="""Exit status: that of CMD, 128 + n if signal n ended it; **125** kvmfs itself failed,
    **126** CMD cannot be executed, **127** CMD was not found.""",
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="The program and its arguments.")],
    device: DeviceOption = Path("/dev/kvm"),
    transport: TransportOption = Transport.AUTO,
    passthrough: Passthrough = None,
    verbose: Verbose = 0,
) -> None:
    """Run CMD with a /dev/kvm of its own.

    The device exists for CMD and its children alone, and as long as CMD runs; a real /dev/kvm is hidden from them, and
    /sys/module/kvm tells of kvmfs. Nothing else of the system looks different, and nothing is left behind.

    Root is not needed where user namespaces are allowed. Signals go on to CMD; stdin, stdout, stderr and the terminal
    are its own.

    `kvmfs run -- ./my-vmm --its-options`

    `kvmfs run -- cargo test`
    """
    from kvmfs.cli import serving
    from kvmfs.cli.processes import StartError
    from kvmfs.cli.run import Options, SetupError
    from kvmfs.cli.run import run as run_command

    try:
        status = run_command(command, Options(device, transport, passthrough), serving.serve, _log(verbose))
    except SetupError as error:
        _fail(f"{error} (kvmfs check tells what is missing)", 125)
    except StartError as error:
        _fail(error, error.status)
    raise ExitStatus(status)


@app.command(epilog="Exit status: 0 stopped by SIGTERM or SIGINT, **125** there is no device.")
def serve(
    device: DeviceOption = Path("/dev/kvm"),
    transport: TransportOption = Transport.AUTO,
    mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Permission bits. Default: 0660.", show_default=False)
    ] = None,
    owner: Annotated[
        str | None, typer.Option(metavar="USER", help="Owner, by name or number. Default: root.", show_default=False)
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="GROUP", help="Its group: name or number. Default: kvm, if there is one.", show_default=False
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Hide what is at PATH meanwhile.")] = False,
    passthrough: Passthrough = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay; for service managers (sd_notify is spoken) and debugging.")
    ] = False,
    verbose: Verbose = 0,
) -> None:
    """Serve /dev/kvm to the whole system, as root, until SIGTERM.

    Goes to the background when the device answers, and prints its pid. VMs that exist when it stops live on until they
    are closed; the device is gone at once.

    `kvmfs serve --group kvm --mode 0660`
    """
    from kvmfs.cli import serve as daemon
    from kvmfs.cli import serving
    from kvmfs.cli.processes import StartError
    from kvmfs.cli.run import SetupError

    try:
        bits = None if mode is None else int(mode, 8)
    except ValueError:
        raise typer.BadParameter("an octal number such as 0660", param_hint="--mode") from None
    options = daemon.Options(device.absolute(), transport, passthrough, bits, owner, group, replace)
    log = _log(max(verbose, 1) if foreground else verbose)
    try:
        if foreground:
            daemon.serve(options, serving.serve, log)
        else:
            print(daemon.detached(lambda ready: daemon.serve(options, serving.serve, log, ready)))
    except SetupError as error:
        _fail(error, 125)
    except StartError as error:
        _fail(error, error.status)


@app.command(epilog="Exit status: 0 kvmfs run works here, **1** something it needs is missing.")
def check(
    json: Annotated[bool, typer.Option("--json", help="Print findings by code, for scripts.")] = False,
) -> None:
    """Try everything kvmfs needs; name what is missing, and the cure.

    Nothing is changed. /dev/kvm is not opened, which would load kvm.ko.
    """
    from kvmfs.cli import check as preflight

    report = preflight.check()
    if json:
        from json import dumps

        print(dumps(report.as_dict(), indent=2))
    else:
        from rich.console import Console

        preflight.show(report, Console().print)
    raise ExitStatus(0 if report.usable else 1)


@app.command()
def warm(
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes. Default: as many as CPUs.", show_default=False)
    ] = None,
) -> None:
    """Compile the vCPU into the cache.

    Needed once per version of kvmfs and numba; otherwise the first VM has to wait for it.
    $KVMFS_CACHE_DIR or $XDG_CACHE_HOME/kvmfs or ~/.cache/kvmfs holds the cache.
    """
    from kvmfs.cli import warm as cache

    cache.warm(jobs)


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
        _fail(error, 1)


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
        files.serve(mount.absolute(), _log(max(verbose, 1)))
    except files.TreeError as error:
        _fail(error, 125)
    except StartError as error:
        _fail(error, error.status)
