"""The fault log: every access that left the fast path, a record each in the VM's inspection file.

Compiled: fault resolution calls log_access() as mmu.LOG. The ring is never full: the oldest records are overwritten,
and as records are numbered, who reads knows how many he missed. What a rule did (kvmfs.kvm.inject) goes to the trace as
well.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.mmu import layout as mmu
from kvmfs.jit.raw import atomic_add, atomic_xchg, load64, rdtsc, store64
from kvmfs.kvm import inspection, ring
from kvmfs.kvm.counting import count as add
from kvmfs.kvm.inspection import DELAYED, WENT_TO_MMIO, Fault, Header, Seen
from kvmfs.kvm.ring import Record, Ring
from kvmfs.kvm.stat_table import VCPU_STAT
from kvmfs.kvm.words import Cpu

group = Group("fault_log", __name__)

# numba wants plain globals
ID, RULE, ORDINAL, TO_LOG = Cpu.ID, Cpu.RULE, Cpu.ORDINAL, Cpu.TO_LOG
COUNT, FAULTS, MASK, SIZE = Header.FAULT_COUNT, inspection.FAULTS, inspection.FAULT_ROOM - 1, Fault.SIZE
F_COUNT, F_START, F_END, F_VCPU, F_LINEAR = Fault.COUNT, Fault.START, Fault.END, Fault.VCPU, Fault.LINEAR
F_GPA, F_ACCESS, F_SLOT, F_OUTCOME = Fault.GPA, Fault.ACCESS, Fault.SLOT, Fault.OUTCOME
F_RIP, F_RULE, F_ORDINAL, F_DETAIL = Fault.RIP, Fault.RULE, Fault.ORDINAL, Fault.DETAIL
TRACE = Seen.TRACE
TAKEN, FIXED, EMULATED = VCPU_STAT["pf_taken"], VCPU_STAT["pf_fixed"], VCPU_STAT["pf_emulate"]
HEAD, TAIL, READER, LOST, RECORDS = Ring.HEAD, Ring.TAIL, Ring.READER, Ring.LOST, Ring.RECORDS
SLOT, SLOTS, RING_MASK, INJECTION = ring.SLOT, ring.SLOTS, ring.MASK, ring.INJECTION
R_KIND, R_LENGTH, R_START, R_END, R_WHO = Record.KIND, Record.LENGTH, Record.START, Record.END, Record.WHO
R_RESULT, R_CMD, R_ARG, R_DATA = Record.RESULT, Record.CMD, Record.ARG, Record.DATA
FIRST_FAULT, LAST_FAULT = mmu.FAULT_DISAGREES, mmu.FAULT_POISONED


@compiled
def place(vm, count):
    """Where record `count`, counted from 0, lies."""
    return vm + FAULTS + SIZE * (count & MASK)


@compiled
def count_fault(s, outcome):
    """As kvm_mmu_do_page_fault does, by what came of it."""
    if outcome == DELAYED:
        return
    add(s, TAKEN)
    if outcome == mmu.HAD_PAGE:
        add(s, FIXED)
    elif outcome == mmu.WENT_REMOTE or outcome == WENT_TO_MMIO:
        add(s, EMULATED)


@group.add
def log_access(s, gpa, access, outcome):
    """mmu.LOG: LOG_SINCE, LOG_SLOT, XLAT_LINEAR, and the rule that did it if one did, are in the vCPU block."""
    vm, rule, ordinal, now = load64(s + S.VM), load64(s + RULE), load64(s + ORDINAL), rdtsc()
    count = atomic_add(vm + COUNT, 1)
    fault = place(vm, count)
    store64(fault + F_START, load64(s + S.LOG_SINCE))
    store64(fault + F_END, now)
    store64(fault + F_VCPU, load64(s + ID))
    store64(fault + F_LINEAR, load64(s + S.XLAT_LINEAR))
    store64(fault + F_GPA, gpa)
    store64(fault + F_ACCESS, access)
    store64(fault + F_SLOT, load64(s + S.LOG_SLOT))
    store64(fault + F_OUTCOME, outcome)
    store64(fault + F_RIP, load64(s + S.RIP))
    store64(fault + F_RULE, rule)
    store64(fault + F_ORDINAL, ordinal)
    store64(fault + F_DETAIL, 0)
    atomic_xchg(fault + F_COUNT, count + 1)
    count_fault(s, outcome)
    if rule != 0 or (outcome >= FIRST_FAULT and outcome <= LAST_FAULT):
        store64(s + TO_LOG, 1)
    if rule != 0:
        store64(s + RULE, 0)
        if load64(s + TRACE) != 0:
            trace_injection(s, fault)
    return 0


@group.add
def log_reserve(vm):
    """A record for Python to write: its number, counted from 0."""
    return atomic_add(vm + COUNT, 1)


@compiled
def trace_injection(s, fault):
    """The same for who traces. Without waiting for the reader: translations may be held here."""
    at = load64(s + TRACE)
    slot = atomic_add(at + HEAD, 1)
    if load64(at + READER) != 0 and slot + 1 - load64(at + TAIL) > SLOTS:
        atomic_add(at + LOST, 1)
    record = at + RECORDS + SLOT * (slot & RING_MASK)
    store64(record + R_KIND, INJECTION)
    store64(record + R_LENGTH, 5 * 8)
    store64(record + R_START, load64(fault + F_START))
    store64(record + R_END, load64(fault + F_END))
    store64(record + R_WHO, load64(s + ID))
    store64(record + R_RESULT, 0)
    store64(record + R_CMD, load64(fault + F_OUTCOME))
    store64(record + R_ARG, load64(fault + F_GPA))
    store64(record + R_DATA, load64(fault + F_RULE))
    store64(record + R_DATA + 8, load64(fault + F_ORDINAL))
    store64(record + R_DATA + 16, load64(fault + F_LINEAR))
    store64(record + R_DATA + 24, load64(fault + F_ACCESS))
    store64(record + R_DATA + 32, load64(fault + F_RIP))
    atomic_xchg(record, slot + 1)
