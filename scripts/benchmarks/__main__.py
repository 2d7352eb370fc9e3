"""python -m benchmarks (in scripts/): the speeds that kvmfs promises, measured in one run.

Printed, never asserted: a busy machine is no bug.  `scripts/bench` sets up and calls this.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.tree import descendants

HERE = Path(__file__).resolve().parent


def kvmfs(*words: object) -> list[str]:
    return [sys.executable, "-m", "kvmfs", *map(str, words)]


def compile_c(name: str, into: Path) -> Path:
    """A program of ours, with Linux 6.12's headers if KVMFS_LINUX names a tree that has them."""
    tree = os.environ.get("KVMFS_LINUX")
    headers = ["-isystem", f"{tree}/usr/include"] if tree else []
    subprocess.run(["cc", "-O2", "-pthread", *headers, "-o", into / name, HERE / f"{name}.c"], check=True)
    return into / name


def number(*argv: str | Path) -> float:
    done = subprocess.run(list(map(str, argv)), stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def numbers(*argv: str | Path) -> list[float]:
    done = subprocess.run(list(map(str, argv)), stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def seconds(argv: list[str], env: dict[str, str] | None = None) -> float:
    started = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, env={**os.environ, **(env or {})})
    return time.perf_counter() - started


def private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def idle_worker(client: Path) -> float:
    """Private memory, in MiB, of the process that serves a VM with one vCPU that has run."""
    with subprocess.Popen(
        kvmfs("run", "--", client, "idle"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as launcher:
        assert launcher.stdout is not None
        if launcher.stdout.readline() != b"ready\n":
            raise RuntimeError("the client did not start")
        # The worker was forked last: by the zygote, when the VM was created.
        zygotes = {pid for pid in descendants(launcher.pid) for _ in descendants(pid)}
        workers = [pid for pid in descendants(launcher.pid) if pid not in zygotes and b"idle" not in argv(pid)]
        result = max(map(private_mib, workers))
        assert launcher.stdin is not None
        launcher.stdin.close()
    return result


def argv(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def measured_traced(client: Path) -> Callable[[], float]:
    """A round trip while all is traced, into a file."""
    return lambda: number(*kvmfs("trace", "--json", "-o", os.devnull, "--", client, "roundtrip"))


def latencies(program: Path) -> Iterator[tuple[str, Callable[[], float]]]:
    """Of interrupts, next to what this host's own timers do: median and 99th percentile."""
    for what, command in (
        ("from a deadline to who slept for it: clock_nanosleep", [str(program), "host"]),
        ("  a guest in HLT, TSC deadline timer", kvmfs("run", "--", program, "deadline")),
        ("  a guest in HLT, one-shot timer", kvmfs("run", "--", program, "oneshot")),
        ("from an IPI to the handler of another vCPU's answer", kvmfs("run", "--", program, "ipi")),
        ("from an IPI to its handler, out of HLT", kvmfs("run", "--", program, "wake")),
    ):
        pair = cache(partial(numbers, *command))
        yield f"{what}, median", lambda pair=pair: pair()[0]
        yield f"{what}, 99 %", lambda pair=pair: pair()[1]


@contextlib.contextmanager
def huge_pages() -> Iterator[None]:
    """Enough free memory in pages of 2 MiB for demand.c, reserved meanwhile, where we may."""
    count = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not os.access(count, os.W_OK):
        yield
        return
    before = count.read_text()
    try:
        count.write_text(str(int(before) + 100))  # a VM gives its own back some time after it was closed
        yield
    finally:
        count.write_text(before)


def resolutions() -> float:
    from benchmarks.faults import millions_per_second  # a second's worth of imports

    return millions_per_second()


def linux() -> Table:
    from benchmarks.linux import table

    return table()


def guest_instructions() -> Table:
    from benchmarks.instructions import table  # Unicorn's import takes its time

    return table()


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("", "measured", "wanted", title="kvmfs", title_justify="left", header_style="bold")
    table.columns[1].justify = table.columns[2].justify = "right"

    def row(what: str, unit: str, wanted: str, measure: Callable[[], float], note: str = "") -> float:
        with console.status(what):
            try:
                value = measure()
            except Exception as error:
                table.add_row(what, f"[red]{type(error).__name__}[/red]", wanted)
                console.print(f"[red]{what}: {error}[/red]", highlight=False)
                return float("nan")
        table.add_row(what + note, f"{value:,.1f} {unit}", wanted)
        return value

    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        client, floor, demand = (compile_c(name, work) for name in ("client", "floor", "demand"))

        def measured(*words: str) -> Callable[[], float]:
            return lambda: number(*kvmfs("run", "--", client, *words))

        least = row("ioctl of a FUSE server in C, round trip", "ns", "", lambda: number(floor))
        trip = row("KVM_RUN round trip: out, exit, enter", "ns", "3 x the C server", measured("roundtrip"))
        table.add_row("  as a multiple of the C server's", f"{trip / least:.2f}", "3.00 or less")
        notified = kvmfs("run", "--transport", "seccomp", "--", client, "roundtrip", "400")
        row("  and without FUSE, by seccomp notification", "ns", "", lambda: number(*notified))
        traced = measured_traced(client)
        row("  and traced: for an exit more", "ns", "3,000 ns or less", lambda: traced() - trip)
        row("KVM_CREATE_VM and KVM_CREATE_VCPU", "us", "20,000 us or less", measured("create"))
        row("fault resolution, 512 slots, 10,000 attribute ranges", "M/s", "10 M/s or more", resolutions)
        row("first touch of an adopted page", "ns", "5,000 ns or less", measured("touch"))
        for kind in ("anonymous", "memfd", "hugetlb"):
            for vcpus in (1, 2):
                what = f"pages touched first, {kind}, {vcpus} vCPU{'s' if vcpus > 1 else ''}, each"
                with huge_pages() if kind == "hugetlb" else contextlib.nullcontext():
                    row(what, "a second", "", partial(number, *kvmfs("run", "--", demand, kind, vcpus)))
        row("KVM_SET_MEMORY_ATTRIBUTES over 1 TiB", "us", "1,000 us or less", measured("attributes"))
        row("2 MiB private to shared and back, end to end", "us", "1,000 us or less", measured("conversion"))
        row("slot update with 32,000 slots", "us", "100 us or less", measured("slots"))
        row("dirty log of 4 GiB, clean", "us", "10,000 us or less", measured("harvest"))
        row("64 GiB registered sparse", "us", "10,000 us or less", measured("sparse"))
        row("private memory of an idle VM's worker", "MiB", "30 MiB or less", lambda: idle_worker(client))
        seconds(kvmfs("run", "--", "true"))
        row(
            "kvmfs run -- true, warm",
            "s",
            "2 s or less",
            lambda: min(seconds(kvmfs("run", "--", "true")) for _ in range(3)),
        )
        for what, measure in latencies(compile_c("latency", work)):
            row(what, "us", "", measure)
        row("kvmfs ls", "ms", "300 ms or less", lambda: 1000 * min(seconds(kvmfs("ls")) for _ in range(3)))
        cold = {"KVMFS_CACHE_DIR": str(work / "cold")}
        row("jit compile, cold", "s", "120 s or less", lambda: seconds(kvmfs("warm"), cold))
    console.print(table)
    with console.status("guest instructions"):
        instructions = guest_instructions()
    console.print(instructions)
    with console.status("Linux in QEMU"):
        guests = linux()
    console.print(guests)


main()
