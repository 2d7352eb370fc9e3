"""`kvmfs check`: what is there, what is missing, what to do about it.

A finding has a stable code, so that scripts can ask for it:

    arch kernel fuse.device cuse.device userns fuse.mount passthrough seccomp ptrace device jit.compiler jit.cache

Of what carries the device one is enough: what is missing for the others is a note then.
"""

import errno
import importlib.util
import os
import platform
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from kvmfs.cli import probes
from kvmfs.cli.caps import Capability, effective, in_initial_user_namespace
from kvmfs.cli.serve import names_nothing

DEVICE = Path("/dev/kvm")
CARRIERS = ("fuse.device", "cuse.device", "userns", "fuse.mount", "seccomp")
_OLDEST = (5, 10)  # move_mount (5.2), pidfd_getfd (5.6), close_range (5.9)


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Slower, or less, but works."""
    MISSING = "missing"
    """Does not work without."""


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    level: Level
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    findings: list[Finding] = field(default_factory=list)
    run: str | None = None
    """What `kvmfs run` would use: "fuse", "fuse in a user namespace", "cuse", "seccomp"; None: it would not work."""
    serve: str | None = None
    """What `kvmfs serve` would use: "fuse", "cuse"; None: it would not work."""

    @property
    def usable(self) -> bool:
        return self.run is not None and all(finding.level is not Level.MISSING for finding in self.findings)

    def as_dict(self) -> dict[str, object]:
        return {
            "usable": self.usable,
            "run": self.run,
            "serve": self.serve,
            "findings": {finding.code: asdict(finding) for finding in self.findings},
        }


def check() -> Report:
    """Try everything. Changes nothing; takes well under a second, with a cold cache of Python modules a little more."""
    privileged = Capability.SYS_ADMIN in effective()
    initial = in_initial_user_namespace()
    findings = [_arch(), _kernel()]
    fuse_device = _device_file("fuse", "fuse")
    cuse_device = _device_file("cuse", "cuse")
    namespaces = _namespaces(privileged)
    findings += [fuse_device, cuse_device, namespaces]
    fuse = cuse = False
    if fuse_device.level is Level.OK and namespaces.level is Level.OK:
        mounted = list(_fuse(not privileged))
        findings += mounted
        fuse = mounted[0].level is Level.OK
    cuse = cuse_device.level is Level.OK and privileged and initial
    notified = _seccomp()
    findings.append(notified)
    run = None
    if fuse:
        run = "fuse" if privileged else "fuse in a user namespace"
    elif cuse and namespaces.level is Level.OK:
        run = "cuse"
    elif notified.level is Level.OK:
        run = "seccomp"
    if run:
        findings = [_optional(finding) if finding.code in CARRIERS else finding for finding in findings]
    findings += [_ptrace(run), _name(), *_jit()]
    serve = ("cuse" if cuse else "fuse" if fuse else None) if privileged and initial else None
    return Report(findings, run, serve)


def _optional(finding: Finding) -> Finding:
    return finding if finding.level is Level.OK else Finding(finding.code, Level.NOTE, finding.text, finding.cure)


def _arch() -> Finding:
    machine = platform.machine()
    if machine == "x86_64":
        return Finding("arch", Level.OK, machine)
    return Finding("arch", Level.MISSING, f"{machine}: kvmfs is x86-64 only", "use an x86-64 machine")


def _kernel() -> Finding:
    release = os.uname().release
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if version < _OLDEST:
        return Finding(
            "kernel", Level.MISSING, f"Linux {release}", f"Linux {_OLDEST[0]}.{_OLDEST[1]} or later is needed"
        )
    return Finding("kernel", Level.OK, f"Linux {release}")


def _device_file(name: str, module: str) -> Finding:
    code, path = f"{name}.device", Path("/dev") / name
    try:
        # Opening /dev/cuse registers nothing until its first message is answered.
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        cure = f"modprobe {module}; in a container: --device {path}"
        return Finding(code, Level.MISSING, f"there is no {path}", cure)
    except OSError as error:
        text = f"{path}: {os.strerror(error.errno or 0)}"
        if error.errno in (errno.EACCES, errno.EPERM):
            cure = f"chmod a+rw {path} (as most systems have it), or become root" if name == "fuse" else "become root"
            if stat.S_IMODE(path.stat().st_mode) & 0o006 == 0o006:
                cure = f"the container's device rules forbid it: --device {path}"
            return Finding(code, Level.MISSING, text, cure)
        return Finding(code, Level.MISSING, text, f"modprobe {module}")
    return Finding(code, Level.OK, f"{path} can be opened")


def _namespaces(privileged: bool) -> Finding:
    try:
        probes.in_child(lambda: probes.namespaces(user=not privileged))
    except OSError as error:
        text = f"no private namespaces: {error.strerror or error}"
        if privileged:
            return Finding(
                "userns", Level.MISSING, text, "a seccomp filter forbids unshare(2); run with another profile"
            )
        return Finding(
            "userns",
            Level.MISSING,
            text,
            "become root, or allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns; in a container, its seccomp profile",
        )
    if privileged:
        return Finding("userns", Level.OK, "not needed: CAP_SYS_ADMIN")
    return Finding("userns", Level.OK, "user namespaces can be made")


def _fuse(user: bool) -> Iterator[Finding]:
    try:
        minor, passthrough, why = probes.in_child(lambda: probes.fuse_mount(user))
    except OSError as error:
        yield Finding(
            "fuse.mount",
            Level.MISSING,
            f"FUSE cannot be mounted: {error.strerror or error}",
            "become root; in a container: --cap-add SYS_ADMIN, and a seccomp profile that allows mount",
        )
        return
    yield Finding("fuse.mount", Level.OK, f"FUSE 7.{minor} can be mounted")
    if passthrough:
        yield Finding("passthrough", Level.OK, "vCPU state can be mapped as memory")
    else:
        cure = (
            "run as root of the host; without it each KVM_RUN costs twice the time"
            if user
            else "use Linux 6.9 or later"
        )
        yield Finding("passthrough", Level.NOTE, f"vCPU state goes through the page cache: {why}", cure)


def _seccomp() -> Finding:
    try:
        probes.in_child(probes.notification)
    except OSError as error:
        text = f"no seccomp user notification: {error.strerror or error}"
        cure = "use Linux 5.19 or later; a sandbox may have such a filter itself, or forbid more of them"
        return Finding("seccomp", Level.MISSING, text, cure)
    return Finding("seccomp", Level.OK, "system calls can be notified")


def _ptrace(run: str | None) -> Finding:
    try:
        probes.in_child(lambda: probes.trace(run == "fuse in a user namespace", declared=run == "seccomp"))
    except OSError as error:
        text = f"other processes cannot be traced: {error.strerror or error}"
        cure = "in a container: --cap-add SYS_PTRACE, and a seccomp profile that allows ptrace"
        if _yama() >= 3:
            cure = "kernel.yama.ptrace_scope is 3, which can only be undone by a reboot"
        elif _yama():
            cure = f"sysctl kernel.yama.ptrace_scope=0 (it is {_yama()}), or give CAP_SYS_PTRACE"
        return Finding("ptrace", Level.MISSING, text, cure)
    return Finding("ptrace", Level.OK, "descriptors can be handed to clients")


def _yama() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return 0


def _name() -> Finding:
    """Nothing here may open the node: that would load kvm.ko."""
    if not os.path.lexists(DEVICE):
        return Finding("device", Level.OK, f"{DEVICE} is free")
    if names_nothing(DEVICE):
        return Finding("device", Level.OK, f"{DEVICE} is a node without a driver; kvmfs covers it")
    return Finding(
        "device",
        Level.NOTE,
        f"{DEVICE} exists; kvmfs run hides it from its command, kvmfs serve refuses",
        "kvmfs serve --replace, or another --device",
    )


def _jit() -> Iterator[Finding]:
    reinstall = "install kvmfs with its dependencies again"
    if importlib.util.find_spec("numba") is None:
        yield Finding("jit.compiler", Level.MISSING, "numba is not installed", reinstall)
        return
    try:
        warm, place = probes.in_child(_cache, timeout=120)
    except OSError as error:
        yield Finding("jit.compiler", Level.MISSING, f"the vCPU cannot be loaded: {error.strerror or error}", reinstall)
        return
    yield Finding("jit.compiler", Level.OK, "numba")
    if warm:
        yield Finding("jit.cache", Level.OK, f"warm: {place}")
    elif not _can_be_made(Path(place)):
        text = f"cold, and {place} cannot be written"
        yield Finding("jit.cache", Level.MISSING, text, "set KVMFS_CACHE_DIR to a directory of your own")
    else:
        yield Finding("jit.cache", Level.NOTE, f"cold: {place}", "kvmfs warm; else the first VM has to wait for it")


def _cache() -> tuple[bool, str]:
    from kvmfs.jit import build, cache

    return build.is_warm(), str(cache.base_dir())


def _can_be_made(directory: Path) -> bool:
    while not directory.exists():
        directory = directory.parent
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)


def show(report: Report, out: Callable[[object], None]) -> None:
    """Print the report as a table."""
    from rich.table import Table
    from rich.text import Text

    styles = {Level.OK: "green", Level.NOTE: "yellow", Level.MISSING: "bold red"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "", "what is there", "what to do"):
        table.add_column(title, overflow="fold")
    for finding in report.findings:
        mark = Text(finding.level.value, style=styles[finding.level])
        cure = finding.cure if finding.level is not Level.OK else ""
        table.add_row(mark, finding.code, Text(finding.text), Text(cure))
    out(table)
    out("")
    out(Text(f"kvmfs run: {report.run or 'does not work here'}", style="" if report.run else "bold red"))
    out(Text(f"kvmfs serve: {report.serve or 'does not work here (root of the host only)'}"))
