"""The transcript pairs each exit with what the VMM did about it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from kvmfs import transcript

GPA = 0x1_0000_0000


def story(*events: dict[str, Any]) -> transcript.Story:
    lines = [json.dumps({"vm": 1, "t": 0.5 + number, **event}) for number, event in enumerate(events)]
    (only,) = transcript.stories(lines)
    return only


def fault(vcpu: int, gpa: int, flags: int = 8) -> dict[str, Any]:
    return {"event": "memory_fault", "vcpu": vcpu, "gpa": gpa, "size": 4096, "flags": flags}


def attributes(gpa: int, size: int, value: int) -> dict[str, Any]:
    return {"event": "set_memory_attributes", "gpa": gpa, "size": size, "attributes": value}


def test_a_fault_is_answered_by_what_follows_on_its_page() -> None:
    rows = story(fault(0, GPA), attributes(GPA, 4096, 0), {"event": "run", "vcpu": 0}, attributes(GPA, 4096, 8)).rows
    assert [(row.exit, row.answers) for row in rows] == [("memory fault", ["made shared"]), ("", ["made private"])]


def test_faults_of_two_vcpus_are_told_apart_by_address() -> None:
    rows = story(fault(0, GPA), fault(1, GPA + 4096), attributes(GPA, 4096, 0), attributes(GPA + 4096, 4096, 8)).rows
    assert [(row.vcpu, row.answers) for row in rows] == [(0, ["made shared"]), (1, ["made private"])]


def test_a_conversion_with_punch_hole_has_both_answers() -> None:
    rows = story(
        {"event": "hypercall", "vcpu": 0, "nr": 12, "gpa": GPA, "pages": 2, "attributes": 6},
        {"event": "punch_hole", "offset": 0, "length": 8192},
        attributes(GPA, 8192, 0),
    ).rows
    assert [(row.exit, row.size, row.answers) for row in rows] == [
        ("MAP_GPA_RANGE", 8192, ["private pages freed", "made shared"])
    ]


def test_a_fault_that_nobody_resolves_says_so() -> None:
    given = story(fault(0, GPA))
    assert not given.rows[0].answers
    console = Console(width=140)
    with console.capture() as shown:
        console.print(transcript.table(given))
    assert "did not go on" in shown.get()


def test_vms_without_exits_are_left_out() -> None:
    assert transcript.stories([json.dumps({"vm": 1, "t": 0, **attributes(GPA, 4096, 8)})]) == []
