"""Rules about memory accesses: compiled, and asked by fault resolution as mmu.INJECT.

Pages that a rule may still fire at stay out of the TLBs, so each access to them comes here; all others are as fast as
ever. Without rules mmu.INJECT is 0, and fault resolution does not even call.

What counts as an access is what the MMU sees: a load or a store of an instruction (two when it crosses pages), an entry
of the guest's page tables that a walk reads or marks, and the fetch of a block of instructions.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import errno

from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.mmu import layout as mmu
from kvmfs.jit.mmu.tlb import enter_guest, leave_guest
from kvmfs.jit.raw import atomic_add, atomic_and, call4, load64, lshr, rdtsc, s64, store64, syscall, udiv, ult, urem
from kvmfs.kvm.client_memory import stack_space
from kvmfs.kvm.counting import nanoseconds
from kvmfs.kvm.inject import when
from kvmfs.kvm.inject.records import DELAY as DELAYS
from kvmfs.kvm.inject.records import PRIVATE, SHARED, Rule, Table
from kvmfs.kvm.inspection import DELAYED as OUTCOME_DELAYED
from kvmfs.kvm.inspection import Header
from kvmfs.kvm.words import Cpu, Vm

group = Group("inject", __name__)


SYS_FUTEX, FUTEX_WAIT_PRIVATE = 202, 128
ETIMEDOUT = errno.ETIMEDOUT
TSC_KHZ = Header.TSC_KHZ
RULES, ID, RULE, ORDINAL = Vm.RULES, Cpu.ID, Cpu.RULE, Cpu.ORDINAL
R_MATCHED, R_FIRED, R_NUMBER, R_WHAT, R_RANGES = Rule.MATCHED, Rule.FIRED, Rule.NUMBER, Rule.WHAT, Rule.RANGES
R_RANGE_COUNT, R_VCPUS, R_ACCESSES, R_KINDS = Rule.RANGE_COUNT, Rule.VCPUS, Rule.ACCESSES, Rule.KINDS
R_AFTER, R_EVERY, R_TIMES, R_CHANCE, R_SEED = Rule.AFTER, Rule.EVERY, Rule.TIMES, Rule.CHANCE, Rule.SEED
R_DELAY, T_COUNT, T_RULES = Rule.DELAY, Table.COUNT, Table.RULES
GOLDEN, FIRST_FACTOR, SECOND_FACTOR = s64(when.GOLDEN), s64(when.FIRST_FACTOR), s64(when.SECOND_FACTOR)
NS = 1_000_000_000

timespec = stack_space(16)


@compiled
def draw(seed, ordinal):
    """when.draw."""
    word = seed + ordinal * GOLDEN
    word = (word ^ lshr(word, 30)) * FIRST_FACTOR
    word = (word ^ lshr(word, 27)) * SECOND_FACTOR
    return lshr(word ^ lshr(word, 31), 11)


@compiled
def fires(rule, ordinal):
    """When.fires."""
    counted = ordinal - load64(rule + R_AFTER)
    if counted <= 0 or urem(counted, load64(rule + R_EVERY)) != 0:
        return 0
    return 1 if draw(load64(rule + R_SEED), ordinal) < load64(rule + R_CHANCE) else 0


@group.add
def rule_fires(rule, ordinal):
    """The same for tests."""
    return fires(rule, ordinal)


@compiled
def is_spent(rule):
    times = load64(rule + R_TIMES)
    return 1 if times != 0 and load64(rule + R_FIRED) >= times else 0


@compiled
def is_in_range(rule, gfn):
    ranges, count = load64(rule + R_RANGES), load64(rule + R_RANGE_COUNT)
    for index in range(count):
        first = load64(ranges + 16 * index)
        if ult(gfn - first, load64(ranges + 16 * index + 8) - first):
            return 1
    return 1 if count == 0 else 0


@compiled
def applies(s, rule, gfn, access):
    """Whether this is an access that the rule is about."""
    kind = PRIVATE if access & mmu.ATTRIBUTE_PRIVATE else SHARED
    if load64(rule + R_KINDS) & kind == 0 or lshr(load64(rule + R_ACCESSES), access & 3) & 1 == 0:
        return 0
    vcpus, number = load64(rule + R_VCPUS), load64(s + ID)
    if vcpus != 0 and lshr(load64(vcpus + ((number >> 6) << 3)), number & 63) & 1 == 0:
        return 0
    return is_in_range(rule, gfn)


@compiled
def fire(rule, ordinal):
    """Whether the rule fires now; counted."""
    if fires(rule, ordinal) == 0:
        return 0
    fired = atomic_add(rule + R_FIRED, 1)
    times = load64(rule + R_TIMES)
    if times != 0 and fired >= times:  # another vCPU had the last one
        atomic_add(rule + R_FIRED, -1)
        return 0
    return 1


@compiled
def wait(s, time):
    """Sleep for `time` ns out of the guest: INJECT_NOTHING, or what has to be done because of what came meanwhile."""
    leave_guest(s)
    khz = load64(load64(s + S.VM) + TSC_KHZ)
    end = rdtsc() + udiv(time * khz, 1_000_000)
    result, space = mmu.INJECT_NOTHING, timespec()
    while result == mmu.INJECT_NOTHING:
        requests, left = load64(s + S.REQUEST), end - rdtsc()
        if requests & S.REQ_STOP:
            atomic_and(s + S.REQUEST, ~S.REQ_STOP)
            result = mmu.INJECT_GIVE_UP
        elif left <= 0:
            break
        else:
            left = nanoseconds(s, left)
            store64(space, udiv(left, NS))
            store64(space + 8, urem(left, NS))
            syscall(SYS_FUTEX, s + S.REQUEST, FUTEX_WAIT_PRIVATE, requests, space, 0, 0)
    changed = enter_guest(s)
    return mmu.INJECT_RETRY if changed and result == mmu.INJECT_NOTHING else result


@compiled
def delay(s, rule, gpa, access):
    store64(s + S.LOG_SINCE, rdtsc())
    store64(s + S.LOG_SLOT, 0)
    result = wait(s, load64(rule + R_DELAY))
    call4(load64(load64(s + S.VM) + mmu.LOG), s, gpa, access, OUTCOME_DELAYED)
    return result


@group.add
def inject_access(s, gpa, access):
    """mmu.INJECT."""
    table, gfn = load64(load64(s + S.VM) + RULES), lshr(gpa, 12)
    what = mmu.INJECT_NOTHING
    for index in range(load64(table + T_COUNT)):
        rule = load64(table + T_RULES + 8 * index)
        if is_spent(rule) or applies(s, rule, gfn, access) == 0:
            continue
        what = mmu.INJECT_WATCH
        ordinal = atomic_add(rule + R_MATCHED, 1) + 1
        if fire(rule, ordinal):
            store64(s + RULE, load64(rule + R_NUMBER))
            store64(s + ORDINAL, ordinal)
            if load64(rule + R_WHAT) != DELAYS:
                return load64(rule + R_WHAT)
            went = delay(s, rule, gpa, access)
            if went != mmu.INJECT_NOTHING:
                return went
    return what
