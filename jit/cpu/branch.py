"""Near branches, calls and returns. Each ends its block.

    j{0..15}                      to rip_next + IMM when the condition holds
    jmp                           to rip_next + IMM
    jmp_ind                       to the address at src
    loop loope loopne jrcxz       to rip_next + IMM by the count register of ASIZE
    call_rel call_ind ret ret_imm the same with the return address pushed or popped; IMM: bytes to release

OSIZE is the branch's operand size, 8 in 64-bit mode: a smaller one cuts the target to 2 or 4 bytes. A target that is
not canonical, or beyond the limit of CS, is #GP(0) at the branch, which has then changed nothing.
"""

from .. import state as S
from ..build import Group, compiled
from ..raw import load8, load64, store16, store64, ult
from .access import noncanonical, pop_value, push_value, set_rsp, truncate
from .conditions import CONDITIONS
from .flags import zf
from .operand import fault, leave_next, leave_to, rip_next, src
from .record import ASIZE, IMM, OSIZE

group = Group("branch", __name__)


@compiled
def cut(r, target):
    """A branch target at the operand size."""
    return truncate(target, load8(r + OSIZE))


@compiled
def relative(s, r):
    return cut(r, rip_next(s, r) + load64(r + IMM))


@compiled
def forbidden(s, target):
    """Whether a near branch may not go there."""
    if load64(s + S.HFLAGS) & S.MODE_CODE64 != 0:
        return noncanonical(s, target, 1)
    return ult(load64(s + S.CS + S.LIMIT), target)


@compiled
def branch(s, r, target):
    if forbidden(s, target) != 0:
        return fault(s, r, S.GP, 0, 1)
    return leave_to(s, target)


def _jcc(holds):
    def handler(s, r):
        if holds(s) != 0:
            return branch(s, r, relative(s, r))
        return leave_next(s, r)

    return handler


@group.add
def jmp(s, r):
    return branch(s, r, relative(s, r))


@group.add
def jmp_ind(s, r):
    return branch(s, r, cut(r, load64(src(r))))


# LOOP: ZF must be as the variant says; JRCXZ is a variant that branches on the count being 0 and does not count.
ANY, EQUAL, NOT_EQUAL = 0, 1, 2


def _loop(variant):
    def handler(s, r):
        asize = load8(r + ASIZE)
        left = truncate(load64(s + S.RCX) - 1, asize)
        taken = left != 0
        if variant == EQUAL:
            taken = taken and zf(s) == 1
        elif variant == NOT_EQUAL:
            taken = taken and zf(s) == 0
        target = relative(s, r) if taken else rip_next(s, r)
        if taken and forbidden(s, target) != 0:
            return fault(s, r, S.GP, 0, 1)
        if asize == 2:
            store16(s + S.RCX, left)
        else:
            store64(s + S.RCX, left)
        return leave_to(s, target)

    return handler


@group.add
def jrcxz(s, r):
    if truncate(load64(s + S.RCX), load8(r + ASIZE)) == 0:
        return branch(s, r, relative(s, r))
    return leave_next(s, r)


def _call(indirect):
    def handler(s, r):
        target = cut(r, load64(src(r))) if indirect else relative(s, r)
        if forbidden(s, target) != 0:
            return fault(s, r, S.GP, 0, 1)
        if push_value(s, r, rip_next(s, r), load8(r + OSIZE)) == 0:
            return 0
        return leave_to(s, target)

    return handler


def _ret(releases):
    def handler(s, r):
        before = load64(s + S.RSP)
        if pop_value(s, r, load8(r + OSIZE)) == 0:
            return 0
        target = load64(s + S.T3)
        if forbidden(s, target) != 0:
            store64(s + S.RSP, before)
            return fault(s, r, S.GP, 0, 1)
        if releases:
            set_rsp(s, load64(s + S.RSP) + load64(r + IMM))
        return leave_to(s, target)

    return handler


for _code, _holds in enumerate(CONDITIONS):
    group.add(_jcc(_holds), f"j{_code}")
for _name, _variant in (("loop", ANY), ("loope", EQUAL), ("loopne", NOT_EQUAL)):
    group.add(_loop(_variant), _name)
group.add(_call(indirect=False), "call_rel")
group.add(_call(indirect=True), "call_ind")
group.add(_ret(releases=False), "ret")
group.add(_ret(releases=True), "ret_imm")
