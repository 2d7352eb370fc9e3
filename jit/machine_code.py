"""Primitives that are machine code: instructions of the host that have no LLVM or Python form.

The guest's processor and the host's are of one kind, so what an arithmetic instruction computes (rounding, NaNs,
flags) is what the host computes when it executes that instruction. A plain-Python run executes the same machine code,
assembled on first use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir

from .raw import I64, VOID, _asm, primitive

_alive: list[Any] = []  # engines own the code that they made


def _assemble(name: str, arity: int, emit: Callable) -> Callable[..., None]:
    """A Python callable of `arity` addresses for the code that `emit(builder, *arguments)` makes."""
    module = ir.Module(name)
    function = ir.Function(module, ir.FunctionType(VOID, [I64] * arity), name)
    builder = ir.IRBuilder(function.append_basic_block())
    emit(builder, *function.args)
    builder.ret_void()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(cpu=binding.get_host_cpu_name())
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    _alive.append(engine)
    return ctypes.CFUNCTYPE(None, *([ctypes.c_int64] * arity))(engine.get_function_address(name))


def immediate_copies(instruction: str, argument: int) -> tuple[str, ...]:
    """Lines for an instruction whose immediate is argument number `argument`, and `i` in its text: 256 copies of it.

    RAX and RDX lead there and back. A copy and its jump are 8 bytes: the instruction may have six.
    """
    return (
        "leaq 1f(%rip), %rax", f"leaq (%rax, ${argument}, 8), %rax", "leaq 2f(%rip), %rdx", "jmp *%rax",
        ".p2align 3", "1:", ".set kvmfs_immediate, 0", ".rept 256", ".p2align 3",
        instruction.replace("i,", "$$kvmfs_immediate,", 1), "jmp *%rdx",
        ".set kvmfs_immediate, kvmfs_immediate + 1", ".endr", "2:",
    )  # fmt: skip


def machine_code(name: str, arity: int, lines: Sequence[str], clobbers: Sequence[str]) -> Callable:
    """The primitive `name(a0, ..., an)`: AT&T lines that name their arguments $0 ... $n, each a general register."""
    constraints = ",".join(["r"] * arity + [f"~{{{register}}}" for register in (*clobbers, "memory", "flags")])

    def generate(builder, *arguments):
        _asm(builder, VOID, list(arguments), "\n".join(lines), constraints)

    generate.__name__ = name
    assembled: list[Callable] = []

    def plain(*arguments: int) -> None:
        if not assembled:
            assembled.append(_assemble(name, arity, generate))
        assembled[0](*arguments)

    return primitive(arity, plain, result=False)(generate)
