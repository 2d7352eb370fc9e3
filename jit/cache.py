"""Where compiled code is kept on disk, and when it is still good.

numba's cache does not notice changes in imported modules. So each group has a directory of its own, keyed by a hash of
everything its code is made from: the sources of its module and of all modules of this package that it imports, however
far, the versions of Python and numba, and the processor compiled for. numba also asks for the file that a function
stands in, its place and time; the function that a group is cached as is made up, so its file is in the directory too,
and any number of checkouts of the same sources share what one of them has compiled.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import numba
from llvmlite import binding

PACKAGE = __name__.partition(".")[0]
FROM_IMPORT = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)", re.MULTILINE)
STALE_SECONDS = 30 * 24 * 3600


def base_dir() -> Path:
    """$KVMFS_CACHE_DIR, else kvmfs/jit in the user's cache directory."""
    given = os.environ.get("KVMFS_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given) if given else home / "kvmfs") / "jit"


@functools.cache
def group_dir(name: str, module: str) -> Path:
    """The group's directory; once a process, so that sources edited meanwhile do not move it."""
    digest = hashlib.sha256(_platform().encode())
    for source_name, path in _sources(module).items():
        digest.update(f"{source_name} {path.stat().st_size} ".encode() + path.read_bytes())
    return base_dir() / f"{name}-{digest.hexdigest()[:16]}"


@functools.cache
def _platform() -> str:
    cpu = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return f"{sys.version} {numba.__version__} {cpu} {features}"


def _sources(module: str) -> dict[str, Path]:
    """By module name, the files of `module` and of what it imports from this package."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = _imports(name)
            waiting += imported
    return dict(sorted(found.items()))


@functools.cache
def _imports(module: str) -> tuple[Path, list[str]]:
    """A module's file, and the modules of this package that its `from` imports name."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    names = []
    for dots, target, imported in FROM_IMPORT.findall(Path(spec.origin).read_text()):
        full = importlib.util.resolve_name(dots + target, package) if dots else target
        if full.partition(".")[0] == PACKAGE:
            names.append(full)
            names += [f"{full}.{name}" for name in re.findall(r"\w+", imported) if _is_module(f"{full}.{name}")]
    return Path(spec.origin), names


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def use(directory: Path) -> None:
    """Have numba keep what it compiles next in `directory`: private to the user, because loading code runs it."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to another user; set KVMFS_CACHE_DIR to a directory of your own")
    numba.config.CACHE_DIR = str(directory)
    os.environ["NUMBA_CACHE_DIR"] = str(directory)


def compile_source(directory: Path, source: str) -> CodeType:
    """The code object of `source`, which stands in a file in `directory`; written once, so that its time stays."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / "group.py"
    if not path.exists():
        draft = directory / f"group.{os.getpid()}"
        draft.write_text(source)
        draft.rename(path)
    return compile(source, str(path), "exec")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time compiles into `directory`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_complete(directory: Path) -> bool:
    """Whether the group's compilation into `directory` has finished."""
    return (directory / "complete").exists()


def mark_complete(directory: Path) -> None:
    (directory / "complete").touch()


def prune() -> None:
    """Remove directories that no group has used for a month."""
    if base_dir().is_dir():
        for directory in base_dir().iterdir():
            if directory.stat().st_mtime < time.time() - STALE_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)
