"""What two traces have in common, and where they differ first."""

from __future__ import annotations

from typing import Any

import pytest

from kvmfs.inspect.trace import golden
from kvmfs.inspect.trace.decode import Event


def exit_event(port: int = 0x10, *, vm: str = "7-4", vcpu: int = 0, t: float = 1.0, **more: Any) -> Event:
    details = {"direction": "out", "size": 1, "port": port, "count": 1, "data": "55"}
    event = {"t": t, "d": 3.0, "vm": vm, "vcpu": vcpu, "kind": "exit", "name": "KVM_EXIT_IO", "details": details}
    return event | {"rip": 0x1000, "instructions": int(t), "result": 0} | more


def slot(address: int, **more: Any) -> Event:
    fields = {"slot": 0, "memory_size": 4096, "userspace_addr": address, "guest_memfd": address % 100}
    event = {"t": 1.0, "d": 1.0, "vm": "7-4", "tid": 7, "kind": "ioctl", "name": "KVM_SET_USER_MEMORY_REGION2"}
    return event | {"in": fields, "result": 0} | more


def test_times_processes_and_instruction_counts_do_not_count() -> None:
    assert golden.compare([exit_event()], [exit_event(vm="9-5", t=2.0)]) is None


def test_a_vcpu_is_compared_with_itself_however_they_interleave() -> None:
    first = [exit_event(1), exit_event(2, vcpu=1), exit_event(3)]
    second = [exit_event(2, vcpu=1), exit_event(1), exit_event(3)]
    assert golden.compare(first, second) is None
    difference = golden.compare(first, [exit_event(2, vcpu=1), exit_event(3), exit_event(1)])
    assert difference
    assert (difference.stream, difference.index) == ((1, 0), 0)
    assert "details.port: 1 became 3" in str(difference)


def test_host_addresses_and_descriptors_do_not_count_but_all_else_does() -> None:
    assert golden.compare([slot(0x7F00)], [slot(0x8F00)], exits_only=False) is None
    assert golden.compare([slot(0x7F00)], [slot(0x7F00, errno="EINVAL")], exits_only=False)
    assert golden.compare([slot(0x7F00)], []) is None  # not asked for


def test_a_run_that_a_signal_ended_does_not_count() -> None:
    interrupted = exit_event(name="KVM_EXIT_INTR", errno="EINTR")
    assert golden.compare([exit_event(), interrupted], [exit_event()]) is None


def test_a_trace_that_ends_early_differs() -> None:
    difference = golden.compare([exit_event(), exit_event()], [exit_event()])
    assert difference
    assert "nothing: the trace ends" in str(difference)


def test_what_is_no_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1"):
        golden.load(["{}"])
