"""What remains to a worker that has been taken over."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from tests.process import fakecore_commands as commands
from tests.process.harness import Broker, Talk, client, create_vm, open_kvm

pytestmark = pytest.mark.usefixtures("no_leaks")

NEEDED = {"read the client": "EFAULT", "map memory": None, "make a memfd": None}


def probe(path: Path, talk: Talk) -> dict[str, Any]:
    vm = create_vm(open_kvm(path))
    answers = bytearray(4096)
    length = fcntl.ioctl(vm, commands.PROBE | 3 << 30 | len(answers) << 16, answers)
    talk.say("probed")
    talk.hear()
    return dict(json.loads(answers[:length]))


def test_no_way_out(broker: Broker) -> None:
    with client(broker.path, probe) as process:
        process.hear()
        (worker,) = broker.workers
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"
        assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert int(status["CapPrm"], 16) & ~(1 << 19) == 0  # CAP_SYS_PTRACE at most
        process.talk.say("go on")
        answers = process.result()
    for attempt, expected in NEEDED.items():
        assert answers.pop(attempt) == expected, attempt
    assert len(answers) > 15
    assert {attempt: got for attempt, got in answers.items() if got not in ("EPERM", "ENOENT", "ENOSYS")} == {}
