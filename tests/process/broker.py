"""A broker over a FUSE device at a path: `python -m tests.process.broker PATH {fake,real} {passthrough,cached}`.

Says "ready" on stdout and goes on until its stdin ends.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import trio

from kvmfs.broker import serve
from kvmfs.wire.device import Permissions, fuse_device


async def main(path: Path, core: str, pages: str) -> None:
    device = fuse_device(path, Permissions())
    settings = {}
    if core == "fake":
        from tests.process.fakesystem import FakeSystem

        settings = {"system": FakeSystem(), "core": "tests.process.fakecore"}

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def ready() -> None:
        print("ready", flush=True)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_terminated, nursery.cancel_scope)
            await serve(device.connection, log=log, passthrough=pages == "passthrough", ready=ready, **settings)
    finally:
        device.remove()


async def until_terminated(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), *sys.argv[2:4])
