"""Differences that are meant: what our CPU does otherwise than this host's, with the manual's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .forms import Form, Operand
from .layout import FS, GS

FAULTS = (12, 13, 14, 17)  # of a memory operand: #SS, #GP, #PF, #AC


@dataclass(frozen=True)
class Difference:
    """A rule: `covers` tells from form, state before, theirs and ours whether a case is one of these."""

    name: str
    reason: str
    covers: Callable[[Form, np.void, np.void, np.void], bool]


def _near_branch_66(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    relative = form.mnemonic.startswith(("j", "call", "ret", "loop"))
    return form.bits == 64 and relative and b"\x66" in form.code[:-1]


def _branch_before_push(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic == "call" and ours["vector"] == 13 and theirs["vector"] in (12, 14)


def _misaligned_beyond_limit(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return any(operand.size == 16 for operand in form.operands) and ours["vector"] == 12 and theirs["vector"] == 13


def _repeated_loop(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    repeated = b"\xf3" in form.code[:-2] or b"\xf2" in form.code[:-2]
    return form.mnemonic in ("loop", "loope", "loopne") and repeated


def _fault_order(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    pieces = any(operand.size in (6, 10, 14, 28, 94, 108, 512) for operand in form.operands)
    return (pieces or form.mnemonic.startswith("cmps")) and theirs["vector"] in FAULTS and ours["vector"] in FAULTS


def _offset_not_canonical(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    def refused(operand: Operand) -> bool:
        offset = operand.displacement
        for register, scale in ((operand.base, 1), (operand.index, operand.scale)):
            offset += scale * int(before["gpr"][register]) if register >= 0 else 0
        return operand.segment in (FS, GS) and offset + (1 << 47) & (1 << 64) - 1 >= 1 << 48

    return form.bits == 64 and theirs["vector"] == 13 and any(map(refused, form.operands))


def _lock_as_cr8(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    moves = any(opcode in form.code for opcode in (b"\x0f\x20", b"\x0f\x22"))
    return moves and b"\xf0" in form.code and ours["vector"] == 6


def _flags_at_overflow(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    unmasked = int(theirs["mxcsr"]) & 0x18 & ~(int(before["mxcsr"]) >> 7)
    return unmasked != 0 and int(theirs["mxcsr"]) | 0x20 == int(ours["mxcsr"]) and ours["vector"] == theirs["vector"]


def _pushed_selector(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name.startswith("push_") and form.bits != 64 and theirs["rip"] == ours["rip"]


def _locked_in_vain(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return b"\xf0" in form.code and ours["vector"] == 6 and theirs["vector"] in FAULTS


def _masked_store(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic.lstrip("v").startswith("maskmov") and theirs["vector"] in FAULTS


def _alignment_of_16(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return theirs["vector"] == 17 and ours["vector"] == 13 and any(o.size >= 16 for o in form.operands)


def _wide_far_pointer(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return (
        form.bits == 64 and form.mnemonic in ("lss", "lfs", "lgs") and any(48 <= byte < 80 for byte in form.code[:-2])
    )


def _misaligned_sha(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic.startswith("sha") and ours["vector"] == 13


def _host_descriptor(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return any(int(selector) > 0x33 and not int(selector) & 4 for selector in theirs["segment"])


DIFFERENCES = (
    Difference(
        "near branches with prefix 66 in 64-bit mode",
        'SDM vol. 2, JMP: "in 64-bit mode, the target operand\'s size is fixed at 64 bits"; AMD cuts RIP to 16 bits',
        _near_branch_66,
    ),
    Difference(
        "CALL to where there can be no code, with a stack that faults",
        'SDM vol. 2, CALL: "IF tempRIP is not canonical" (or not within the limit) "THEN #GP(0)" comes before the push;'
        " AMD pushes first",
        _branch_before_push,
    ),
    Difference(
        "a misaligned 16-byte operand that is no address in SS either",
        "SDM vol. 3, 6.9: faults of one instruction have no order among them: here #SS, on AMD #GP for the alignment",
        _misaligned_beyond_limit,
    ),
    Difference(
        "two operands that both fault, of CMPS, or two pieces of a long one, of far pointers, x87 and FXRSTOR",
        "SDM vol. 3, 6.9: faults of one instruction have no order; here by address and rSI first,"
        " on AMD rDI first, and the end",
        _fault_order,
    ),
    Difference(
        "an address in FS or GS whose offset is not canonical, but with the base is",
        'SDM vol. 1, 3.3.7.1: "the linear address" has to be canonical; AMD refuses such an offset too',
        _offset_not_canonical,
    ),
    Difference(
        "LOCK MOV CR0, which is MOV CR8 on AMD's processors",
        "AMD APM vol. 3, MOV CRn: AltMovCr8 is CPUID Fn8000_0001_ECX[4], which ours does not have; without it #UD",
        _lock_as_cr8,
    ),
    Difference(
        "PE beside an overflow or underflow that is not masked",
        "SDM vol. 1, 4.9.1.6: PE tells whether the result is exact: with its exponent in range, on AMD; here PE is"
        " set with all of them",
        _flags_at_overflow,
    ),
    Difference(
        "PUSH of a segment register with a 32-bit operand size",
        'SDM vol. 2, PUSH: "all recent Intel Core and Intel Atom processors perform a 16-bit move, leaving the upper'
        " portion of the stack location unmodified\"; so does KVM's emulator, AMD writes zeros",
        _pushed_selector,
    ),
    Difference(
        "LOCK with an instruction that cannot be locked, and a bad operand",
        "SDM vol. 2, LOCK: #UD; here before the operand is looked at, on AMD sometimes after",
        _locked_in_vain,
    ),
    Difference(
        "MASKMOVQ, MASKMOVDQU of bytes that partly cannot be written",
        'SDM vol. 2, MASKMOVDQU: "behavior with a mask of all 0s" and the order of the bytes are implementation'
        " specific: here those of the mask, one after another, on AMD all bytes are checked",
        _masked_store,
    ),
    Difference(
        "a misaligned image of FXRSTOR under alignment checks",
        'SDM vol. 2, FXRSTOR: "#AC may be raised instead of #GP, implementation specific"',
        _alignment_of_16,
    ),
    Difference(
        "LSS, LFS and LGS of a 64-bit offset",
        "SDM vol. 2, LDS: REX.W loads m16:64; AMD's processors load m16:32 whatever REX.W says (APM vol. 3)",
        _wide_far_pointer,
    ),
    Difference(
        "misaligned operands of the SHA instructions",
        'SDM vol. 2, exceptions type 4: "Legacy SSE: memory operand is not 16-byte aligned: #GP"; AMD takes them',
        _misaligned_sha,
    ),
    Difference(
        "selectors of the host's own GDT",
        "Linux has a per-CPU segment at 78; our GDT has Linux's user segments only",
        _host_descriptor,
    ),
    Difference(
        "LOOPcc with a repeat prefix",
        'SDM vol. 2, REP: "use of repeat prefixes with other instructions is reserved"; AMD takes ZF otherwise then',
        _repeated_loop,
    ),
)
