"""A broker over a FUSE device: `python -m tests.process.broker PATH CORE {passthrough,cached}`.

CORE: "fake" or the module that makes VMs. Says "ready" on stdout; ends on SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from kvmfs.broker import serve
from kvmfs.wire.device import Permissions, fuse_device
from tests.process.fakesystem import FakeSystem


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ready() -> None:
    print("ready", flush=True)


async def main(path: Path, core: str, pages: str) -> None:
    device = fuse_device(path, Permissions())
    settings = {} if core == "real" else {"system": FakeSystem(), "core": core}
    passthrough = pages == "passthrough"
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_terminated, nursery.cancel_scope.cancel)
            await serve(device.connection, log=log, passthrough=passthrough, ready=ready, **settings)
    finally:
        device.remove()


async def _until_terminated(stop: Callable[[], None]) -> None:
    import signal

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            stop()


if __name__ == "__main__":
    trio.run(partial(main, Path(sys.argv[1]), *sys.argv[2:4]))
