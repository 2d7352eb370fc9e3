"""The command line. Imports nothing until it is used: `kvmfs run` has to start in no time."""

import sys


def main() -> None:
    """Entry point of ``kvmfs`` and ``python -m kvmfs``."""
    from kvmfs.cli.app import USAGE, ExitStatus, app

    try:
        app()
    except ExitStatus:
        raise
    except SystemExit as end:
        # Wrong options of `run` and `trace` must not look like an exit status of the command.
        if end.code == USAGE and sys.argv[1:2] in (["run"], ["trace"]):
            raise SystemExit(125) from None
        raise
