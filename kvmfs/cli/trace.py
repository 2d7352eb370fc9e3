"""`kvmfs trace`: what passes between a VMM and KVM, while it runs; `kvmfs compare`: whether two traces agree."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

from kvmfs.cli import run, serving
from kvmfs.inspect import finder
from kvmfs.inspect.finder import Broker
from kvmfs.inspect.trace import golden, text
from kvmfs.inspect.trace.decode import Event
from kvmfs.inspect.trace.session import Session
from kvmfs.inspect.trace.summary import Summary
from kvmfs.kvm.inject.rules import Rule

_VM: Final = re.compile(r"\d+(-\d+)?")


@dataclass(frozen=True, slots=True)
class Options:
    output: Path | None = None
    """Where events go; None: stderr."""
    json: bool = False
    exits: bool = False
    """Nothing but exits."""
    summary: bool = False
    """Counts and times at the end; and nothing else where there is no `output`."""
    full: bool = False


def names_vm(words: Sequence[str]) -> bool:
    """Whether the command line means a VM and not a command."""
    return len(words) == 1 and bool(_VM.fullmatch(words[0]))


def command(
    words: Sequence[str], options: Options, how: run.Options, log: logging.Logger, rules: tuple[Rule, ...] = ()
) -> int:
    """Run a command as `kvmfs run` does, and trace it: its exit status.

    :raises run.SetupError, processes.StartError: as run.run().
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        writer = _fork(partial(_write_all, theirs, options), close=ours)
        theirs.close()
        try:
            serve = partial(serving.serve, tracer=ours, rules=rules)
            return run.run(words, how, serve, log, keep=frozenset({ours.fileno()}))
        finally:
            ours.close()  # what the broker had of it is closed, too: the writer comes to the end
            with suppress(ChildProcessError):
                os.waitpid(writer, 0)


def vm(name: str, options: Options) -> None:
    """Trace a VM that runs until it ends, or until interrupted.

    :raises OSError: ENOENT, EBUSY: somebody else does.
    """
    broker, listed = finder.find(name)
    session = Session.attached(broker, listed.name)
    _write(session, options)


def compare(expected: Path, found: Path, *, exits_only: bool) -> golden.Difference | None:
    """ValueError, OSError."""
    return golden.compare(_load(expected), _load(found), exits_only=exits_only)


def _load(path: Path) -> list[Event]:
    with path.open(encoding="utf-8") as lines:
        return golden.load(lines)


def _fork(work: Callable[[], None], close: socket.socket) -> int:
    """A process that outlives what ends the command."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            close.close()
            work()
        except BrokenPipeError:
            pass
        except BaseException as error:
            print(f"kvmfs: the trace ends: {error!r}", file=sys.stderr)
        finally:
            os._exit(0)
    return pid


def _write_all(end: socket.socket, options: Options) -> None:
    _write(Session(Broker.over(end)), options)


def _write(session: Session, options: Options) -> None:
    summary = Summary()
    with ExitStack() as undo:
        undo.callback(session.close)
        out: IO[str] = sys.stderr
        if options.output:
            out = undo.enter_context(options.output.open("w", encoding="utf-8"))
        silent = options.summary and options.output is None
        with suppress(KeyboardInterrupt):
            for event, line in _lines(session.events(), options):
                summary.add(event)
                if not silent:
                    out.write(f"{line()}\n")
        out.flush()
        if session.lost:
            print(f"kvmfs: {session.lost} records were lost: they came faster than they could be read", file=sys.stderr)
        if options.summary:
            from rich.console import Console

            console = Console(stderr=True)
            console.print(summary.table())


def _lines(events: Iterable[Event], options: Options) -> Iterator[tuple[Event, Callable[[], str]]]:
    start = 0.0
    for event in events:
        start = start or event["t"]
        if options.exits and event["kind"] != "exit":
            continue
        if options.json:
            yield event, partial(json.dumps, event, separators=(",", ":"))
        else:
            yield event, partial(text.line, event, start, full=options.full)
