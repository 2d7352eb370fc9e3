"""Compiled functions in groups: one disk-cache entry, one unit of parallel compilation, one table slot a function.

A group is a module's worth of functions (`add`ed dispatchers over int64). Its fill function stores the address of a
plain C-ABI wrapper of each into the function table; only the fill function is cached by numba, and with it comes the
code of all members: loading hundreds of functions is one unpickle and one link. Members are compiled only when the
cache has no entry.

cache.py says where that cache is and when it is still good.
"""

import ctypes
import importlib
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from . import cache
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
    "far": "kvmfs.jit.cpu.far",
    "task": "kvmfs.jit.cpu.task",
    "legacy": "kvmfs.jit.cpu.legacy",
    "debug": "kvmfs.jit.cpu.debug",
    "x87": "kvmfs.jit.cpu.x87",
    "x87_state": "kvmfs.jit.cpu.x87_state",
    "mmx": "kvmfs.jit.cpu.mmx",
    "sse_float": "kvmfs.jit.cpu.sse_float",
    "sse_convert": "kvmfs.jit.cpu.sse_convert",
    "vex": "kvmfs.jit.cpu.vex",
    "avx_float": "kvmfs.jit.cpu.avx_float",
    "crypto": "kvmfs.jit.cpu.crypto",
    "text": "kvmfs.jit.cpu.text",
    "decode": "kvmfs.jit.cpu.decode",
    "exception": "kvmfs.jit.cpu.exception",
    "run": "kvmfs.jit.cpu.run",
    "client_memory": "kvmfs.kvm.client_memory",
    "fault_log": "kvmfs.kvm.fault_log",
    "inject": "kvmfs.kvm.inject.access",
    "dirty": "kvmfs.kvm.dirty_pages",
    "coalesced": "kvmfs.kvm.coalesced_ring",
    "lapic": "kvmfs.irqchip.lapic",
    "chips": "kvmfs.irqchip.chips",
    "bus": "kvmfs.irqchip.bus",
    "paravirt": "kvmfs.kvm.paravirt",
    "enter": "kvmfs.kvm.enter",
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
        lines = ["def fill(table):", "    pass"]
        scope: dict[str, object] = {"store64": store64}
        for name, dispatcher in self.members.items():
            scope[f"address_of_{name}"] = _address_of(dispatcher, name)
            lines.append(f"    store64(table + {8 * self.slot(name)}, address_of_{name}())")
        code = cache.compile_source(self.directory, "\n".join(lines) + "\n")
        exec(code, scope)
        function = scope["fill"]
        function.__qualname__ = f"fill_{self.name}"  # type: ignore[attr-defined]
        function.__module__ = self.module  # type: ignore[attr-defined]
        cache.use(self.directory)
        loaded = njit("void(int64)", cache=True, nogil=True, error_model="numpy")(function)
        cache.mark_complete(self.directory)
        return loaded

    @property
    def directory(self) -> Path:
        """Where the group's compiled code is kept."""
        return cache.group_dir(self.name, self.module)


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


def _groups() -> list[Group]:
    for module in GROUP_MODULES.values():
        importlib.import_module(module)
    return [Group.registry[name] for name in GROUP_MODULES]


def slots() -> dict[str, int]:
    """The table slot of every compiled function by name."""
    return {name: number for group in _groups() for name, number in group.slots().items()}


def is_warm() -> bool:
    """Whether every group has been compiled into the cache."""
    return all(cache.is_complete(group.directory) for group in _groups())


def _compile_group(name: str) -> str:
    groups = {group.name: group for group in _groups()}
    with cache.locked(groups[name].directory):  # whoever else compiles it will have done so afterwards
        groups[name].fill()
    return name


def warm(progress: Callable[[str, int, int], None] = lambda name, done, total: None, jobs: int | None = None) -> None:
    """Compile what the cache lacks, in parallel; `progress(group, functions done, functions in all)`."""
    groups = _groups()
    missing = [group for group in groups if not cache.is_complete(group.directory)]
    total = sum(len(group.members) for group in groups)
    done = total - sum(len(group.members) for group in missing)
    progress("", done, total)
    if not missing:
        return
    cache.prune()
    missing.sort(key=lambda group: -len(group.members))
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_compile_group, group.name) for group in missing]):
            name = future.result()
            done += len(Group.registry[name].members)
            progress(name, done, total)


_table: ctypes.Array | None = None


def load() -> int:
    """The address of the function table, every group compiled or loaded from the cache."""
    global _table
    if _table is None:
        table = (ctypes.c_int64 * TABLE_SLOTS)()
        for group in _groups():
            group.fill()(ctypes.addressof(table))
        _table = table
    return ctypes.addressof(_table)


def function(name: str, arity: int) -> Callable[..., int]:
    """A Python callable for the compiled function `name`; the GIL is released while it runs."""
    load()
    assert _table is not None
    return ctypes.CFUNCTYPE(ctypes.c_int64, *([ctypes.c_int64] * arity))(_table[slots()[name]])
