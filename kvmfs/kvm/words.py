"""kvmfs's own words in the blocks that it shares with compiled code: byte offsets from a block's start.

A vCPU block and a VM block (kvmfs.jit.state, kvmfs.jit.mmu.layout) leave room for their embedder; here is what stands
there. Only plain data: both sides of the fork and of the compiler import it.
"""

from typing import Final

from kvmfs.jit import state
from kvmfs.jit.layout import Layout
from kvmfs.jit.mmu import layout as mmu

SERVICE: Final = 1 << 32
"""What enter() returns instead of a result when Python has to look after the vCPU first (Vcpu.service())."""


class Cpu:
    """In a vCPU block."""

    _l = Layout()
    _at = state.EMBEDDER
    ID = _at + _l.u64()
    RUN = _at + _l.u64()  # address of our mapping of struct kvm_run, followed by the PIO page
    PHASE = _at + _l.u64()  # how far KVM_RUN has come, PHASE_* below
    RESULT = _at + _l.u64()  # of the KVM_RUN that is to end when it is entered next
    NEEDS = _at + _l.u64()  # why enter() returned SERVICE, NEEDS_* below
    WANTED = _at + _l.u64()  # immediate_exit was 0 when KVM_RUN began
    HAS_RUN = _at + _l.u64()  # the guest has been entered at least once
    LAPIC = _at + _l.u64()  # 1: the local APIC is ours
    MP_STATE = _at + _l.u64()  # KVM_MP_STATE_*
    COMPLETION = _at + _l.u64()  # what the next KVM_RUN has to finish first, COMPLETE_* below
    APIC_EVENTS = _at + _l.u64()  # INIT and SIPI that wait to be accepted, APIC_EVENT_* below
    TRIPLE_FAULT = _at + _l.u64()  # KVM_REQ_TRIPLE_FAULT
    HLT_IN_GUEST = _at + _l.u64()  # HLT waits here even if the client would do so (KVM_X86_DISABLE_EXITS_HLT)
    MMIO_DONE = _at + _l.u64()  # fragments of the MMIO write queue that have been reported
    EVENT_LOG = _at + _l.u64()  # 1: somebody reads the event log
    TO_LOG = _at + _l.u64()  # there is something for it
    CLOCK_DUE = _at + _l.u64()  # the guest's kvmclock page is to be written
    RING = _at + _l.u64()  # address of the dirty ring's entries, 0: none
    RING_MASK = _at + _l.u64()  # their number, a power of two, less one
    RING_SOFT = _at + _l.u64()  # so many used: the guest is not entered
    RING_STOP = _at + _l.u64()  # so many used: no page may be written that is not in the ring yet
    RING_DIRTY = _at + _l.u64()  # entries made, ever
    RING_RESET = _at + _l.u64()  # entries taken back, ever
    STATS = _at + _l.u64()  # address of the statistics (stat_table.py)
    APIC = _at + _l.u64()  # address of the APIC block (irqchip.words.Apic), 0: the APIC is the client's
    WAITING = _at + _l.u64()  # 1: asleep, or about to be, on REQUEST
    NMI_QUEUED = _at + _l.u64()  # NMIs from other threads
    UNHALTED = _at + _l.u64()  # KVM_HC_KICK_CPU came
    EXTERNAL = _at + _l.u64()  # vector + 1 of KVM_INTERRUPT with a split irqchip
    IOAPIC_EOI = _at + _l.u64()  # vector + 1 of an EOI to report
    TSC_KHZ = _at + _l.u64()
    PV_FEATURES = _at + _l.u64()  # CPUID 0x40000001 EAX as the guest has it
    THREAD = _at + _l.u64()  # the thread that is in KVM_RUN, or was
    CALLER = _at + _l.u64()  # the client's thread in it
    STEAL = _at + _l.u64()  # MSR_KVM_STEAL_TIME
    STEAL_DUE = _at + _l.u64()  # the guest's struct kvm_steal_time is to be written
    STEAL_LAST = _at + _l.u64()  # time stamp of when it was written last
    CALLER_ACCOUNT = _at + _l.u64()  # address of an account (accounts.py), of CALLER if it says so; 0: none
    CALLER_DELAY = _at + _l.u64()  # how long that thread had waited then, ns
    BUS_ERROR = _at + _l.u64()  # an address of ours where memory of the client was gone (bus_error.py), 0: none
    RULE, ORDINAL = _at + _l.u64(), _at + _l.u64()  # what befalls the access is this rule's doing; 0: no rule's
    assert _l.size <= 512


class Vm:
    """In a VM block."""

    _l = Layout()
    _at = mmu.EMBEDDER
    VCPUS = _at + _l.u64()  # address of a table of vCPU block addresses
    VCPU_COUNT = _at + _l.u64()
    IRQCHIP = _at + _l.u64()  # IRQCHIP_* below
    DISABLED_QUIRKS = _at + _l.u64()
    EXCEPTION_PAYLOAD = _at + _l.u64()
    TRIPLE_FAULT_EVENT = _at + _l.u64()
    EXIT_ON_EMULATION_ERROR = _at + _l.u64()
    MAPS_FD = _at + _l.u64()  # the client's /proc/PID/maps plus one, 0: none
    WATCHES = _at + _l.u64()  # address of what is looked at in the client's mappings (client_watch.Watches)
    COALESCED = _at + _l.u64()  # address of the zones of coalesced MMIO (coalesced_ring.Zones)
    BOARD = _at + _l.u64()  # address of irqchip.words.Board
    ACCOUNTS = _at + _l.u64()  # address of accounts.Table
    RULES = _at + _l.u64()  # address of what is to befall memory accesses (inject.access.Table), with mmu.INJECT set
    assert _l.size <= 256


APIC_EVENT_INIT: Final = 1
APIC_EVENT_SIPI: Final = 2

# PHASE: enter() goes on here
PHASE_START: Final = 0
PHASE_SYNCED: Final = 1  # registers have been taken from the run page
PHASE_RUNNING: Final = 2
PHASE_ENDING: Final = 3  # with RESULT
PHASE_LOGGED: Final = 4  # the memory fault is in the event log
PHASE_STORED: Final = 5  # registers have been put into the run page

# NEEDS
NEEDS_SYNC_IN: Final = 1  # kvm_dirty_regs
NEEDS_SYNC_OUT: Final = 2  # kvm_valid_regs
NEEDS_RDMSR: Final = 3  # EXIT_ARGS: index
NEEDS_WRMSR: Final = 4  # EXIT_ARGS: index, value
NEEDS_HYPERCALL: Final = 5
NEEDS_EVENT_LOG: Final = 6  # TO_LOG
NEEDS_APIC_EVENTS: Final = 7
NEEDS_CLOCK: Final = 8
NEEDS_NEW_MAPPINGS: Final = 9  # the client has mapped something else where a memslot's memory was
NEEDS_REPAIR: Final = 10  # BUS_ERROR
NEEDS_ACCOUNTS: Final = 11  # of the threads in KVM_RUN
NEEDS_POISON: Final = 12  # FAULT_GPA is poisoned: the client's thread gets SIGBUS

# COMPLETION
COMPLETE_NONE: Final = 0
COMPLETE_PIO: Final = 1
COMPLETE_MMIO_READ: Final = 2
COMPLETE_MMIO_WRITE: Final = 3
COMPLETE_HYPERCALL: Final = 4
COMPLETE_RDMSR: Final = 5
COMPLETE_WRMSR: Final = 6

IRQCHIP_NONE: Final = 0
IRQCHIP_KERNEL: Final = 1
IRQCHIP_SPLIT: Final = 2
