"""Signals, and job control on a terminal."""

import os
import pty
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.cli.conftest import PYTHON, TOY
from tests.support.paths import ROOT

Toy = tuple[str, ...]
Spawn = Callable[..., "subprocess.Popen[str]"]

REPORT = """
import os, signal, sys
wanted = {getattr(signal, name) for name in sys.argv[1:]}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
while True:
    got = signal.sigwaitinfo(wanted)
    print(signal.Signals(got.si_signo).name, flush=True)
    if got.si_signo == signal.SIGUSR2: break
"""


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "WINCH", "ALRM", "CONT"])
def test_passed_on(toy: Toy, spawn: Spawn, name: str) -> None:
    process = spawn(*toy, "run", "--", PYTHON, "-c", REPORT, f"SIG{name}", "SIGUSR2")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.Signals[f"SIG{name}"])
    assert process.stdout.readline() == f"SIG{name}\n"
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.read() == "SIGUSR2\n"
    assert process.wait(30) == 0


def test_death_by_a_signal_that_was_passed_on(toy: Toy, spawn: Spawn) -> None:
    process = spawn(*toy, "run", "--", "sh", "-c", "echo ready; exec cat")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM


# A shell in the smallest form: session leader, runs its arguments as the foreground job, says when the job stops, lets
# it go on when told to on a pipe.
SHELL = """
import os, signal, sys
say, hear = int(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[3], sys.argv[3:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status): break
    os.write(say, b"stopped\\n")
    os.read(hear, 1)
    os.killpg(job, signal.SIGCONT)
os.write(say, b"exit %d\\n" % os.waitstatus_to_exitcode(status))
"""

# Says how many of each signal came, when it is told to by SIGUSR2.
COUNT = """
import os, signal, sys
counts = {}
def count(number, frame): counts[number] = counts.get(number, 0) + 1
for name in ("SIGINT", "SIGCONT"): signal.signal(getattr(signal, name), count)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.write(int(sys.argv[1]), b"pid %d %d\\n" % (os.getpid(), os.getppid()))
signal.sigwait({signal.SIGUSR2})
os.write(int(sys.argv[1]), b"int %d\\n" % counts.get(signal.SIGINT, 0))
"""


class Terminal:
    """The shell above on a terminal, running `kvmfs run -- COUNT`."""

    def __init__(self, words: Toy) -> None:
        reading, self._say = os.pipe()
        self._hear, self._tell = os.pipe()
        os.set_inheritable(self._say, True)
        os.set_inheritable(self._hear, True)
        argv = (*words, "run", "--", PYTHON, "-c", COUNT, str(self._say))
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execv(PYTHON, [PYTHON, "-c", SHELL, str(self._say), str(self._hear), *argv])
        os.close(self._say)
        os.close(self._hear)
        self.heard = os.fdopen(reading)

    def go_on(self) -> None:
        os.write(self._tell, b"!")

    def press_interrupt(self) -> None:
        """Returns when the group has been signalled: the terminal echoes the key after that (n_tty.c)."""
        os.write(self.master, b"\x03")
        echo = b""
        while b"^C" not in echo:
            echo += os.read(self.master, 4096)

    def close(self) -> None:
        self.heard.close()
        os.close(self._tell)
        os.close(self.master)
        os.waitpid(self.pid, 0)


@pytest.mark.usefixtures("root")
def test_interrupt_key_comes_once() -> None:
    """The terminal signals the whole group, command included: the launcher does not repeat it."""
    terminal = Terminal(TOY)
    pid, launcher = map(int, terminal.heard.readline().split()[1:])
    terminal.press_interrupt()
    os.kill(launcher, signal.SIGUSR2)  # goes the same way, after it
    assert terminal.heard.readline() == "int 1\n"
    assert terminal.heard.readline() == "exit 0\n"
    terminal.close()
    assert pid != launcher


@pytest.mark.usefixtures("root")
def test_suspend_key_and_fg() -> None:
    terminal = Terminal(TOY)
    _, launcher = map(int, terminal.heard.readline().split()[1:])
    os.write(terminal.master, b"\x1a")
    assert terminal.heard.readline() == "stopped\n"
    terminal.go_on()
    os.kill(launcher, signal.SIGUSR2)
    assert terminal.heard.readline() == "int 0\n"
    assert terminal.heard.readline() == "exit 0\n"
    terminal.close()
