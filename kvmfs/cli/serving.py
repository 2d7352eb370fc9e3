"""The broker as a process's main function: until SIGTERM or SIGINT, or until the device is gone."""

from __future__ import annotations

import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmfs.cli.caps import Capability, effective, in_initial_user_namespace
from kvmfs.cli.notify import notify, watchdog_interval
from kvmfs.kvm.inject.rules import Rule
from kvmfs.wire.connection import Connection

if TYPE_CHECKING:
    from kvmfs.broker.carrier import Carrier


def serve(
    connection: Connection,
    *,
    log: logging.Logger,
    passthrough: bool | None,
    ready: Callable[[], None],
    tracer: socket.socket | None = None,
    rules: tuple[Rule, ...] = (),
    carrier: Carrier | None = None,
) -> None:
    """Serve the device. VMs that exist then live on in their workers until their clients close them.

    :param passthrough: None: where the kernel allows it.
    :param ready: called when clients are served.
    :param tracer: who is told of all that happens. :param rules: faults on purpose.
    :param carrier: how VMs' files get to clients, if it is not FUSE.
    """
    if passthrough is None:
        # Kernels that have it offer it to every mount, and refuse it later (fs/fuse/passthrough.c, fuse_backing_open).
        passthrough = Capability.SYS_ADMIN in effective() and in_initial_user_namespace()
    # Three descriptors a VM, and what a client passes: more than the soft limit of most systems.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    import trio

    from kvmfs import broker

    async def until_terminated(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                scope.cancel()

    async def show_life(interval: float) -> None:
        while True:
            notify("WATCHDOG=1")
            await trio.sleep(interval)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_terminated, nursery.cancel_scope)
            if interval := watchdog_interval():
                nursery.start_soon(show_life, interval)
            await broker.serve(
                connection,
                log=log.info,
                passthrough=passthrough,
                ready=ready,
                tracer=tracer,
                rules=rules,
                carrier=carrier,
            )
            nursery.cancel_scope.cancel()

    trio.run(main)
