"""The commands that make devices: `run`, `serve`, and what prepares them. What they do is in modules of their names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kvmfs.cli.base import (
    USAGE,
    DeviceOption,
    ExitStatus,
    Failures,
    Injections,
    Passthrough,
    TransportOption,
    Verbose,
    all_rules,
    app,
    fail,
    log_to_stderr,
)
from kvmfs.cli.transport import Transport

__all__ = ["USAGE", "ExitStatus", "app"]


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
    failures: Failures = None,
    injections: Injections = None,
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
    from kvmfs.cli.processes import SetupError, StartError
    from kvmfs.cli.run import Options
    from kvmfs.cli.run import run as run_command

    rules = all_rules(failures, injections)
    serve = partial(serving.serve, rules=rules) if rules else serving.serve
    try:
        status = run_command(command, Options(device, transport, passthrough), serve, log_to_stderr(verbose))
    except SetupError as error:
        fail(f"{error} (kvmfs check tells what is missing)", 125)
    except StartError as error:
        fail(error, error.status)
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
    failures: Failures = None,
    injections: Injections = None,
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
    from kvmfs.cli.processes import SetupError, StartError

    try:
        bits = None if mode is None else int(mode, 8)
    except ValueError:
        raise typer.BadParameter("an octal number such as 0660", param_hint="--mode") from None
    options = daemon.Options(device.absolute(), transport, passthrough, bits, owner, group, replace)
    log = log_to_stderr(max(verbose, 1) if foreground else verbose)
    broker = partial(serving.serve, rules=all_rules(failures, injections))
    try:
        if foreground:
            daemon.serve(options, broker, log)
        else:
            print(daemon.detached(lambda ready: daemon.serve(options, broker, log, ready)))
    except SetupError as error:
        fail(error, 125)
    except StartError as error:
        fail(error, error.status)


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


import kvmfs.cli.looking  # noqa: E402, F401  its commands come after these
