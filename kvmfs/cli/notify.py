"""sd_notify(3): one datagram to the service manager, if there is one."""

import os
import socket


def watchdog_interval() -> float | None:
    """Seconds between two signs of life that the service manager wants from this process (sd_watchdog_enabled(3)); half
    of what would make it impatient. None: it wants none."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or not int(usec) or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def notify(*assignments: str) -> None:
    """Send e.g. ``"READY=1"``. Without $NOTIFY_SOCKET nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        peer.sendto("\n".join(assignments).encode(), address)
