"""VEX-encoded integer and move instructions: three operands, on one 128-bit lane or two.

A record names dst; the first source in `third`, the last in `src`; a fourth operand in INDEX_PTR; VEX.L is AUX. What
is computed is what packed.py and shuffle.py say, lane by lane: the name there after a `v` is the handler's name.
Bits 128 to 255 of a destination register become 0 when VEX.L is 0.
"""

from ..build import Group
from . import avx_memory, avx_permute, vex_integer

group = Group("vex", __name__)

for _module in (vex_integer, avx_permute, avx_memory):
    for _name, _handler in _module.HANDLERS.items():
        group.add(_handler, _name)
