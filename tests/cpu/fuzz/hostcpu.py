"""The host's processor as a reference: native.c, fed with batches; a case that kills it is a result too."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from . import layout as L

SECONDS = 5  # for a batch; a case that does not end is killed


def _header() -> str:
    """layout.py for C."""
    names = ["CODE", "CODE_PAGES", "WRITABLE", "WRITABLE_PAGES", "READABLE", "USER64_CS", "REPEATS", "NO_FAULT"]
    lines = [f"#define {name} {getattr(L, name):#x}" for name in names]
    lines.append(f"#define STATE_SIZE {L.STATE.itemsize}")
    entries = (
        f"{{.entry_number={number}, .base_addr={s.base:#x}, .limit={s.limit:#x}, .contents={s.contents},"
        f" .seg_32bit={int(s.big)}, .read_exec_only={int(s.read_only)}, .limit_in_pages={int(s.pages)},"
        f" .seg_not_present={int(not s.present)}}}"
        for number, s in enumerate(L.LDT)
    )
    lines.append("#define LDT_SEGMENTS " + ", ".join(entries))
    return "\n".join(lines) + "\n"


def _compile(directory: Path) -> Path:
    (directory / "layout.h").write_text(_header())
    program = directory / "native"
    source = Path(__file__).with_name("native.c")
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-address-of-packed-member"]
    # The handler runs with the thread pointer of a case.
    flags += ["-fno-stack-protector", "-fcf-protection=none", "-mfsgsbase", f"-I{directory}"]
    subprocess.run(["gcc", *flags, "-o", program, source], check=True)
    return program


class Host:
    """A child process that runs batches of at most `room` cases. A context manager."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._directory = tempfile.TemporaryDirectory(prefix="kvmfs-fuzz-")
        self._program = _compile(Path(self._directory.name))
        states, data = room * L.STATE.itemsize, L.DATA_PAGES * L.PAGE
        self._file = os.memfd_create("cases")
        os.ftruncate(self._file, 2 * states + data + L.PAGE)
        self._map = mmap.mmap(self._file, 2 * states + data + L.PAGE)
        everything = np.frombuffer(self._map, np.uint8)
        self._before = everything[:states].view(L.STATE)
        self._data = everything[states : states + data]
        self._after = everything[states + data : 2 * states + data].view(L.STATE)
        self._current = everything[2 * states + data : 2 * states + data + 8].view(np.uint64)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._directory.cleanup()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._child = subprocess.Popen(
                [self._program, str(self._file), str(self.room)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[self._file],
                bufsize=0,
            )
            if self._child.stdout is None or self._child.stdout.read(1) != b"r":
                self._stop()
                raise RuntimeError("the host's processor cannot be used: native did not start")
        return self._child

    def _finishes(self, count: int) -> bool:
        """Whether the child runs the first `count` cases to the end; it is gone if not."""
        child = self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(count.to_bytes(4, "little"))
        ready, _, _ = select.select([child.stdout], [], [], SECONDS)
        if ready and child.stdout.read(1) == b"d":
            return True
        self._stop()
        return False

    def run(self, states: np.ndarray, data: np.ndarray) -> np.ndarray:
        """The states after one instruction each. `data`: the contents of the data pages before every case."""
        assert len(states) <= self.room
        if self._child is not None and (self._data[-L.PAGE :] != data[-L.PAGE :]).any():
            self._stop()  # the page to read is filled when the child starts
        self._data[:] = data
        done, results = 0, np.zeros(len(states), L.STATE)
        while done < len(states):
            left = len(states) - done
            self._before[:left] = states[done:]
            self._after[:left] = states[done:]
            finished = self._finishes(left)
            ran = left if finished else int(self._current[0])
            results[done : done + ran] = self._after[:ran]
            done += ran
            if not finished:
                results[done] = states[done]
                results[done]["vector"] = L.CRASHED
                done += 1
        return results
