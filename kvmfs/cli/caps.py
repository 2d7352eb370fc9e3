"""Capabilities of this process."""

import os
import struct
from enum import IntFlag
from pathlib import Path
from typing import Final

from kvmfs.syscalls import Sys, syscall

_VERSION_3: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2


class Capability(IntFlag):
    """Source: include/uapi/linux/capability.h. Only those that kvmfs asks about."""

    SYS_PTRACE = 1 << 19
    SYS_ADMIN = 1 << 21


def _sets() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line[3:6]: int(line.split()[1], 16) for line in lines if line.startswith("Cap")}


def effective() -> Capability:
    """Effective ones, in this user namespace."""
    return Capability(_sets()["Eff"])


def in_initial_user_namespace() -> bool:
    """All ids are mapped to themselves: capabilities count for the whole system."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def keep_over_exec() -> None:
    """Let programs that this process executes have its capabilities, as those of root do anyway."""
    if os.geteuid() == 0:
        return
    permitted = _sets()["Prm"]
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    # struct __user_cap_header_struct; two of struct __user_cap_data_struct: effective, permitted, inheritable.
    syscall(Sys.CAPSET, struct.pack("<Ii", _VERSION_3, 0), struct.pack("<6I", low, low, low, high, high, high))
    for number in range(permitted.bit_length()):
        if permitted >> number & 1:
            syscall(Sys.PRCTL, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)
