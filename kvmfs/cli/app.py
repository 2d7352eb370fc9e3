"""Commands and options; what they do is in the modules of their names."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from kvmfs.cli.run import Options, Transport

USAGE: Final = 2
"""Exit status of click for wrong usage."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A [bold]/dev/kvm[/bold] without a hypervisor: unmodified VMMs, guests run in software.",
    epilog="Start with [bold]kvmfs check[/bold], then [bold]kvmfs run -- CMD[/bold].",
)


@app.callback()
def kvmfs() -> None:
    """Commands stand by their names even where there is but one."""


class ExitStatus(SystemExit):
    """The exit status of a command that ran, whatever it is."""


TransportOption = Annotated[
    Transport,
    typer.Option(help="What carries the device: a FUSE file, or a CUSE character device (root, /dev/cuse)."),
]
DeviceOption = Annotated[Path, typer.Option(metavar="PATH", help="Where the device is.")]
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
    epilog="""Exit status: that of CMD, 128 + n if signal n ended it; [bold]125[/bold] kvmfs itself failed,
    [bold]126[/bold] CMD cannot be executed, [bold]127[/bold] CMD was not found.""",
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The program and its arguments.")],
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

    [dim]kvmfs run -- qemu-system-x86_64 -enable-kvm -nographic disk.img[/dim]

    [dim]kvmfs run -- cargo test[/dim]
    """
    from kvmfs.cli import serving
    from kvmfs.cli.processes import StartError
    from kvmfs.cli.run import SetupError
    from kvmfs.cli.run import run as run_command

    try:
        status = run_command(command, Options(device, transport, passthrough), serving.serve, _log(verbose))
    except SetupError as error:
        _fail(f"{error} (kvmfs check tells what is missing)", 125)
    except StartError as error:
        _fail(error, error.status)
    raise ExitStatus(status)
