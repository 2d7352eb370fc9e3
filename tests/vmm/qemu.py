"""Debian's QEMU, unmodified, under `kvmfs run`: its output as it comes, its monitor, its end."""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import paths
from tests.support.processes import Finished

# What is on the command line is all there is.
MACHINE = ("-nodefaults", "-no-user-config", "-display", "none")
# The guest ends QEMU with a status by a write to this port.
EXIT_DEVICE = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
POWERED_OFF = 1  # such an end: the guest's status * 2 + 1


class Qemu:
    """A running QEMU, as a context manager that kills it in the end.

    Standard output is what QEMU complains about and, unless `serial` says otherwise, the guest's first serial port;
    input is typed on that port. `folder` is made, for sockets.
    """

    def __init__(
        self,
        folder: Path,
        irqchip: str,
        arguments: Sequence[str | Path],
        *,
        serial: str = "stdio",
        monitor: bool = False,
        transport: str = "auto",
    ) -> None:
        program = shutil.which("qemu-system-x86_64")
        if not program:
            paths.missing("no qemu-system-x86_64")
        folder.mkdir(exist_ok=True)
        words = [program, "-accel", f"kvm,kernel-irqchip={irqchip}", *MACHINE, "-serial", serial]
        words += map(str, arguments)
        listener = None
        if monitor:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / "qmp"))
            listener.listen()
            words += ["-chardev", f"socket,id=qmp,path={folder / 'qmp'}", "-mon", "chardev=qmp,mode=control"]
        self._words = tuple(words)
        self._text = ""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvmfs", "run", "--transport", transport, "--", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=paths.ROOT,
        )
        self.monitor = None
        if listener:
            try:
                with listener:
                    listener.settimeout(120)
                    self.monitor = Monitor(listener.accept()[0])
            except BaseException:
                self.__exit__()
                raise

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *_: object) -> None:
        if self.monitor:
            self.monitor.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    @property
    def finished(self) -> Finished:
        """So far, or at the end."""
        status = self._process.poll()
        seconds = time.monotonic() - self._started
        return Finished(self._words, 128 - status if status is not None and status < 0 else status, self._text, seconds)

    def expect(self, pattern: str, seconds: float) -> re.Match[str]:
        """Wait for output that matches; what comes before it is forgotten, so that the next call looks further on.

        AssertionError: it ended, or did not come in time.
        """
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self._text, re.MULTILINE)):
            assert self._read(deadline), f"no {pattern!r}: {self.finished}"
        self._text = self._text[found.end() :]
        return found

    def wait(self, seconds: float) -> Finished:
        """Wait for the end."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        # Its output has ended: so has QEMU, or has not in time.
        try:
            self._process.wait(max(deadline - time.monotonic(), 0) + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return Finished(self._words, None, self._text, seconds)
        return self.finished

    def type(self, text: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def _read(self, deadline: float) -> bool:
        """More output; False: no more will come, or not before the deadline."""
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return False
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        self._text += data.decode(errors="replace")
        return bool(data)


class Monitor:
    """The QEMU Machine Protocol on a connected socket (QEMU's docs/interop/qmp-spec.txt)."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(120)
        self._connection = connection
        self._file = connection.makefile("rw", encoding="utf-8")
        self._events: list[dict[str, Any]] = []
        assert "QMP" in self._receive()
        self.execute("qmp_capabilities")

    def close(self) -> None:
        self._file.close()
        self._connection.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's result. AssertionError: QEMU refused it."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while "event" in (message := self._receive()):
            self._events.append(message)
        assert "return" in message, (command, message)
        return message["return"]

    def human(self, line: str) -> str:
        """What the human monitor says to a line."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def event(self, name: str, seconds: float = 120) -> dict[str, Any]:
        """Wait for an event, also one that has come since the last one asked for; those before it are forgotten."""
        self._connection.settimeout(seconds)
        while True:
            message = self._events.pop(0) if self._events else self._receive()
            if message.get("event") == name:
                return message

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        assert line, "QEMU has closed its monitor"
        message: dict[str, Any] = json.loads(line)
        return message
