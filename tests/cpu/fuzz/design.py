"""Differences that are meant: what our CPU does otherwise than this host's, with the manual's words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .forms import Form, Operand, host_features
from .layout import CRASHED, FS, GS, RSP
from .undefined import ZF

FAULTS = (12, 13, 14, 17)  # of a memory operand: #SS, #GP, #PF, #AC
RETURNS = ("retf", "iret", "iretd", "iretq")


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
    return form.mnemonic == "call" and ours["vector"] == 13 and theirs["vector"] in (12, 14, 17)


def _misaligned_beyond_limit(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    aligned = form.is_image or any(operand.size == 16 for operand in form.operands)
    return aligned and ours["vector"] == 12 and theirs["vector"] == 13


def _repeated_loop(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    repeated = b"\xf3" in form.code[:-2] or b"\xf2" in form.code[:-2]
    return form.mnemonic in ("loop", "loope", "loopne") and repeated


def _fault_order(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    pieces = any(operand.size in (6, 10, 14, 28, 94, 108, 512) for operand in form.operands)
    pieces = pieces or form.is_image or form.mnemonic == "bound"
    return (pieces or form.mnemonic.startswith("cmps")) and theirs["vector"] in FAULTS and ours["vector"] in FAULTS


def _offset_not_canonical(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    def refused(operand: Operand) -> bool:
        offset = operand.displacement
        for register, scale in ((operand.base, 1), (operand.index, operand.scale)):
            offset += scale * int(before["gpr"][register]) if register >= 0 else 0
        return operand.segment in (FS, GS) and offset + (1 << 47) & (1 << 64) - 1 >= 1 << 48

    return form.bits == 64 and theirs["vector"] == 13 and any(map(refused, form.operands))


def _outer_stack_first(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic in RETURNS and ours["vector"] == 13 and theirs["vector"] in FAULTS


def _lock_as_cr8(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    moves = any(opcode in form.code for opcode in (b"\x0f\x20", b"\x0f\x22"))
    return moves and b"\xf0" in form.code and ours["vector"] == 6


def _pushed_selector(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name.startswith("push_") and form.bits != 64 and theirs["rip"] == ours["rip"]


def _locked_in_vain(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    refused = form.name in ("verr", "verw") or theirs["vector"] in FAULTS
    return b"\xf0" in form.code and ours["vector"] == 6 and refused


def _masked_store(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.mnemonic.lstrip("v").startswith("maskmov") and theirs["vector"] in FAULTS


def _alignment_of_16(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    aligned = form.is_image or any(operand.size >= 16 for operand in form.operands)
    return theirs["vector"] == 17 and ours["vector"] == 13 and aligned


def _wide_far_pointer(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.bits == 64 and form.is_far and any(0x48 <= byte < 0x50 for byte in form.code[:-2])


def _pushes_of_32_bits(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    faults = theirs["vector"] in FAULTS and ours["vector"] in FAULTS
    return (
        form.bits == 64
        and form.is_far
        and form.mnemonic == "call"
        and int(before["gpr"][RSP]) - 16 >> 32 != 0
        and faults
    )


def _misaligned_exceptions(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return (
        form.mnemonic.endswith(("ldmxcsr", "rstor", "rstor64"))
        and ours["vector"] == 13
        and int(theirs["mxcsr"]) >> 16 == 2
    )


def _permutation_without_w(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    at = form.code.find(b"\xc4")
    head = form.code[at : at + 4]
    return (
        at >= 0 and len(head) == 4 and head[1] & 31 == 3 and head[2] >> 7 == 0 and head[3] <= 1 and ours["vector"] == 6
    )


def _misaligned_sha(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    places = (operand.address(np.array([before]), form.bits)[0] for operand in form.operands)
    return form.mnemonic.startswith("sha") and ours["vector"] == 13 and any(int(place) & 15 for place in places)


def _no_way_back(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    return form.name.startswith("call_far") and form.bits != 64 and theirs["vector"] == CRASHED


def _base_of_57_bits(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    refused = form.mnemonic in ("wrfsbase", "wrgsbase") and theirs["vector"] == 13 and "la57" not in host_features()
    return refused and any(-1 << 56 <= int(value) < 1 << 56 for value in before["gpr"].view(np.int64))


def _host_descriptor(form: Form, before: np.void, theirs: np.void, ours: np.void) -> bool:
    looks = form.mnemonic in ("lar", "lsl", "verr", "verw") and int(theirs["flags"]) & ~int(ours["flags"]) & ZF
    named = any(int(selector) & 0xFFFC == 0x78 for selector in before["gpr"])
    loaded = any(int(selector) & 0xFFFC == 0x78 for selector in theirs["segment"])
    return loaded or (looks != 0 and (named or len(form.operands) > 0))


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
        "a misaligned 16-byte operand, or FPU image, that is no address in SS either",
        "SDM vol. 3, 6.9: faults of one instruction have no order among them: here #SS, on AMD #GP for the alignment",
        _misaligned_beyond_limit,
    ),
    Difference(
        "two operands that both fault, of CMPS, or two pieces of one, of far pointers, BOUND, x87 and FPU images",
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
        "RETF and IRET to a selector that is refused, and an outer stack that faults",
        'SDM vol. 2, RET and IRET: "IF return code segment selector RPL < CPL THEN #GP(selector)" and the other checks'
        " of CS come before SS and RSP are popped; AMD pops all that the RPL asks for, and looks at RIP first",
        _outer_stack_first,
    ),
    Difference(
        "WRFSBASE and WRGSBASE of an address of 57 bits, if the host has no 5-level paging",
        'SDM vol. 2: "#GP(0) if the source register contains a non-canonical address": a processor with 5-level paging'
        " takes 57 bits whatever CR4.LA57 says, and ours has it",
        _base_of_57_bits,
    ),
    Difference(
        "far CALL from code of 16 or 32 bits to 64-bit code, single-stepped, that this host does not come back from",
        "nothing to compare with: the process hangs, and is killed",
        _no_way_back,
    ),
    Difference(
        "LOCK MOV CR0, which is MOV CR8 on AMD's processors",
        "AMD APM vol. 3, MOV CRn: AltMovCr8 is CPUID Fn8000_0001_ECX[4], which ours does not have; without it #UD",
        _lock_as_cr8,
    ),
    Difference(
        "PUSH of a segment register with a 32-bit operand size",
        'SDM vol. 2, PUSH: "all recent Intel Core and Intel Atom processors perform a 16-bit move, leaving the upper'
        " portion of the stack location unmodified\"; so does KVM's emulator, AMD writes zeros",
        _pushed_selector,
    ),
    Difference(
        "LOCK with an instruction that cannot be locked, and a bad operand; LOCK VERR and VERW",
        'SDM vol. 2, LOCK: "an undefined opcode exception (#UD) will also be generated if the LOCK prefix is used with'
        " any instruction not in the above list\"; here before the operand is looked at, on AMD sometimes after; AMD's"
        " processors execute VERW with LOCK",
        _locked_in_vain,
    ),
    Difference(
        "MASKMOVQ, (V)MASKMOVDQU of bytes that partly cannot be written",
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
        "LSS, LFS, LGS, far CALL and JMP of a 64-bit offset",
        "SDM vol. 2, LDS, CALL, JMP: with REX.W the operand is m16:64; AMD's processors take m16:32 whatever REX.W says"
        " (APM vol. 3)",
        _wide_far_pointer,
    ),
    Difference(
        "far CALL from 64-bit code to code of 32 bits, with a stack beyond 4 GiB that faults",
        "SDM vol. 2, CALL: the return address is pushed before CS is loaded, at RSP; AMD cuts the address to 32 bits",
        _pushes_of_32_bits,
    ),
    Difference(
        "misaligned operands of the SHA instructions",
        'SDM vol. 2, exceptions type 4: "Legacy SSE: memory operand is not 16-byte aligned: #GP"; AMD takes them',
        _misaligned_sha,
    ),
    Difference(
        "LDMXCSR of MXCSR.MM",
        "AMD APM vol. 1, 4.2.2: the misaligned exception mask is there if CPUID Fn8000_0001_ECX[MisAlignSse] is set, as"
        " ours is not; SDM vol. 1, 10.2.3: bits 16 to 31 are reserved, a set one is #GP",
        _misaligned_exceptions,
    ),
    Difference(
        "VPERMQ and VPERMPD with an immediate, and VEX.W = 0",
        "SDM vol. 2: VEX.256.66.0F3A.W1 00, 01 and no other encoding, so #UD; AMD's processors ignore VEX.W",
        _permutation_without_w,
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
