"""python -m tests.cuse.vm: the virtual machine from the command line."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from .bzimage import extract_vmlinux
from .machine import VM


def _vmlinux(arguments: argparse.Namespace) -> int:
    arguments.output.write_bytes(extract_vmlinux(arguments.bzimage.read_bytes()))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    vm = VM(arguments.kernel, arguments.module)
    result = vm.run(shlex.join(arguments.command), arguments.timeout, cwd=Path.cwd(), echo=sys.stdout.buffer)
    if result.status is None:
        print(f"{result.output}\n(the machine did not get to the end)", file=sys.stderr)
        return 125
    return result.status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cuse.vm", description=__doc__)
    commands = parser.add_subparsers(required=True)

    vmlinux = commands.add_parser("vmlinux", help="unpack the ELF image of a bzImage")
    vmlinux.add_argument("bzimage", type=Path)
    vmlinux.add_argument("output", type=Path)
    vmlinux.set_defaults(call=_vmlinux)

    run = commands.add_parser(
        "run", help="run a command in the virtual machine; its exit status is ours, 125: no machine"
    )
    run.add_argument("--kernel", type=Path, required=True, help="a directory with vmlinux and modules/")
    run.add_argument("--module", action="append", default=[], help="a kernel module to load, with what it depends on")
    run.add_argument("--timeout", type=float, default=600, help="seconds (default: %(default)s)")
    run.add_argument("command", nargs="+")
    run.set_defaults(call=_run)

    arguments = parser.parse_args()
    return int(arguments.call(arguments))


sys.exit(main())
