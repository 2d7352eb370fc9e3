"""The compiled functions of this package, and calls between them.

A function that is not worth inlining is called through the function table, so that its code exists once and callers
stay small. Modules import each other in a line (tlb, resolve, physical, walk, translate, access): a function's table
slot is its place in that order, whichever module is imported first.
"""

from collections.abc import Callable

from ..build import Group, compiled
from ..raw import PLAIN, call1, call2, call3, call4, load64
from ..state import FUNCTIONS

group = Group("mmu", "kvmfs.jit.mmu.group")


def member(function: Callable) -> Callable:
    """Add a function whose first argument is the vCPU block to the group; the result calls it through the table."""
    group.add(function)
    if PLAIN:
        return function
    name, slot = function.__name__, group.slot(function.__name__)
    arity = function.__code__.co_argcount
    arguments = ", ".join(function.__code__.co_varnames[:arity])
    scope = {"call": (call1, call2, call3, call4)[arity - 1], "load64": load64}
    code = f"def {name}({arguments}):\n    return call(load64(load64(s + {FUNCTIONS}) + {8 * slot}), {arguments})\n"
    exec(code, scope)
    return compiled(scope[name])
