"""What commands have in common: the application they belong to, options, how they end."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

import kvmfs
from kvmfs.cli.transport import Transport

if TYPE_CHECKING:
    from kvmfs.kvm.inject.rules import Rule

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
    typer.Option(
        help="What carries the device: a FUSE file, a CUSE character device (root, /dev/cuse), or, for run, seccomp "
        "user notification (needs neither). Default: the first of fuse, cuse, seccomp that works."
    ),
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
Failures = Annotated[
    list[str] | None,
    typer.Option("--fail", metavar="RULE", help="Have an ioctl fail: NAME=ERRNO[@N[+]]; may be repeated."),
]
Injections = Annotated[
    list[str] | None,
    typer.Option(
        "--inject",
        metavar="RULE|FILE.toml",
        help="Have memory accesses or ioctls go wrong, as docs/fault-injection.md has it; may be repeated.",
    ),
]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more to stderr; twice: everything.")]


def log_to_stderr(verbose: int) -> logging.Logger:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="kvmfs: %(message)s" if level > logging.DEBUG else _DEBUG_FORMAT)
    return logging.getLogger("kvmfs")


_DEBUG_FORMAT: Final = "kvmfs %(process)d %(relativeCreated)d ms %(name)s: %(message)s"


def checked(words: list[str] | None, hint: str) -> tuple[Rule, ...]:
    """The rules that an option `hint` gave."""
    if not words:
        return ()
    from kvmfs.kvm.inject.rules import load_all

    try:
        return tuple(load_all(words))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error), param_hint=hint) from None


def all_rules(failures: list[str] | None, injections: list[str] | None) -> tuple[Rule, ...]:
    """The rules of --fail and --inject."""
    return checked(failures, "--fail") + checked(injections, "--inject")


def fail(message: object, status: int) -> NoReturn:
    print(f"kvmfs: {message}", file=sys.stderr)
    raise ExitStatus(status)
