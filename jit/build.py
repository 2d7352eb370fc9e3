"""Compiled functions in groups: one disk-cache entry, one unit of parallel compilation, one table slot a function.

A group is a module's worth of functions (`add`ed dispatchers over int64). Its fill function stores the address of a
plain C-ABI wrapper of each into the function table; only the fill function is cached by numba, and with it comes the
code of all members: loading hundreds of functions is one unpickle and one link. Members are compiled only when the
cache has no entry.

numba's cache does not notice changes in imported modules, so the cache directory is keyed by a hash of all jit sources,
numba's version and the CPU it compiles for.
"""

import ctypes
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numba
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from .raw import I64, PLAIN, store64

OPTIONS = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# Every group and the module that defines it, in a fixed order: a function's slot in the table is its group's base plus
# its place in the group, so that code compiled by one process calls the right function in another.
GROUP_MODULES = {
    "mmu": "kvmfs.jit.mmu.group",
    "trap": "kvmfs.jit.cpu.trap",
    "memory": "kvmfs.jit.cpu.memory",
    "alu": "kvmfs.jit.cpu.alu",
    "shift": "kvmfs.jit.cpu.shift",
    "muldiv": "kvmfs.jit.cpu.muldiv",
    "move": "kvmfs.jit.cpu.move",
    "branch": "kvmfs.jit.cpu.branch",
    "bits": "kvmfs.jit.cpu.bits",
    "string": "kvmfs.jit.cpu.string",
    "system": "kvmfs.jit.cpu.system",
    "segment": "kvmfs.jit.cpu.segment",
    "control": "kvmfs.jit.cpu.control",
    "flow": "kvmfs.jit.cpu.flow",
    "io": "kvmfs.jit.cpu.io",
    "fpu_state": "kvmfs.jit.cpu.fpu_state",
    "sse_move": "kvmfs.jit.cpu.sse_move",
    "decode": "kvmfs.jit.cpu.decode",
    "exception": "kvmfs.jit.cpu.exception",
    "run": "kvmfs.jit.cpu.run",
    "worker": "kvmfs.worker.loop",
}
SLOTS_PER_GROUP = 512
TABLE_SLOTS = SLOTS_PER_GROUP * len(GROUP_MODULES)


def compiled(function: Callable) -> Callable:
    """An inlinable helper: compiled into each group that uses it."""
    return function if PLAIN else njit(**OPTIONS)(function)


class Group:
    """Functions that are compiled and cached together.

    name: unique, used in the cache and in progress displays; module: `__name__` of the defining module.
    """

    registry: ClassVar[dict[str, "Group"]] = {}

    def __init__(self, name: str, module: str) -> None:
        if GROUP_MODULES[name] != module:
            raise ValueError(f"group {name} belongs to {GROUP_MODULES[name]}, not to {module}")
        self.name, self.module = name, module
        self.base = SLOTS_PER_GROUP * list(GROUP_MODULES).index(name)
        self.members: dict[str, Callable] = {}
        Group.registry[name] = self

    def add(self, function: Callable, name: str | None = None) -> Callable:
        """Give a function (int64 arguments, int64 result) a table slot; usable as a decorator."""
        name = name or function.__name__
        if any(name in group.members for group in Group.registry.values()):
            raise ValueError(f"two functions are called {name}")
        if len(self.members) == SLOTS_PER_GROUP:
            raise ValueError(f"group {self.name} is full")
        self.members[name] = compiled(function)
        return self.members[name]

    def slot(self, name: str) -> int:
        """The table slot of a member."""
        return self.base + list(self.members).index(name)

    def slots(self) -> dict[str, int]:
        """All members' table slots by name."""
        return {name: self.base + index for index, name in enumerate(self.members)}

    def fill(self) -> Callable:
        """Compile or load; returns `fill(table)` that stores the members' addresses."""
        lines = ["def fill(table):"]
        scope: dict[str, object] = {"store64": store64}
        for name, dispatcher in self.members.items():
            scope[f"address_of_{name}"] = _address_of(dispatcher, name)
            lines.append(f"    store64(table + {8 * self.slot(name)}, address_of_{name}())")
        # The cache wants a function that stands in a file; the group's module is the honest answer.
        code = compile("\n".join(lines) + "\n", str(sys.modules[self.module].__file__), "exec")
        exec(code, scope)
        function = scope["fill"]
        function.__qualname__ = f"fill_{self.name}"  # type: ignore[attr-defined]
        function.__module__ = self.module  # type: ignore[attr-defined]
        return njit("void(int64)", cache=True, nogil=True, error_model="numpy")(function)


def _address_of(dispatcher, name: str):
    arity = dispatcher.py_func.__code__.co_argcount
    arguments = (types.int64,) * arity

    @intrinsic
    def address(typingctx):
        if arguments not in dispatcher.overloads:
            dispatcher.compile(arguments)

        def codegen(context, builder, signature, args):
            compiled_result = dispatcher.overloads[arguments]
            returned = types.unliteral(compiled_result.signature.return_type)  # always 0 is Literal[int](0)
            assert returned == types.int64, f"{name} returns {compiled_result.signature}"
            wrapper = ir.Function(builder.module, ir.FunctionType(I64, [I64] * arity), name=f"kvmfs.{name}")
            wrapper.linkage = "internal"
            body = ir.IRBuilder(wrapper.append_basic_block())
            callee = context.declare_function(builder.module, compiled_result.fndesc)
            _, result = context.call_conv.call_function(body, callee, types.int64, arguments, wrapper.args)
            body.ret(result)
            context.add_linking_libs([compiled_result.library])
            return builder.ptrtoint(wrapper, I64)

        return types.int64(), codegen

    return address


# The cache -----


def cache_dir() -> Path:
    """Where compiled code is kept: private to the user, because loading it runs it."""
    base = os.environ.get("KVMFS_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvmfs"
    )
    return Path(base) / f"jit-{_key()}"


@functools.cache
def _key() -> str:
    # Once a process: sources edited meanwhile must not move the cache under it.
    digest = hashlib.sha256()
    cpu = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    features = binding.get_host_cpu_features().flatten() if features is None else features
    digest.update(f"{sys.version} {numba.__version__} {cpu} {features}".encode())
    root = Path(__file__).resolve().parent
    for source in sorted([*root.rglob("*.py"), *(root.parent / "kvmfs" / "worker").glob("*.py")]):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


def _use_cache() -> None:
    directory = cache_dir()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.geteuid():
        raise PermissionError(f"{directory} belongs to another user; set KVMFS_CACHE_DIR to a directory of your own")
    numba.config.CACHE_DIR = str(directory)
    os.environ["NUMBA_CACHE_DIR"] = str(directory)


def _groups() -> list[Group]:
    for module in GROUP_MODULES.values():
        importlib.import_module(module)
    return [Group.registry[name] for name in GROUP_MODULES]


def slots() -> dict[str, int]:
    """The table slot of every compiled function by name."""
    return {name: number for group in _groups() for name, number in group.slots().items()}


def is_warm() -> bool:
    """Whether every group has been compiled into the cache."""
    directory = cache_dir()
    return all((directory / f"{group.name}.done").exists() for group in _groups())


def _compile_group(name: str) -> str:
    _use_cache()
    groups = {group.name: group for group in _groups()}
    groups[name].fill()
    (cache_dir() / f"{name}.done").touch()
    return name


def warm(progress: Callable[[str, int, int], None] = lambda name, done, total: None, jobs: int | None = None) -> None:
    """Compile what the cache lacks, in parallel; `progress(group, functions done, functions in all)`."""
    _use_cache()
    groups = _groups()
    total, done = sum(len(g.members) for g in groups), 0
    missing = [g for g in groups if not (cache_dir() / f"{g.name}.done").exists()]
    done = total - sum(len(g.members) for g in missing)
    progress("", done, total)
    if not missing:
        return
    missing.sort(key=lambda g: -len(g.members))
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_compile_group, g.name) for g in missing]):
            name = future.result()
            done += len(Group.registry[name].members)
            progress(name, done, total)


_table: ctypes.Array | None = None


def load() -> int:
    """The address of the function table, every group compiled or loaded from the cache."""
    global _table
    if _table is None:
        _use_cache()
        table = (ctypes.c_int64 * TABLE_SLOTS)()
        for group in _groups():
            group.fill()(ctypes.addressof(table))
            (cache_dir() / f"{group.name}.done").touch()
        _table = table
    return ctypes.addressof(_table)


def function(name: str, arity: int) -> Callable[..., int]:
    """A Python callable for the compiled function `name`; the GIL is released while it runs."""
    load()
    assert _table is not None
    return ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * arity))(_table[slots()[name]])
