"""A broker: `python -m tests.process.broker PATH CORE {passthrough,cached,FD}`.

Over a FUSE device, or for clients whose filters' listeners come through the socket FD. CORE: "real" or the module that
makes VMs. Says "ready" on stdout; ends on SIGTERM.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio

from kvmfs.broker import serve
from kvmfs.notify.carrier import Carrier
from kvmfs.notify.opens import Opens
from kvmfs.wire.device import Permissions, fuse_device
from tests.process.fakesystem import FakeSystem


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ready() -> None:
    print("ready", flush=True)


async def main(path: Path, core: str, pages: str) -> None:
    settings = {} if core == "real" else {"system": FakeSystem(), "core": core}
    with ExitStack() as undo:
        if pages.isdigit():
            carrier = Carrier(socket.socket(fileno=int(pages)), Opens(path, {}), log)
            connection, settings["carrier"] = carrier.device, carrier
        else:
            device = fuse_device(path, Permissions())
            undo.callback(device.remove)
            connection = device.connection
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_terminated, nursery.cancel_scope.cancel)
            await serve(connection, log=log, passthrough=pages != "cached", ready=ready, **settings)


async def _until_terminated(stop: Callable[[], None]) -> None:
    import signal

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            stop()


if __name__ == "__main__":
    trio.run(partial(main, Path(sys.argv[1]), *sys.argv[2:4]))
