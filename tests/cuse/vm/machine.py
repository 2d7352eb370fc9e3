"""Boot, run one command, tell its status."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import initramfs

_STARTS = b"VM-JOB-STARTS"
_STATUS = b"VM-JOB-STATUS="

# The root file system: 9p over virtio, and the overlay on it.
_ROOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

# What makes an emulated machine boot in two seconds instead of ten: nothing to probe, to randomise or to mitigate.
_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests "
    "random.trust_cpu=on audit=0 apparmor=0 selinux=0 nowatchdog rcupdate.rcu_expedited=1 8250.nr_uarts=1"
)


@dataclass(frozen=True)
class Result:
    status: int | None  # of the command; None: the machine died, or ran out of time
    output: str  # of the command; all of the console if the command never started or never ended
    seconds: float

    def __str__(self) -> str:
        ended = "the machine did not get to the end" if self.status is None else f"exit status {self.status}"
        return f"{self.output.rstrip()}\n({ended}, {self.seconds:.1f} s in all)"


class VM:
    """A machine with the kernel in `kernel`: vmlinux, and modules/ as in lib/modules/VERSION.

    modules: what to load beyond the root file system; dependencies follow by themselves.  memory: in MiB.
    """

    def __init__(self, kernel: Path, modules: Sequence[str] = (), *, memory: int = 2048) -> None:
        busybox, qemu = shutil.which("busybox"), shutil.which("qemu-system-x86_64")
        if busybox is None or qemu is None:
            raise FileNotFoundError("busybox (static) and qemu-system-x86_64 are needed")
        self._vmlinux = kernel / "vmlinux"
        self._modules = initramfs.Modules(kernel / "modules").load_order([*_ROOT_MODULES, *modules])
        self._busybox, self._qemu, self._memory = Path(busybox), qemu, memory

    def run(
        self,
        command: str,
        timeout: float,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        echo: IO[bytes] | None = None,
        systemd: bool = False,
    ) -> Result:
        """Boot and run a shell command as root; `echo` gets its output while it runs. `systemd`: under it, as a service
        of its own, when the basic system is up."""
        lines = ["export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        lines += [f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()]
        lines += [f"cd {shlex.quote(str(cwd or '/'))} || exit", command]
        init = Path(__file__).with_name("init.sh").read_bytes()
        archive = initramfs.build(
            self._modules, self._busybox, init, "\n".join(lines).encode() + b"\n", systemd=systemd
        )
        with tempfile.NamedTemporaryFile(suffix=".cpio") as initrd:
            initrd.write(archive)
            initrd.flush()
            return self._boot(initrd.name, timeout, echo)

    def _boot(self, initrd: str, timeout: float, echo: IO[bytes] | None) -> Result:
        started = time.monotonic()
        console: list[bytes] = []
        start = end = status = None
        pipe = subprocess.PIPE
        with subprocess.Popen(
            self._command(initrd), stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT
        ) as machine:
            killer = threading.Timer(timeout, machine.kill)
            killer.start()
            try:
                assert machine.stdout is not None
                for line in machine.stdout:
                    line = line.replace(b"\r\n", b"\n")
                    console.append(line)
                    if line.startswith(_STATUS):
                        status = int(line.removeprefix(_STATUS))
                        end = len(console) - 1
                    elif line.startswith(_STARTS):
                        start = len(console)
                    elif echo is not None and start is not None and status is None:
                        echo.write(line)
                        echo.flush()
            finally:
                machine.kill()
                killer.cancel()
        # The line feed before the status is not the command's.
        text = b"".join(console) if end is None else b"".join(console[start:end])[:-1]
        return Result(status, text.decode(errors="replace"), time.monotonic() - started)

    def _command(self, initrd: str) -> list[str]:
        # One CPU: with two, the text_poke of a booting kernel races with what the other CPU's thread has translated.
        machine = f"-M q35 -accel tcg,thread=multi,tb-size=512 -cpu max -smp 1 -m {self._memory}"
        devices = (
            "-nodefaults -no-user-config -display none -no-reboot -serial stdio "
            "-device isa-debug-exit,iobase=0xf4,iosize=0x4 "
            "-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap "
            "-device virtio-9p-pci,fsdev=host,mount_tag=host"
        )
        boot = ["-kernel", str(self._vmlinux), "-initrd", initrd, "-append", _COMMAND_LINE]
        return [self._qemu, *machine.split(), *devices.split(), *boot]
