"""What leaves the processor and is answered within this KVM: devices of ours, MSRs of the APIC.

Compiled into enter.py's group, where the client's exits are made of what is left (exits.py).
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.msr_index import MSR_IA32_TSC_DEADLINE
from kvmfs.irqchip.bus import group as bus
from kvmfs.irqchip.lapic import OURS
from kvmfs.irqchip.lapic import group as lapic
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.cpu.debug import group as debug_group
from kvmfs.jit.cpu.io import group as io_group
from kvmfs.jit.raw import call1, call3, call4, load64, lshr, store64, zext32

COMPLETE_PIO, RETIRE = io_group.slot("complete_pio"), debug_group.slot("retire")
PORT_READ, PORT_WRITE = bus.slot("bus_port_read"), bus.slot("bus_port_write")
MMIO_READ, MMIO_WRITE = bus.slot("bus_mmio_read"), bus.slot("bus_mmio_write")
APIC_RDMSR, APIC_WRMSR = lapic.slot("apic_rdmsr"), lapic.slot("apic_wrmsr")
FRAGMENT: Final = 24  # of MMIO: gpa, size, data


@compiled
def call(s, slot):
    return call1(load64(load64(s + S.FUNCTIONS) + 8 * slot), s)


@compiled
def device(s, slot, address, size, buffer):
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * slot), s, address, size, buffer)


@compiled
def port_access(s):
    """Port I/O with a device of ours: 1, or 0."""
    port, size, count = load64(s + S.PIO_PORT), load64(s + S.PIO_SIZE), load64(s + S.PIO_COUNT)
    slot = PORT_READ if load64(s + S.PIO_IN) else PORT_WRITE
    if device(s, slot, port, size, s + S.PIO_DATA) == 0:
        return 0
    for index in range(1, count):
        device(s, slot, port, size, s + S.PIO_DATA + index * size)
    return 1


@compiled
def mmio_read(s):
    """The same for a fragment of an MMIO read."""
    reads, gpa, size = load64(s + S.MMIO_READS), load64(s + S.MMIO_GPA), load64(s + S.MMIO_SIZE)
    fragment = s + S.MMIO_CACHE + FRAGMENT * reads
    store64(fragment + 16, 0)
    if device(s, MMIO_READ, gpa, size, fragment + 16) == 0:
        return 0
    store64(fragment, gpa)
    store64(fragment + 8, size)
    store64(s + S.MMIO_READS, reads + 1)
    store64(s + S.MMIO_STATE, S.IO_DONE)
    return 1


@compiled
def is_filtered(s, number):
    """An MSR filter never holds for x2APIC registers."""
    return 1 if number == MSR_IA32_TSC_DEADLINE and load64(s + S.MSR_EXITS) else 0


@compiled
def read_apic_msr(s):
    """1, or 0 when the MSR is not the APIC's, or refused: the client may want to hear of that."""
    number = load64(s + S.EXIT_ARGS)
    if is_filtered(s, number):
        return 0
    function = load64(load64(s + S.FUNCTIONS) + 8 * APIC_RDMSR)
    answer = call3(function, s, number, s + S.T0)
    if answer != OURS:
        return 0
    store64(s + S.RAX, zext32(load64(s + S.T0)))
    store64(s + S.RDX, lshr(load64(s + S.T0), 32))
    call(s, RETIRE)
    return 1


@compiled
def write_apic_msr(s):
    number = load64(s + S.EXIT_ARGS)
    if is_filtered(s, number):
        return 0
    function = load64(load64(s + S.FUNCTIONS) + 8 * APIC_WRMSR)
    answer = call3(function, s, number, load64(s + S.EXIT_ARGS + 8))
    if answer != OURS:
        return 0
    call(s, RETIRE)
    return 1
