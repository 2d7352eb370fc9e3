"""`kvmfs serve`: a device for the whole system, until SIGTERM."""

import errno
import grp
import logging
import os
import pwd
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvmfs.cli.caps import Capability, effective, in_initial_user_namespace
from kvmfs.cli.notify import notify
from kvmfs.cli.processes import Serve, SetupError, StartError, describe
from kvmfs.cli.transport import Transport
from kvmfs.wire.device import Device, Permissions, clear_stale, cuse_device, fuse_device

GROUP = "kvm"
"""Owns /dev/kvm on most systems; the default here if it exists."""
_KVM_NUMBER = os.makedev(10, 232)  # KVM_MINOR, include/linux/miscdevice.h


@dataclass(frozen=True, slots=True)
class Options:
    device: Path = Path("/dev/kvm")
    transport: Transport = Transport.AUTO
    passthrough: bool | None = None
    mode: int | None = None
    owner: str | None = None
    group: str | None = None
    """Permissions; None: as udev has it for /dev/kvm, 0660 root:kvm."""
    replace: bool = False
    """Hide what is at ``device`` already."""


def serve(options: Options, broker: Serve, log: logging.Logger, ready: Callable[[], None] = lambda: None) -> None:
    """Create the device, serve it, and take it away again. This process becomes the broker.

    :param ready: called when the device answers; the service manager is told as well.
    :raises SetupError: no device.
    """
    device = _create(options)
    try:

        def announce() -> None:
            notify("READY=1", f"STATUS=Serving {options.device} ({device.connection.kind.value})")
            log.info("serving %s (%s)", options.device, device.connection.kind.value)
            ready()

        broker(device.connection, log=log, passthrough=options.passthrough, ready=announce)
    finally:
        notify("STOPPING=1")
        device.remove()


def detached(work: Callable[[Callable[[], None]], None]) -> int:
    """Do ``work`` in a process of its own, without a terminal: its pid, once it has called what it is given.

    :raises StartError: it ended before that, having said why.
    """
    parent_end, child_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 125
        try:
            os.setsid()
            os.chdir("/")

            def ready() -> None:
                null = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
                os.write(child_end, b"!")
                os.close(child_end)

            work(ready)
            status = 0
        except SetupError as error:
            print(f"kvmfs: {error}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(child_end)
    with os.fdopen(parent_end, "rb", buffering=0) as pipe:
        if not pipe.read(1):
            raise StartError(f"the server did not start ({describe(os.waitpid(pid, 0)[1])})", 125)
    return pid


def _create(options: Options) -> Device:
    if Capability.SYS_ADMIN not in effective() or not in_initial_user_namespace():
        raise SetupError("a device for the whole system needs root; `kvmfs run` does not")
    path = options.device
    mode = 0o660 if options.mode is None else options.mode
    permissions = Permissions(mode, _user(options.owner), _group(options.group))
    try:
        clear_stale(path)
        replace = options.replace or names_nothing(path)
        if _transport(options.transport) is Transport.CUSE:
            # Of a node that is called kvm udev sets the permissions, some time after it appears. Where others are
            # wanted it is called otherwise, and put over the path.
            as_udev = (options.mode, options.owner, options.group) == (None, None, None)
            return cuse_device(path, permissions, name=None if as_udev else f"kvmfs/{path.name}", replace=replace)
        return fuse_device(path, permissions, replace=replace)
    except FileExistsError as error:
        raise SetupError(f"{path} is taken ({error.strerror}); --replace hides it while kvmfs serves") from None
    except OSError as error:
        raise SetupError(f"cannot make {path}: {error}") from None


def _transport(wanted: Transport) -> Transport:
    """CUSE where there is a choice: a character device is what containers and jailers expect."""
    if wanted is not Transport.AUTO:
        return wanted
    return Transport.CUSE if os.access("/dev/cuse", os.R_OK | os.W_OK) else Transport.FUSE


def names_nothing(path: Path) -> bool:
    """The node has KVM's own number, and no module that answers to it is loaded (opening it would load one)."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _KVM_NUMBER:
        return False
    return all(line.split()[1:] != ["kvm"] for line in Path("/proc/misc").read_text().splitlines())


def _user(name: str | None) -> int:
    if name is None:
        return 0
    if name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise SetupError(f"there is no user {name!r}") from None


def _group(name: str | None) -> int:
    if name is not None and name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name or GROUP).gr_gid
    except KeyError:
        if name is None:
            return 0
        raise SetupError(f"there is no group {name!r}") from None
