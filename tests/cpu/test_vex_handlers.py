"""VEX handlers by themselves, which plain Python can run too: dst = ymm1, first source ymm2, last ymm3."""

from __future__ import annotations

import pytest
from kvmfs.jit.cpu.packed import PACKED, SHIFTS
from kvmfs.jit.cpu.shuffle import SHUFFLES
from kvmfs.jit.cpu.vex import group

from .compare import Form, check
from .forms import Opcode, encode, opcodes
from .native import HAS_AVX

pytestmark = pytest.mark.skipif(not HAS_AVX, reason="the host has no AVX")

DST, FIRST, LAST = 1, 2, 3


def forms() -> list[Form]:
    """Instructions on vector registers alone whose handler has the instruction's name."""
    found = []
    for opcode in opcodes("AVX", "AVX2", vex=True):
        name = opcode.name.split("_")[1].lower()
        vectors = all("XMM" in kind or "YMM" in kind or kind == "IMM8" for kind in opcode.kinds)
        if vectors and opcode.takes_register and opcode.info.group_index < 0 and not opcode.has("IS4"):
            found += [
                form for imm in ((0x1B, 0xE4) if opcode.has_immediate else (0,)) if (form := _form(opcode, name, imm))
            ]
    return found


def _form(opcode: Opcode, name: str, imm: int) -> Form | None:
    if name[1:] not in PACKED.keys() | SHIFTS.keys() | SHUFFLES.keys() and not name.startswith(
        ("vpsllv", "vpsrlv", "vpsrav")
    ):
        return None
    code = encode(opcode, reg=DST, rm=LAST, vvvv=FIRST if opcode.has("VVVV") else 0, imm=imm)
    return Form(name, code, "xmm1", "xmm3", "xmm2", imm, wide=bool(opcode.info.l))


@pytest.mark.parametrize("form", forms(), ids=str)
def test_as_the_host(form: Form) -> None:
    check(form)


def test_handlers_are_compared() -> None:
    """Of the operations that SSE has too, all: the moves and what crosses lanes are in test_avx.py."""
    names = {f"v{name}" for name in PACKED.keys() | SHUFFLES.keys()} - {"vpslldq", "vpsrldq", "vpand", "vpor", "vpxor"}
    assert names & set(group.members) <= {form.handler for form in forms()} | {"vpandn"}
