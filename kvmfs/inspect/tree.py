"""What is in the tree at /run/kvmfs: like debugfs' folder kvm, and with its names where it has them.

    exits, io_exits, ...            sums over all VMs (kvm_stat reads these names)
    PID-FD/                         a VM
        exits, io_exits, ...        its sums over its vCPUs
        client                      who it belongs to
        slots, attributes, guest_memfd
        faults                      the fault log, a line of LINE bytes each; `tail -f` follows
        faults.json                 the same in JSON
        injection                   rules (kvmfs inject), how often they matched and fired
        vcpuN/                      a vCPU by its id
            exits, ...              its own
            state, registers, tsc-offset, tsc-scaling-ratio, tsc-scaling-ratio-frac-bits

A node is made when it is looked up, and says what it holds when it is read.
"""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from kvmfs.abi.memory import KVM_MEMORY_ATTRIBUTE_PRIVATE
from kvmfs.inspect import snapshot, stats
from kvmfs.inspect.vm import Fault, Vcpu
from kvmfs.inspect.watch import Watch, Watched
from kvmfs.jit import state as S
from kvmfs.kvm.inspection import Header

LINE: Final = 192
JSON_LINE: Final = 320
_FRAC_BITS: Final = 32  # of S.TSC_RATIO

Path = tuple[str, ...]
"""Names from the root on."""


@dataclass(frozen=True)
class Node:
    """A file or a folder. `read(offset, size)` gives a file's bytes; `size` is None where only reading tells."""

    mode: int
    uid: int
    gid: int
    time: float
    read: Callable[[int, int], bytes] | None = None
    size: int | None = None


class Tree:
    """Any thread may ask. `uid`, `gid`: whose the root and the sums are."""

    def __init__(self, watch: Watch, uid: int, gid: int) -> None:
        self._watch = watch
        self._uid, self._gid = uid, gid
        self._born = time.time()

    def names(self, path: Path) -> list[str]:
        """What is in a folder. FileNotFoundError."""
        if not path:
            return [*_STATISTICS, *self._watch.vms()]
        vm = self._vm(path)
        if len(path) == 1:
            return [*_STATISTICS, *_VM_FILES, *_LOGS, *(f"vcpu{vcpu.id}" for vcpu in vm.seen.vcpus)]
        _vcpu(vm, path[1])
        return [*stats.VCPU, *_VCPU_FILES]

    def node(self, path: Path) -> Node:
        """FileNotFoundError."""
        if not path:
            return Node(stat.S_IFDIR | 0o555, self._uid, self._gid, self._born)
        if len(path) == 1 and path[0] in _STATISTICS:
            return Node(
                stat.S_IFREG | 0o400, self._uid, self._gid, self._born, _text(lambda: f"{self._sum(path[0])}\n")
            )
        vm = self._vm(path)
        match path[1:]:
            case ():
                return _folder(vm)
            case (name,) if name in _LOGS:
                width, line = _LOGS[name]
                size = vm.seen.vm[Header.FAULT_COUNT] * width
                return _file(vm, lambda offset, size: _faults(vm, offset, size, width, line), size)
            case (name,) if name in _STATISTICS:
                return _file(vm, _text(lambda: f"{vm.seen.statistics[name]}\n"))
            case (name,) if name in _VM_FILES:
                return _file(vm, _text(lambda: _VM_FILES[name](vm)))
            case (name,):
                _vcpu(vm, name)
                return _folder(vm)
            case (folder, name):
                vcpu = _vcpu(vm, folder)
                if name in stats.VCPU:
                    return _file(vm, _text(lambda: f"{stats.VCPU[name](vcpu)}\n"))
                if name in _VCPU_FILES:
                    return _file(vm, _text(lambda: _VCPU_FILES[name](vcpu)))
        raise FileNotFoundError

    def _vm(self, path: Path) -> Watched:
        vm = self._watch.vms().get(path[0])
        if vm is None:
            raise FileNotFoundError
        return vm

    def _sum(self, name: str) -> int:
        return sum(vm.seen.statistics[name] for vm in self._watch.vms().values())


def _vcpu(vm: Watched, folder: str) -> Vcpu:
    for vcpu in vm.seen.vcpus:
        if folder == f"vcpu{vcpu.id}":
            return vcpu
    raise FileNotFoundError


def _folder(vm: Watched) -> Node:
    return Node(stat.S_IFDIR | 0o500, vm.listed.uid, vm.listed.gid, vm.listed.created)


def _file(vm: Watched, read: Callable[[int, int], bytes], size: int | None = None) -> Node:
    return Node(stat.S_IFREG | 0o400, vm.listed.uid, vm.listed.gid, vm.listed.created, read, size)


def _text(make: Callable[[], str]) -> Callable[[int, int], bytes]:
    """A file whose text is made when its beginning is read, and stays for who reads on."""
    made = b""

    def read(offset: int, size: int) -> bytes:
        nonlocal made
        if offset == 0:
            made = make().encode()
        return made[offset : offset + size]

    return read


# Contents -------------------------------------------------------------------------------------------------------------


def _client(vm: Watched) -> str:
    listed = vm.listed
    return (
        f"pid {listed.pid}\nfd {listed.fd}\nworker {listed.worker}\nuid {listed.uid}\ngid {listed.gid}\n"
        f"type {listed.kind}\ncreated {listed.created:.6f}\ncommand {snapshot.command(listed.pid)}\n"
    )


def _slots(vm: Watched) -> str:
    lines = ["slot gpa size userspace_addr flags guest_memfd"]
    lines += [
        f"{slot['slot']} {slot['gpa']:#x} {slot['size']:#x} {slot['userspace_addr']:#x} {slot['flags']:#x} "
        f"{slot['guest_memfd'] or '-'}"
        for slot in vm.report("slots")
    ]
    return "\n".join(lines) + "\n"


def _attributes(vm: Watched) -> str:
    lines = ["gpa end attributes"]
    for entry in vm.report("attributes"):
        name = " private" if entry["attributes"] & KVM_MEMORY_ATTRIBUTE_PRIVATE else ""
        lines.append(f"{entry['gpa']:#x} {entry['gpa'] + entry['size']:#x} {entry['attributes']:#x}{name}")
    return "\n".join(lines) + "\n"


def _guest_memfd(vm: Watched) -> str:
    lines = ["name size allocated"]
    lines += [f"{file['name']} {file['size']:#x} {file['allocated']:#x}" for file in vm.report("guest_memfd")]
    return "\n".join(lines) + "\n"


def _registers(vcpu: Vcpu) -> str:
    lines = []
    for name, value in vcpu.registers.items():
        if isinstance(value, int):
            lines.append(f"{name} {value:#x}")
        else:
            fields = " ".join(f"{field} {number:#x}" for field, number in value.items())
            lines.append(f"{name} {fields}")
    return "\n".join(lines) + "\n"


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _injection(vm: Watched) -> str:
    lines = ["number matched fired rule"]
    lines += [f"{rule['number']} {rule['matched']} {rule['fired']} {rule['rule']}" for rule in vm.report("rules")]
    return "\n".join(lines) + "\n"


def _faults(vm: Watched, offset: int, size: int, width: int, line: Line) -> bytes:
    """Lines by position, so that any part of the file can be read at any time; a line that was overwritten says so."""
    first, last = offset // width + 1, min(-(-(offset + size) // width), vm.seen.vm[Header.FAULT_COUNT])
    known = {fault.number: fault for fault in vm.seen.faults(first - 1) if fault.number <= last}
    texts = (line(number, known.get(number)) for number in range(first, last + 1))
    lines = b"".join(text[: width - 1].ljust(width - 1).encode() + b"\n" for text in texts)
    start = offset - (first - 1) * width
    return lines[start : start + size]


def _fault_line(number: int, fault: Fault | None) -> str:
    if fault is None:
        return f"{number} lost"
    who = "vm" if fault.vcpu is None else f"vcpu{fault.vcpu}"
    rule = "" if fault.rule is None else f" rule {fault.rule} match {fault.ordinal}"
    if fault.ioctl:
        return f"{number} {fault.time:.6f} {who} {fault.ioctl}{rule}"
    gva = "-" if fault.gva is None else f"{fault.gva:#x}"
    slot = "-" if fault.slot is None else fault.slot
    return (
        f"{number} {fault.time:.6f} {who} gva {gva} gpa {fault.gpa:#x} {'private' if fault.private else 'shared'} "
        f"{fault.access} slot {slot} {fault.outcome} ns {fault.ns} rip {fault.rip:#x}{rule}"
    )


def _fault_json(number: int, fault: Fault | None) -> str:
    return json.dumps(asdict(fault) if fault else {"number": number, "outcome": "lost"}, separators=(",", ":"))


_STATISTICS: Final = frozenset({**stats.VCPU, **stats.VM})
_VM_FILES: Final[dict[str, Callable[[Watched], str]]] = {
    "client": _client,
    "slots": _slots,
    "attributes": _attributes,
    "guest_memfd": _guest_memfd,
    "injection": _injection,
}
Line = Callable[[int, Fault | None], str]
"""A record of the fault log, by its number, as text; None: it was overwritten."""
_LOGS: Final[dict[str, tuple[int, Line]]] = {"faults": (LINE, _fault_line), "faults.json": (JSON_LINE, _fault_json)}
_VCPU_FILES: Final[dict[str, Callable[[Vcpu], str]]] = {
    "state": lambda vcpu: f"{vcpu.state}\n",
    "registers": _registers,
    "tsc-offset": lambda vcpu: f"{_signed(vcpu[S.TSC_OFFSET])}\n",
    "tsc-scaling-ratio": lambda vcpu: f"{vcpu[S.TSC_RATIO]}\n",
    "tsc-scaling-ratio-frac-bits": lambda vcpu: f"{_FRAC_BITS}\n",
}
