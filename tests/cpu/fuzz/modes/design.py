"""Differences that are meant: what our CPU does otherwise than Unicorn (QEMU's emulator), with the manual's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..undefined import FLAGS
from . import layout as L
from .forms import Form, base_of, extent


@dataclass(frozen=True)
class Difference:
    """A rule: `covers` tells from form, state before, Unicorn's and ours whether a case is one of these."""

    name: str
    reason: str
    covers: Callable[[Form, np.void, np.void, np.void], bool]


def undefined(form: Form) -> int:
    """Flags that the SDM leaves undefined."""
    return FLAGS.get("shl" if form.mnemonic == "sal" else form.mnemonic, 0)


def _beyond_limit(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return int(ours["vector"]) in (12, 13) and leaves_segment(form, before)


def leaves_segment(form: Form, before: np.void) -> bool:
    """Whether a memory operand is not all within 64 KiB, or its segment is one that cannot be accessed so."""
    mode = L.MODES[form.mode]
    for operand in form.operands:
        first, end = extent(form, before, operand)
        selector = int(before["segment"][operand.segment])
        if operand.segment == L.CS and mode.protected and not mode.v86:
            return True  # code is not written, and this one maybe not read
        flat = mode.bits == 32 and base_of(mode, selector) == 0 and selector & ~3
        if first < 0 or end > (1 << 32 if flat else 0x10000) or (mode.protected and not mode.v86 and selector < 4):
            return True
    return False


def _beyond_code(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    branches = form.mnemonic.startswith(("j", "call", "ret", "loop", "iret"))
    return (
        branches and int(ours["vector"]) == 13 and int(theirs["vector"]) == L.NO_FAULT and int(theirs["eip"]) > 0xFFFF
    )


def _test_with_1(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name == "test" and int(theirs["vector"]) == 6


def _reserved_nop(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic == "reservednop" and int(theirs["vector"]) == 6


def _own_code(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return L.CODE - 8 < int(ours["changed"]) <= L.CODE + 16


def _signed_return(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name in ("ret_imm", "ret_far_imm") and form.code[-1] >= 0x80 and theirs["eip"] == ours["eip"]


def _locked_neg(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name == "neg" and b"\xf0" in form.code[:-2] and theirs["digest"] == ours["digest"]


def _status_word(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name == "smsw" and theirs["eip"] == ours["eip"]


def _frame_of_another_size(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name == "enter_frame" and b"\x66" in form.code[:-4] and theirs["eip"] == ours["eip"]


def _task_of_16_bits(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return L.TSS16_FREE in (int(theirs["tr"]), int(ours["tr"]))


def _flushed_device(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name == "clflush" and int(ours["vector"]) == L.OUTSIDE


def _pushed_selector(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name.startswith("push_") and theirs["eip"] == ours["eip"]


def _double_shift_of_16(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name in ("shld", "shrd") and theirs["eip"] == ours["eip"]


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "accesses beyond a segment's limit, by a null selector or by CS",
        'SDM vol. 3, 5.3: "the processor causes a general-protection exception any time an attempt is made to access'
        ' an offset greater than the effective limit"; Unicorn does not look at limits',
        _beyond_limit,
    ),
    Difference(
        "branches beyond the limit of CS",
        'SDM vol. 2, JMP: "IF tempEIP not in code segment limit, #GP(0)"; Unicorn does not look at limits',
        _beyond_code,
    ),
    Difference(
        "TEST encoded as F6 /1, F7 /1",
        "AMD APM vol. 3, table A-6: /1 is TEST as /0 is; Unicorn makes it #UD",
        _test_with_1,
    ),
    Difference(
        "0F 18 and 0F 19 to 0F 1F with a register or a reserved reg field",
        "SDM vol. 2, table A-3: reserved NOPs; Unicorn makes some of them #UD",
        _reserved_nop,
    ),
    Difference(
        "an instruction that writes its own bytes",
        "SDM vol. 3, 8.1.3: it has been fetched; Unicorn stops, and begins it again",
        _own_code,
    ),
    Difference(
        "RET imm16 of 32 KiB or more",
        'SDM vol. 2, RET: "ESP := ESP + SRC (* Release parameters from stack *)", a count of bytes; Unicorn takes it as'
        " signed",
        _signed_return,
    ),
    Difference(
        "LOCK NEG",
        "SDM vol. 2, NEG: SF, ZF and PF are set according to the result; Unicorn sets them by the operand under LOCK",
        _locked_neg,
    ),
    Difference(
        "SMSW to a 32-bit register",
        'SDM vol. 2, SMSW: "SMSW r32: DEST := CR0[31:0]"; Unicorn writes 16 bits',
        _status_word,
    ),
    Difference(
        "ENTER whose operand size is not the stack's",
        'SDM vol. 2, ENTER: "IF OperandSize = 32 THEN EBP := FrameTemp"; Unicorn goes by the size of the stack',
        _frame_of_another_size,
    ),
    Difference(
        "a switch to a task with a 16-bit TSS",
        "SDM vol. 3, figure 8-10: segment selectors are 2 bytes apart; Unicorn reads them at multiples of 4",
        _task_of_16_bits,
    ),
    Difference(
        "CLFLUSH of an address without memory",
        "KVM's emulator (6.12, group15: SrcMem) reads a byte of the device; Unicorn does nothing",
        _flushed_device,
    ),
    Difference(
        "PUSH of a segment register with a 32-bit operand size",
        'SDM vol. 2, PUSH: "all recent Intel Core and Intel Atom processors perform a 16-bit move, leaving the upper'
        ' portion of the stack location unmodified"; Unicorn writes zeros',
        _pushed_selector,
    ),
    Difference(
        "SHLD, SHRD of 16 bits by more than 16",
        'SDM vol. 2, SHLD: "if the count operand is larger than the size of the operand, the result is undefined"',
        _double_shift_of_16,
    ),
)
