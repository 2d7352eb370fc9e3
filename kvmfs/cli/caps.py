"""Capabilities of this process, as /proc shows them."""

from enum import IntFlag
from pathlib import Path


class Capability(IntFlag):
    """Source: include/uapi/linux/capability.h. Only those that kvmfs asks about."""

    SYS_PTRACE = 1 << 19
    SYS_ADMIN = 1 << 21
    MKNOD = 1 << 27


def effective() -> Capability:
    """Effective ones, in this user namespace."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return Capability(int(line.split()[1], 16))
    return Capability(0)


def in_initial_user_namespace() -> bool:
    """All ids are mapped to themselves: capabilities count for the whole system."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
