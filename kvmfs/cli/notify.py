"""sd_notify(3): one datagram to the service manager, if there is one."""

import os
import socket


def notify(*assignments: str) -> None:
    """Send e.g. ``"READY=1"``. Without $NOTIFY_SOCKET nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
        peer.sendto("\n".join(assignments).encode(), address)
