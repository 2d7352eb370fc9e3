"""`kvmfs run --transport seccomp`: no device node, no mount, no namespace, no root (kvmfs.notify).

The broker is forked first and waits for the listener of the filter that the command is going to have; the command
installs that just before it is executed, and sends the listener over a socket.
"""

import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from kvmfs.cli import modparams
from kvmfs.cli.processes import SetupError
from kvmfs.notify import filter as rules
from kvmfs.notify.opens import Opens


class Notified:
    """The socket that the listener goes through."""

    def __init__(self) -> None:
        self.ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        """Of the broker's end."""
        return self.ours.fileno()

    def serve(self, device: Path, serve: Callable[..., None], log: logging.Logger, ready: Callable[[], None]) -> None:
        """In the broker: until it is told to end. `serve`: a processes.Serve that takes a `carrier`."""
        from kvmfs.notify.carrier import Carrier  # with trio, which nobody else here needs

        self._theirs.detach()  # it was closed with all else that is not the broker's
        contents = {
            f"/sys/module/{module}/parameters/{name}": f"{value}\n".encode()
            for module, parameters in modparams.modules().items()
            for name, value in parameters.items()
        }
        carrier = Carrier(self.ours, Opens(device, contents), log.info)
        serve(carrier.device, log=log, passthrough=True, ready=ready, carrier=carrier)

    def close(self) -> None:
        self.ours.close()
        self._theirs.close()

    def bind(self) -> None:
        """In the process that is going to be the command."""
        try:
            listener = rules.install()
        except OSError as error:
            raise SetupError(f"no seccomp user notification: {error.strerror}") from None
        socket.send_fds(self._theirs, [b"!"], [listener])
        os.close(listener)
        self.close()
