"""Which opens are of our files: by their paths, as the command means them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kvmfs.client import memory
from kvmfs.notify.filter import OPEN, OPENAT, OPENAT2
from kvmfs.notify.listener import Notification

_PAGE: Final = 4096
_PATH_MAX: Final = 4096
_AT_FDCWD: Final = 0xFFFF_FF9C


class Opens:
    """The device's path, and files with contents of ours (/sys/module/kvm/parameters)."""

    def __init__(self, device: Path, contents: Mapping[str, bytes]) -> None:
        self.device = str(device)
        self.contents = contents
        self._names = {name.rpartition("/")[2].encode() for name in (self.device, *contents)}

    def path(self, notification: Notification) -> str | None:
        """The path, if it is one of ours."""
        args = notification.args
        directory, at = (_AT_FDCWD, args[0]) if notification.call == OPEN else args[:2]
        given = _string(notification.tid, at)
        if given is None or given.rpartition(b"/")[2] not in self._names:
            return None
        path = os.fsdecode(given)
        if not path.startswith("/"):
            base = "cwd" if directory & 0xFFFF_FFFF == _AT_FDCWD else f"fd/{directory & 0x7FFF_FFFF}"
            try:
                path = f"{Path(f'/proc/{notification.tid}/{base}').readlink()}/{path}"
            except OSError:
                return None
        path = os.path.normpath(path)
        return path if path == self.device or path in self.contents else None

    def flags(self, notification: Notification) -> int:
        """O_*. OSError(EFAULT)."""
        match notification.call:
            case n if n == OPEN:
                return notification.args[1]
            case n if n == OPENAT:
                return notification.args[2]
            case n if n == OPENAT2:  # struct open_how begins with them
                return int.from_bytes(memory.read(notification.tid, notification.args[2], 8), "little")
        raise ValueError(notification.call)


def _string(tid: int, address: int) -> bytes | None:
    """The string at `address`, None if there is none of a path's length."""
    found = b""
    try:
        while len(found) < _PATH_MAX:
            part = memory.read(tid, address, min(_PAGE - address % _PAGE, 256))
            head, end, _ = part.partition(b"\0")
            found += head
            if end:
                return found
            address += len(part)
    except OSError:
        pass
    return None
