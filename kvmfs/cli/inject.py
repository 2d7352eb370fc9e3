"""`kvmfs inject`: rules for a VM that runs."""

from __future__ import annotations

import json

from kvmfs.inspect import finder
from kvmfs.kvm.inject.rules import Rule, to_message


def add(name: str, rules: tuple[Rule, ...], clear: bool) -> None:
    """OSError: ENOENT, EEXIST; EINVAL: the VM is of another version of kvmfs."""
    broker, vm = finder.find(name)
    with broker:
        broker.ask("inject", vm=vm.name, rules=[to_message(rule) for rule in rules], clear=clear)


def show(name: str, as_json: bool) -> None:
    """The rules, and how often they matched and fired. OSError: ENOENT, EEXIST."""
    broker, vm = finder.find(name)
    with broker:
        found = broker.report(vm.name, "rules")
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(header_style="bold")
    for column in ("n", "rule", "matched", "fired"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule in found:
        table.add_row(str(rule["number"]), rule["rule"], f"{rule['matched']:,}", f"{rule['fired']:,}")
    Console(highlight=False, markup=False).print(table)
