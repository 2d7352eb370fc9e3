"""`kvmfs ls`, `kvmfs show`, `kvmfs top`: VMs as tables for people, or as JSON for scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvmfs.cli.faults import fault_row, fault_table
from kvmfs.inspect import finder, snapshot
from kvmfs.inspect.finder import Broker, Listed
from kvmfs.inspect.vm import Inspected

if TYPE_CHECKING:
    from rich.table import Table


def snapshots() -> list[dict[str, Any]]:
    """Of every VM that we may see. One that is served by another version of kvmfs has no "stats"."""
    found: list[dict[str, Any]] = []
    for address in finder.addresses():
        with suppress(OSError, KeyError, TypeError), Broker(address) as broker:
            for vm in broker.vms():
                with suppress(OSError):  # it ends
                    found.append(_snapshot(broker, vm))
    return sorted(found, key=lambda vm: (vm["pid"], vm["fd"]))


def _snapshot(broker: Broker, vm: Listed) -> dict[str, Any]:
    try:
        with Inspected(broker.inspection(vm.name)) as inspected:
            return snapshot.summary(vm, inspected)
    except ValueError:
        return snapshot.outline(vm)


def ls(as_json: bool) -> None:
    found = snapshots()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    # Not rich: this has to answer at once.
    rows = [("VM", "USER", "COMMAND", "VCPUS", "EXITS", "FAULTS", "INSTRUCTIONS")]
    for vm in found:
        stats = vm.get("stats", {})
        counted = (stats.get(name, "?") for name in ("userspace_exits", "memory_faults", "instructions"))
        numbers = (vm.get("vcpus", "?"), *counted)
        rows.append((vm["name"], vm["user"], vm["command"], *map(str, numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index > 2 else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def show(name: str, as_json: bool) -> None:
    """OSError: ENOENT, EEXIST."""
    broker, vm = finder.find(name)
    with broker, Inspected(broker.inspection(vm.name)) as inspected:
        found = snapshot.details(broker, vm, inspected)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for part in _tables(found):
        console.print(part)
        console.print()


def _tables(vm: dict[str, Any]) -> list[Table]:
    kind = {0: "", 1: ", private memory"}.get(vm["kind"], f", kind {vm['kind']}")
    age = time.time() - vm["created"]
    title = f"VM {vm['name']} of {vm['user']}: {vm['command']}{kind}, for {age:.0f} s, process {vm['worker']}"
    vcpus = _table(title, "vCPU", "state", "rip", "instructions", "exits", "why it left")
    for vcpu in vm["vcpus"]:
        why = ", ".join(f"{count} {name}" for name, count in sorted(vcpu["exits"].items(), key=lambda item: -item[1]))
        stats, registers = vcpu["stats"], vcpu["registers"]
        vcpus.add_row(
            str(vcpu["id"]), vcpu["state"], f"{registers['rip']:#x}", f"{stats['instructions']:,}",
            f"{stats['userspace_exits']:,}", why,
        )  # fmt: skip
    slots = _table("memslots", "slot", "gpa", "size", "client address", "flags", "guest_memfd")
    for slot in vm["slots"]:
        slots.add_row(
            str(slot["slot"]), f"{slot['gpa']:#x}", f"{slot['size']:#x}", f"{slot['userspace_addr']:#x}",
            f"{slot['flags']:#x}", slot["guest_memfd"] or "",
        )  # fmt: skip
    attributes = _table("memory attributes", "gpa", "size", "attributes")
    for entry in vm["attributes"]:
        attributes.add_row(f"{entry['gpa']:#x}", f"{entry['size']:#x}", f"{entry['attributes']:#x}")
    files = _table("guest_memfd", "name", "size", "allocated")
    for file in vm["guest_memfd"]:
        files.add_row(file["name"], f"{file['size']:#x}", f"{file['allocated']:#x}")
    rules = _table("faults on purpose", "n", "rule", "matched", "fired")
    for rule in vm["rules"]:
        rules.add_row(str(rule["number"]), rule["rule"], str(rule["matched"]), str(rule["fired"]))
    faults = fault_table("last memory faults")
    for fault in [fault for fault in vm["faults"] if fault["outcome"].startswith("memory fault")][-10:]:
        faults.add_row(*fault_row(fault, vm["created"]))
    return [table for table in (vcpus, slots, attributes, files, rules, faults) if table.rows]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


# top ------------------------------------------------------------------------------------------------------------------


@dataclass
class Rates:
    """What happened between two looks, a second. An entry's key is the VM's name."""

    before: dict[str, dict[str, Any]]

    def of(self, vm: dict[str, Any], statistic: str) -> float:
        before = self.before.get(vm["name"])
        if before is None or before["worker"] != vm["worker"] or vm["time"] <= before["time"]:
            return 0.0
        done: int = vm["stats"][statistic] - before["stats"][statistic]
        elapsed: float = vm["time"] - before["time"]
        return done / elapsed


def top(interval: float, count: int | None, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Look again every `interval` seconds, `count` times or until interrupted. JSON: an object a line and a look."""
    before = {vm["name"]: vm for vm in snapshots() if "stats" in vm}
    looks = 0
    if as_json:
        while count is None or looks < count:
            sleep(interval)
            found, rates, before, looks = _look(before, looks)
            line = [{**vm, "rates": {name: rates.of(vm, name) for name in vm["stats"]}} for vm in found]
            print(json.dumps({"time": time.time(), "vms": line}), flush=True)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(_top_table([], Rates({})), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while count is None or looks < count:
            sleep(interval)
            found, rates, before, looks = _look(before, looks)
            live.update(_top_table(found, rates), refresh=True)


def _look(
    before: dict[str, dict[str, Any]], looks: int
) -> tuple[list[dict[str, Any]], Rates, dict[str, dict[str, Any]], int]:
    found = [vm for vm in snapshots() if "stats" in vm]
    return found, Rates(before), {vm["name"]: vm for vm in found}, looks + 1


def _top_table(found: list[dict[str, Any]], rates: Rates) -> Table:
    from rich.table import Table

    running = sum(vm["running"] for vm in found)
    table = Table(title=f"kvmfs: {len(found)} VMs, {running} vCPUs in guests", title_justify="left", expand=True)
    for name in ("VM", "user", "command"):
        table.add_column(name)
    for name in ("vCPUs", "in guest", "MIPS", "exits/s", "io/s", "mmio/s", "faults/s", "TLB misses/s"):
        table.add_column(name, justify="right")
    for vm in sorted(found, key=lambda vm: -rates.of(vm, "instructions")):
        table.add_row(
            vm["name"], vm["user"], vm["command"], str(vm["vcpus"]), str(vm["running"]),
            f"{rates.of(vm, 'instructions') / 1e6:,.1f}",
            *(f"{rates.of(vm, name):,.0f}" for name in (
                "userspace_exits", "io_exits", "mmio_exits", "memory_faults", "tlb_misses")),
        )  # fmt: skip
    return table


__all__ = ["Listed", "Rates", "ls", "show", "snapshots", "top"]
