"""State of interrupt controllers, timers and buses, shared with compiled code: byte offsets from a block's start.

An APIC block belongs to a vCPU, which has its address in words.Cpu.APIC. Its first KiB are the registers, at the
offsets of the xAPIC page: what KVM_GET_LAPIC shows. IRR and TMR bits are set by any thread, atomically; all else there
is the vCPU's own.

A board block belongs to a VM (words.Vm.BOARD): everything between the vCPUs. What a pin, a route or a message changes
is under LOCK, a spin lock that nobody holds across a blocking system call.
"""

from __future__ import annotations

from typing import Final

from kvmfs.abi.apic import KVM_APIC_REG_SIZE
from kvmfs.abi.irqchip import KVM_IOAPIC_NUM_PINS, KVM_NR_IRQCHIPS
from kvmfs.jit.layout import Layout


class Apic:
    """Of one vCPU."""

    _l = Layout()
    REGS = _l.bytes(KVM_APIC_REG_SIZE)
    VCPU = _l.u64()  # address of the vCPU block
    BOARD = _l.u64()
    ID = _l.u64()  # vcpu_id, which is the x2APIC ID
    LVT_COUNT = _l.u64()  # 6, or 7 with LVTCMCI
    TIMER_MODES = _l.u64()  # LVTT bits that the guest's CPUID allows
    TIMER_MODE = _l.u64()  # those in force
    DIVIDER = _l.u64()
    PERIOD = _l.u64()  # ns
    TARGET = _l.u64()  # when the count gets to 0, ns of CLOCK_MONOTONIC
    DEADLINE = _l.bytes(8, align=64)  # when the armed timer fires, 0: it is not; taken by compare-and-swap
    SLEEPS = _l.u64()  # 1: the vCPU waits, and its thread wakes for its timer by itself
    TSC_DEADLINE = _l.u64()
    SIPI_VECTOR = _l.u64()
    HANDLED = _l.u64(4)  # vectors whose EOI matters to the I/O APIC or to its stand-in in the client
    SCANNED = _l.u64()  # the board's SCAN when HANDLED was computed
    RTC_VECTOR = _l.u64()  # vector + 1 of an RTC interrupt whose EOI is awaited
    PV_EOI = _l.u64()  # MSR_KVM_PV_EOI_EN
    PV_EOI_PENDING = _l.u64()  # the guest may EOI by clearing the bit in its memory
    VAPIC = _l.u64()  # KVM_SET_VAPIC_ADDR
    SIZE = _l.size


class Board:
    """Of one VM. It is there without interrupt controllers, too: ioeventfds need it."""

    _l = Layout()
    VM = _l.u64()  # address of the VM block
    FUNCTIONS = _l.u64()  # address of the function table
    LOCK = _l.bytes(8, align=64)
    EPOCH = _l.bytes(8, align=64)  # of readers of tables that are replaced as a whole
    READERS = _l.u64(2)

    # Timers: one timerfd for all, armed for the earliest
    TIMER_LOCK = _l.bytes(8, align=64)
    TIMER_FD = _l.u64()
    TIMER_NEXT = _l.u64()  # what it is armed for, ns; NEVER: it is not
    TIMER_SPEC = _l.u64(4)  # struct itimerspec
    EPOLL_FD = _l.u64()
    STOP = _l.u64()  # the board's thread is to end
    EPOLL_EVENTS = _l.bytes(12 * 64 + 16)  # and an iovec
    SCRATCH = _l.u64(2)  # of the board's thread

    BUS_CYCLE_NS = _l.u64()
    X2APIC_FORMAT = _l.u64()  # KVM_X2APIC_API_USE_32BIT_IDS
    BROADCAST_QUIRK_OFF = _l.u64()
    SPLIT_PINS = _l.u64()  # GSIs that the client's I/O APIC reserves
    IDS_CHANGED = _l.u64()  # an xAPIC ID is not its vCPU's id, so that one ID may mean several
    BY_ID = _l.u64()  # address of a table of vCPU blocks by vcpu_id
    SCAN = _l.u64()  # changes whenever HANDLED of an APIC may have
    ON_EOI = _l.u64()  # int64 f(apic, vector, level): whoever has to know of EOIs, or 0
    ON_SCAN = _l.u64()  # int64 f(apic): compute HANDLED

    ROUTES = _l.u64()  # address of the GSI routing table
    IOEVENTS = _l.u64()  # address of the ioeventfd table
    IRQFDS = _l.u64()  # address of IRQFD_COUNT irqfd records
    RESAMPLERS = _l.u64()  # address of the resampler table

    # Two i8259s, PIC_SIZE bytes apart, as struct kvm_pic_state; what they want of the processor
    PICS = _l.bytes(32)
    PIC_OUTPUT = _l.u64()
    PIC_WAKE = _l.u64()  # the output rose
    PIC_STATES = _l.u64(16)  # a bit an interrupt source: the levels of each pin

    # The I/O APIC, as struct kvm_ioapic_state
    IOAPIC = _l.bytes(24 + 8 * KVM_IOAPIC_NUM_PINS)
    IOAPIC_DELIVERED = _l.u64()  # irr_delivered
    IOAPIC_STATES = _l.u64(KVM_IOAPIC_NUM_PINS)
    IOAPIC_EOIS = _l.u64(KVM_IOAPIC_NUM_PINS)
    IOAPIC_RETRY = _l.u64()  # when level interrupts of a storm are delivered again, ns; 0: none
    RTC_PENDING = _l.u64()  # EOIs awaited

    # The i8254
    PIT = _l.u64()  # 1: there is one
    SPEAKER = _l.u64()  # 1: port 61 is ours
    PIT_CHANNELS = _l.bytes(3 * 24)  # as struct kvm_pit_channel_state
    PIT_FLAGS = _l.u64()
    PIT_PERIOD = _l.u64()  # ns, of channel 0
    PIT_PERIODIC = _l.u64()
    PIT_DEADLINE = _l.u64()  # when channel 0 fires, 0: it does not
    PIT_EXPIRES = _l.u64()  # when it fires, or would have
    PIT_REINJECT = _l.u64()
    PIT_PENDING = _l.u64()
    PIT_ACKED = _l.u64()
    SIZE = _l.size


NEVER: Final = (1 << 63) - 1

# The source of a level: a pin is up while one of them holds it up
SOURCE_USERSPACE: Final = 0
SOURCE_RESAMPLE: Final = 1
SOURCE_PIT: Final = 2

# Routing table: how many GSIs it has; for each pin of the three chips its GSI plus one; for each GSI its first record's
# index plus one; then records
ROUTE_GSIS: Final = 0
ROUTE_CHIPS: Final = 16
ROUTE_CHIP_PINS: Final = KVM_IOAPIC_NUM_PINS
ROUTE_FIRST: Final = ROUTE_CHIPS + 8 * KVM_NR_IRQCHIPS * ROUTE_CHIP_PINS


class Route:
    """What a GSI leads to."""

    _l = Layout()
    TYPE = _l.u64()  # KVM_IRQ_ROUTING_*
    CHIP = _l.u64()  # or the message's address
    PIN = _l.u64()  # of both PICs: 0 to 15; or the message's data
    GSI = _l.u64()
    NEXT = _l.u64()  # index plus one of the GSI's next record
    SIZE = _l.bytes(0)


class Ioevent:
    """An ioeventfd; the table begins with a word that counts them."""

    _l = Layout()
    PORT = _l.u64()  # 1: a port, 0: a guest-physical address
    ADDRESS = _l.u64()
    LENGTH = _l.u64()  # 0: any
    MATCHES = _l.u64()  # 1: only DATA
    DATA = _l.u64()
    FD = _l.u64()
    SIZE = _l.bytes(0)


class Irqfd:
    """An eventfd that raises a GSI. The board's thread reads it."""

    _l = Layout()
    FD = _l.u64()  # plus one; 0: the record is free
    GSI = _l.u64()
    RESAMPLES = _l.u64()  # 1: a level that an EOI ends
    SIZE = _l.bytes(0)


class Resampler:
    """An eventfd that is told of a GSI's EOI; the table begins with a word that counts them."""

    _l = Layout()
    GSI = _l.u64()
    FD = _l.u64()
    SIZE = _l.bytes(0)


IRQFD_COUNT: Final = 4096

EPOLL_TIMER: Final = 1 << 32  # what epoll says of the timer; of irqfds, their index
EPOLL_WAKE: Final = 2 << 32
