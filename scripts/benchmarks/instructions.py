"""Guest instructions per second: one image on QEMU with kvmfs, on QEMU with TCG, and in Unicorn.

The image (guest/) does a few mixes of instructions, in 64-bit mode with four levels of page tables, in 32-bit mode
and in 16-bit mode without any; it announces the begin and the end of each to the debug console, and what it computed.
The instructions are counted once, one by one, in Unicorn.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from unicorn import UC_ARCH_X86, UC_HOOK_CODE, UC_HOOK_INSN, UC_MODE_32, Uc
from unicorn.x86_const import UC_X86_INS_OUT

GUEST = Path(__file__).with_name("guest")
MODES = {"64-bit": ["-m64"], "32-bit": ["-m32", "-mno-sse", "-mfpmath=387"]}
MIXES = {
    "i": "integer: CRC, hash, sort",
    "m": "memory: copy, chase",
    "f": "floating point: 5 bodies",
    "v": "vector: xorshift",
}
FLAGS = [
    "-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-nostdlib", "-static", "-fno-stack-protector",
    "-fno-tree-loop-distribute-patterns", "-fno-tree-vectorize", "-fno-asynchronous-unwind-tables",
    "-Wl,--build-id=none,--no-warn-rwx-segments",
]  # fmt: skip
QEMU = [
    "qemu-system-x86_64", "-cpu", "max", "-m", "64", "-display", "none", "-nodefaults", "-no-reboot",
    "-device", "isa-debug-exit,iobase=0xf4", "-debugcon", "stdio",
]  # fmt: skip
POWER, MEMORY = 0xF4, 64 << 20
ROUNDS = 200  # a second or two for each mix
PT_LOAD = 1


@dataclass(frozen=True)
class Timed:
    """A mix as one machine did it: seconds, and the eight digits it computed."""

    seconds: float
    result: str


def build(mode: str, rounds: int, into: Path) -> Path:
    image = into / f"{mode}-{rounds}"
    script = f"-Wl,-T,{GUEST / 'image.lds'}"
    sources = [GUEST / "start.S", GUEST / "mixes.c"]
    subprocess.run(["gcc", *FLAGS, *MODES[mode], f"-DROUNDS={rounds}", script, "-o", image, *sources], check=True)
    return image


def timed(console: Iterator[tuple[float, bytes]]) -> dict[str, Timed]:
    """What the console's bytes, with the time of each, say about each mix."""
    found: dict[str, Timed] = {}
    name, begin, end, digits = "", 0.0, 0.0, ""
    for now, byte in console:
        match character := byte.decode():
            case "=":
                end = now
            case "\n":
                found[name] = Timed(end - begin, digits)
                name, digits = "", ""
            case _ if not name:
                name, begin = character, now
            case _:
                digits += character
    return found


def qemu(image: Path, accelerator: str) -> dict[str, Timed]:
    prefix = [sys.executable, "-m", "kvmfs", "run", "--"] if accelerator == "kvm" else []
    command = [*prefix, *QEMU, "-accel", accelerator, "-kernel", str(image)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as machine:
        assert machine.stdout is not None
        stdout = machine.stdout
        return timed((time.perf_counter(), byte) for byte in iter(lambda: stdout.read(1), b""))


def segments(elf: bytes) -> Iterator[tuple[int, bytes]]:
    """Where the image goes in memory, and what (System V ABI: Elf32_Phdr, Elf64_Phdr)."""
    wide = elf[4] == 2
    table, count = (
        (int.from_bytes(elf[32:40], "little"), elf[56]) if wide else (int.from_bytes(elf[28:32], "little"), elf[44])
    )
    for n in range(count):
        if wide:
            kind, _, offset, _, gpa, size = struct.unpack_from("<IIQQQQ", elf, table + 56 * n)
        else:
            kind, offset, _, gpa, size = struct.unpack_from("<IIIII", elf, table + 32 * n)
        if kind == PT_LOAD:
            yield gpa, elf[offset : offset + size]


class InUnicorn:
    """The image in Unicorn, from its 32-bit entry."""

    def __init__(self, image: Path) -> None:
        elf = image.read_bytes()
        self.entry = int.from_bytes(elf[24:28], "little")
        self.console: list[tuple[float, bytes]] = []
        self.cpu = Uc(UC_ARCH_X86, UC_MODE_32)
        self.cpu.mem_map(0, MEMORY)
        for gpa, content in segments(elf):
            self.cpu.mem_write(gpa, content)
        self.cpu.hook_add(UC_HOOK_INSN, self._out, None, 1, 0, UC_X86_INS_OUT)

    def _out(self, cpu: Uc, port: int, size: int, value: int, data: object) -> None:
        if port == POWER:
            cpu.emu_stop()
        else:
            self.console.append((time.perf_counter(), bytes([value & 0xFF])))

    def time(self) -> dict[str, Timed]:
        self.cpu.emu_start(self.entry, MEMORY)
        return timed(iter(self.console))

    def count(self) -> dict[str, int]:
        """Instructions of each mix: one by one, which is slow."""
        at_byte: list[int] = []
        executed = 0

        def one(cpu: Uc, address: int, size: int, data: object) -> None:
            nonlocal executed
            executed += 1

        def out(cpu: Uc, port: int, size: int, value: int, data: object) -> None:
            at_byte.append(executed)

        self.cpu.hook_add(UC_HOOK_CODE, one)
        self.cpu.hook_add(UC_HOOK_INSN, out, None, 1, 0, UC_X86_INS_OUT)
        self.cpu.emu_start(self.entry, MEMORY)
        # The counts go where timed() expects the times.
        bytes_counted = zip(at_byte, (byte for _, byte in self.console), strict=False)
        return {name: int(mix.seconds) for name, mix in timed(iter(bytes_counted)).items()}


def table() -> Table:
    """Millions of guest instructions a second for each mode and mix, and how they compare."""
    shown = Table(
        "guest instructions, M/s",
        "kvmfs",
        "QEMU TCG",
        "Unicorn",
        "kvmfs / TCG",
        title_justify="left",
        header_style="bold",
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    with tempfile.TemporaryDirectory() as directory:
        for mode in MODES:
            one, image = build(mode, 1, Path(directory)), build(mode, ROUNDS, Path(directory))
            counts = InUnicorn(one).count()
            machines = qemu(image, "kvm"), qemu(image, "tcg"), InUnicorn(image).time()
            for name, count in counts.items():
                results = {machine[name].result for machine in machines}
                if len(results) != 1:
                    raise RuntimeError(f"{mode} {MIXES[name]}: the machines do not agree: {results}")
                speeds = [ROUNDS * count / machine[name].seconds / 1e6 for machine in machines]
                shown.add_row(
                    f"{mode} {MIXES[name]}", *(f"{speed:,.0f}" for speed in speeds), f"{speeds[0] / speeds[1]:.2f}"
                )
    return shown


if __name__ == "__main__":
    Console(width=None if sys.stdout.isatty() else 120).print(table())
