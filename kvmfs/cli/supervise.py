"""The launcher while the command runs: signals go on to it, its stops become ours, its end is ours.

- Signals are blocked and taken with sigwaitinfo(2), which says who sent them. What the terminal sends (si_code > 0,
  "the kernel") went to the whole foreground process group, the command included, so it is not passed on; nor is what
  the command sends to its own group. kill(2) by anybody else was meant for the command and is.
- Job control: if the terminal stops the command (SIGTSTP, SIGTTIN, SIGTTOU), the launcher stops too, so that the shell
  notices; the shell's SIGCONT wakes both. A command stopped by SIGSTOP is between it and its debugger.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final

from kvmfs.cli import processes

_FORWARDED: Final = {
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGCONT,
}
_TAKEN: Final = _FORWARDED | {signal.SIGCHLD}
_JOB_CONTROL: Final = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}


def block_signals() -> set[signal.Signals]:
    """Before the first fork. :returns: the mask that was, for the command."""
    return {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)}


def supervise(command: int, broker: processes.Broker) -> int:
    """Wait for the command. :returns: its exit status, 128 + n for signal n.

    The broker's death is reported; the command goes on without it.
    """
    while True:
        info = signal.sigwaitinfo(_TAKEN)
        if info.si_signo != signal.SIGCHLD:
            from_terminal = info.si_code > 0 and info.si_signo != signal.SIGCONT
            if not from_terminal and info.si_pid != command:
                os.kill(command, info.si_signo)
            continue
        for pid, status in _changes():
            if pid == broker.pid:
                print("kvmfs: the broker is gone; the device fails from now on", file=sys.stderr)
                broker.running = False
            elif pid == command and os.WIFSTOPPED(status):
                if os.WSTOPSIG(status) in _JOB_CONTROL:
                    os.kill(os.getpid(), signal.SIGSTOP)
            elif pid == command:
                return processes.exit_status(status)


def _changes() -> Iterator[tuple[int, int]]:
    """(pid, wait status) of children that ended or stopped. As the first process of a container we have others, too."""
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            yield pid, status
