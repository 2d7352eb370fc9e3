"""A VM at one moment as plain data: what `kvmfs show` and `kvmfs top` print, and their --json."""

from __future__ import annotations

import os
import pwd
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvmfs.abi.exits import Exit
from kvmfs.inspect.finder import Broker, Listed
from kvmfs.inspect.vm import Inspected


def outline(vm: Listed) -> dict[str, Any]:
    """Who it is."""
    return {**asdict(vm), "user": user(vm.uid), "command": command(vm.pid), "time": time.time()}


def summary(vm: Listed, inspected: Inspected) -> dict[str, Any]:
    """Who it is, and its counters. `time`: of the snapshot, seconds since 1970."""
    return {
        **outline(vm),
        "vcpus": len(inspected.vcpus),
        "running": sum(vcpu.state == "in guest" for vcpu in inspected.vcpus),
        "stats": inspected.statistics,
    }


def details(broker: Broker, vm: Listed, inspected: Inspected) -> dict[str, Any]:
    """All there is."""
    return {
        **summary(vm, inspected),
        "vcpus": [
            {
                "id": vcpu.id,
                "state": vcpu.state,
                "stats": vcpu.statistics,
                "exits": {exit_name(reason): count for reason, count in vcpu.exits.items()},
                "registers": vcpu.registers,
            }
            for vcpu in inspected.vcpus
        ],
        **{what: broker.report(vm.name, what) for what in ("slots", "attributes", "guest_memfd")},
        "rules": broker.report(vm.name, "rules"),
        "faults": [asdict(fault) for fault in inspected.faults()],
    }


def exit_name(reason: int) -> str:
    """MEMORY_FAULT for 39."""
    return Exit(reason).name if reason in Exit.__members__.values() else str(reason)


def user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def command(pid: int) -> str:
    """The client's program, "" when it is gone."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return Path(os.fsdecode(words[0])).name
    return ""
