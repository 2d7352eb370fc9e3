"""A record as an event: names and fields from the tables of kvmfs.abi, and nothing that is not in them.

An event is a plain dictionary, as it is written to files, a JSON object a line:

    t         seconds since 1970, when it began        d        how long it took, in µs
    vm        PID-FD, "kvm" for /dev/kvm               tid      the calling thread; exits have none
    vcpu      its id, if it is one's                   kind     "ioctl", "exit", "fallocate", "injection"
    name      KVM_SET_REGS, KVM_EXIT_IO, PUNCH_HOLE    result   what the call returned; or
    arg       the ioctl's argument as a word           errno    its name, when it failed
    in, out   the argument's fields before and after   details  an exit's fields
    rip, instructions   of the vCPU, at an exit        rule, ordinal, gva, gpa, access, private   of an injection
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Any, Final

from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit, InternalError
from kvmfs.abi.ioctls import Argument, Fd, Ioctl, lookup
from kvmfs.abi.layout import Struct, Union, fields
from kvmfs.abi.run import KVM_EXIT_IO_OUT, ExitUnion
from kvmfs.inspect.trace.records import Raw
from kvmfs.jit.mmu.layout import ATTRIBUTE_PRIVATE, EHWPOISON
from kvmfs.kvm import ring
from kvmfs.kvm.fallocate import FALLOC_FL_PUNCH_HOLE
from kvmfs.kvm.faults import ACCESSES
from kvmfs.kvm.inspection import NO_EXIT, NOT_LINEAR, OUTCOMES
from kvmfs.kvm.ring import SLOT, Record
from kvmfs.kvm.tracer import PACKET

Event = dict[str, Any]

EXIT_MEMBER: Final[dict[int, str]] = {
    Exit.IO: "io",
    Exit.MMIO: "mmio",
    Exit.HYPERCALL: "hypercall",
    Exit.DEBUG: "debug",
    Exit.FAIL_ENTRY: "fail_entry",
    Exit.EXCEPTION: "ex",
    Exit.TPR_ACCESS: "tpr_access",
    Exit.INTERNAL_ERROR: "internal",
    Exit.SYSTEM_EVENT: "system_event",
    Exit.IOAPIC_EOI: "eoi",
    Exit.X86_RDMSR: "msr",
    Exit.X86_WRMSR: "msr",
    Exit.NOTIFY: "notify",
    Exit.MEMORY_FAULT: "memory_fault",
}
"""Which member of struct kvm_run's union tells about an exit; the others say nothing more."""

_MOST_ELEMENTS: Final = 512
_ERRNO: Final = {**errno.errorcode, EHWPOISON: "EHWPOISON"}


def event(raw: Raw, vm: str) -> Event:
    """`vm`: what the record's ring is called."""
    result: Event = {"t": round(raw.start, 7), "d": round(max(raw.end - raw.start, 0) * 1e6, 3), "vm": vm}
    if raw.tid:
        result["tid"] = raw.tid
    if raw.vcpu is not None:
        result["vcpu"] = raw.vcpu
    if raw.kind == ring.EXIT:
        result |= _exit(raw)
    elif raw.kind == ring.FALLOCATE:
        offset, length = struct.unpack_from("<QQ", raw.data)
        name = "PUNCH_HOLE" if raw.cmd & FALLOC_FL_PUNCH_HOLE else "ALLOCATE"
        result |= {"kind": "fallocate", "name": name, "in": {"mode": raw.cmd, "offset": offset, "len": length}}
    elif raw.kind == ring.INJECTION:
        result |= _injection(raw)
    else:
        result |= _ioctl(raw)
    if raw.result < 0:
        result["errno"] = _ERRNO.get(-raw.result, str(-raw.result))
    else:
        result["result"] = raw.result
    return result


# Exits ----------------------------------------------------------------------------------------------------------------


def _exit(raw: Raw) -> Event:
    rip, instructions = struct.unpack_from("<QQ", raw.data)
    name = "none" if raw.cmd == NO_EXIT else f"KVM_EXIT_{exit_name(raw.cmd)}"
    result: Event = {"kind": "exit", "name": name}
    member = EXIT_MEMBER.get(raw.cmd)
    if member and raw.cmd != NO_EXIT:
        start = Record.DETAILS - Record.DATA
        union = ExitUnion.from_buffer_copy(
            raw.data[start : start + Record.DETAILS_SIZE].ljust(ctypes.sizeof(ExitUnion), b"\0")
        )
        details = value(getattr(union, member))
        if member == "io":
            details = _io(details, raw.data)
        elif member == "mmio":
            details["data"] = details["data"][: 2 * min(details["len"], 8)]
            if not details["is_write"]:
                del details["data"]
        elif member == "internal":
            details = _internal(details)
        result["details"] = details
    return result | {"rip": rip, "instructions": instructions}


def _io(details: dict[str, Any], data: bytes) -> dict[str, Any]:
    out = details["direction"] == KVM_EXIT_IO_OUT
    size = details["size"] * details["count"]
    found = {"direction": "out" if out else "in", **{name: details[name] for name in ("size", "port", "count")}}
    if out:
        start = Record.PIO - Record.DATA
        found["data"] = data[start : start + min(size, SLOT - Record.PIO)].hex()
    return found


def _internal(details: dict[str, Any]) -> dict[str, Any]:
    suberror = details["suberror"]
    known = suberror in InternalError.__members__.values()
    # What fits into a record of the data.
    words = min(details["ndata"], (Record.DETAILS_SIZE - 8) // 8)
    return {"suberror": InternalError(suberror).name if known else suberror, "data": details["data"][:words]}


def exit_name(reason: int) -> str:
    return Exit(reason).name if reason in Exit.__members__.values() else str(reason)


# Faults on purpose ----------------------------------------------------------------------------------------------------


def _injection(raw: Raw) -> Event:
    rule, ordinal, gva, access, rip = struct.unpack_from("<5Q", raw.data)
    return {
        "kind": "injection",
        "name": OUTCOMES.get(raw.cmd, str(raw.cmd)),
        "rule": rule,
        "ordinal": ordinal,
        **({} if gva == NOT_LINEAR else {"gva": gva}),
        "gpa": raw.arg,
        "access": ACCESSES[min(access & 3, 2)],
        "private": bool(access & ATTRIBUTE_PRIVATE),
        "rip": rip,
    }


# Ioctls ---------------------------------------------------------------------------------------------------------------


def _ioctl(raw: Raw) -> Event:
    fd = Fd.VCPU if raw.vcpu is not None else Fd.SYSTEM if raw.source == 0 else Fd.VM
    row = lookup(fd, raw.cmd)
    if row is None:
        return {"kind": "ioctl", "name": f"{raw.cmd:#x}", "arg": raw.arg}
    result: Event = {"kind": "ioctl", "name": row.name}
    if row.argument is Argument.VALUE:
        result["arg"] = cap_name(raw.arg) if row.name == "KVM_CHECK_EXTENSION" else raw.arg
    elif row.argument is not Argument.NONE and row.argument is not Argument.ZERO:
        read, written = _packets(raw.data)
        if row.argument is not Argument.OUT and (before := _argument(row, raw.arg, read)):
            result["in"] = before
        if row.argument is not Argument.IN and (after := _argument(row, raw.arg, written)):
            result["out"] = after
    return result


def _packets(data: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """What was read from the client and what was written, by address."""
    found: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
    at = 0
    while at + PACKET.size <= len(data):
        address, length, written = PACKET.unpack_from(data, at)
        at += PACKET.size
        kept = min(length, 4096)
        found[1 if written else 0].setdefault(address, data[at : at + kept])
        at += -(-kept // 8) * 8
    return found


def _argument(row: Ioctl, address: int, packets: dict[int, bytes]) -> dict[str, Any]:
    """The fields of an ioctl's struct, and what follows it."""
    size = ctypes.sizeof(row.struct)
    data = packets.get(address, b"")
    fixed: dict[str, Any] = {}
    if len(data) >= size:
        decoded = value(row.struct.from_buffer_copy(data))
        fixed = decoded if isinstance(decoded, dict) else {"value": decoded}
        if row.name == "KVM_ENABLE_CAP":
            fixed["cap"] = cap_name(fixed["cap"])
    if row.tail:
        rest = packets.get(address + size, data[size:])
        element = ctypes.sizeof(row.tail.element)
        count = min(len(rest) // element, _MOST_ELEMENTS)
        if row.tail.bytes_of_all or element == 1:
            if rest:
                fixed[row.tail.field] = rest.hex()
        elif count:
            array = (row.tail.element * count).from_buffer_copy(rest)
            fixed[row.tail.field] = [value(item) for item in array]
    return fixed


def cap_name(number: int) -> str | int:
    return f"KVM_CAP_{Cap(number).name}" if number in Cap.__members__.values() else number


def value(item: Any) -> Any:
    """A ctypes object as numbers, hexadecimal strings (bytes), lists and dictionaries; padding left out."""
    if isinstance(item, Struct):
        found = {}
        for field in fields(type(item)):
            if not field.name.startswith(("pad", "reserved", "_")) and field.size:
                found[field.name] = value(getattr(item, field.name))
        return found
    if isinstance(item, Union):
        return bytes(item).rstrip(b"\0").hex()
    if isinstance(item, ctypes.Array):
        if item._type_ is ctypes.c_uint8:
            return bytes(item).hex()
        return [value(element) for element in item]
    return item if isinstance(item, int) else item.value
