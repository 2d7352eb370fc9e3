"""What a command under `kvmfs run` sees of the system: all of it, with /dev/kvm and the kvm modules' parameters ours.

Runs in a private mount namespace (``wire.mount.private_namespace``): nothing here shows outside.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from kvmfs.wire import mount

_MODULES: Final = Path("/sys/module")
_HOST: Final = ".host"


def make_room(path: Path) -> None:
    """Have something at ``path`` that can be mounted on.

    Where there is nothing, its directory in /dev becomes a tmpfs in which all that was there is bound, and an empty
    file. What the host adds to that directory later does not show.

    :raises FileNotFoundError: nothing is there, and it is not in /dev.
    """
    path = path.parent.resolve() / path.name
    if path.exists():
        return
    if not path.is_relative_to("/dev"):
        raise FileNotFoundError(2, "nothing is there; create an empty file for the device", str(path))
    _copy_directory(path.parent)
    path.unlink(missing_ok=True)  # a link to nothing
    path.touch(0o600)


def _copy_directory(path: Path) -> None:
    """Put a tmpfs over ``path`` with the same entries: directories and files bound, links copied."""
    original = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    copy = mount.tmpfs(path.stat().st_mode & 0o7777)
    try:
        mount.attach(copy, path)
        _bind_entries(original, path)
    finally:
        os.close(copy)
        os.close(original)


def _bind_entries(original: int, path: Path) -> None:
    with os.scandir(f"/proc/self/fd/{original}") as entries:
        for entry in entries:
            if entry.is_symlink():
                (path / entry.name).symlink_to(os.readlink(entry.name, dir_fd=original))
                continue
            if entry.is_dir():
                (path / entry.name).mkdir()
            else:
                (path / entry.name).touch()
            _bind(original, entry.name, path / entry.name)


def _bind(directory: int, name: str, path: Path) -> None:
    tree = mount.tree(name, dir_fd=directory)
    try:
        mount.attach(tree, path)
    finally:
        os.close(tree)


def show_modules(modules: Mapping[str, Mapping[str, str]]) -> None:
    """Show ``modules`` with their parameters in /sys/module, in the place of any of KVM's; read-only.

    The host's other modules are links to where /sys/module is bound. Views nest.
    """
    if not _MODULES.is_dir():
        return  # no sysfs, nothing to be consistent with
    original, copy = mount.tree(_MODULES), mount.tmpfs()
    try:
        place = Path(f"/proc/self/fd/{copy}")
        (place / _HOST).mkdir()
        names = (entry.name for entry in _MODULES.iterdir() if entry.name.partition("_")[0] not in ("kvm", _HOST))
        _link_modules(place, names)
        for name, parameters in modules.items():
            directory = place / name / "parameters"
            directory.mkdir(parents=True)
            for parameter, value in parameters.items():
                (directory / parameter).write_text(f"{value}\n")
        mount.make_read_only(copy)
        mount.attach(copy, _MODULES)
        mount.attach(original, _MODULES / _HOST)
    finally:
        os.close(copy)
        os.close(original)


def _link_modules(place: Path, names: Iterable[str]) -> None:
    for name in names:
        (place / name).symlink_to(f"{_HOST}/{name}")
