"""Coalesced MMIO and port writes, compiled (virt/kvm/coalesced_mmio.c).

A write into a registered zone goes into the ring, which is a page that the client maps, and does not leave for the
client until the ring is full. The client may write anything into that page: indices are checked, and nothing else is
read from it.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import errno
from typing import Final

from kvmfs.abi.memory import KVM_COALESCED_MMIO_MAX
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.layout import Layout
from kvmfs.jit.raw import cas64, fence, load32, load64, memcpy, pause, store32, store64, ule
from kvmfs.kvm.words import Vm

group = Group("coalesced", __name__)

NR_IOBUS_DEVS: Final = 1000  # include/linux/kvm_host.h: zones of each kind


class Zones:
    """A VM's zones, and the lock over them and the ring. The VM block has the address."""

    _l = Layout()
    LOCK = _l.u64()
    RING = _l.u64()  # address of our mapping of the ring's page, 0: not known yet
    COUNT = _l.u64()
    FIRST = _l.u64(3 * 2 * NR_IOBUS_DEVS)  # {address, size, is port I/O}
    SIZE = _l.size


COALESCED = Vm.COALESCED
LOCK, RING, COUNT, FIRST, ZONE = Zones.LOCK, Zones.RING, Zones.COUNT, Zones.FIRST, 24
ENOSPC = errno.ENOSPC

# struct kvm_coalesced_mmio_ring, struct kvm_coalesced_mmio
RING_FIRST, RING_LAST, ENTRIES = 0, 4, 8
ENTRY, GPA, LENGTH, PIO, DATA = 24, 0, 8, 12, 16
MAX = KVM_COALESCED_MMIO_MAX


@compiled
def lock(zones):
    while cas64(zones + LOCK, 0, 1) != 0:
        pause()


@compiled
def unlock(zones):
    fence()
    store64(zones + LOCK, 0)


@compiled
def within(zone, address, size):
    """coalesced_mmio_in_range."""
    start, end = load64(zone), load64(zone) + load64(zone + 8)
    return ule(address, address + size) and ule(start, address) and ule(address + size, end)


@compiled
def push(ring, address, size, data, pio):
    """Put a write into the ring: 1, or 0 when it is full, or the client has broken it."""
    last = load32(ring + RING_LAST)
    if last >= MAX:
        return 0
    following = (last + 1) % MAX
    if following == load32(ring + RING_FIRST):
        return 0
    entry = ring + ENTRIES + ENTRY * last
    store64(entry + GPA, address)
    store32(entry + LENGTH, size)
    store32(entry + PIO, pio)
    memcpy(entry + DATA, data, size)
    fence()
    store32(ring + RING_LAST, following)
    return 1


@compiled
def coalesce(s, address, size, data, pio):
    zones = load64(load64(s + S.VM) + COALESCED)
    if load64(zones + COUNT) == 0 or size > 8:
        return 0
    lock(zones)
    done, zone = 0, zones + FIRST
    for _ in range(load64(zones + COUNT)):
        if load64(zone + 16) == pio and within(zone, address, size):
            done = push(load64(zones + RING), address, size, data, pio)
            break
        zone += ZONE
    unlock(zones)
    return done


@group.add
def coalesce_mmio(s, address, size, data):
    """An MMIO write of at most 8 bytes: 1 when the ring has it, 0: it is the client's."""
    return coalesce(s, address, size, data, 0)


@group.add
def coalesce_port(s, port, size, data):
    """The same for a write to a port."""
    return coalesce(s, port, size, data, 1)


@group.add
def add_zone(zones, address, size, pio):
    """Register a zone: 0, or -ENOSPC."""
    lock(zones)
    count, same = load64(zones + COUNT), 0
    for index in range(count):
        if load64(zones + FIRST + ZONE * index + 16) == pio:
            same += 1
    if same < NR_IOBUS_DEVS:
        zone = zones + FIRST + ZONE * count
        store64(zone, address)
        store64(zone + 8, size)
        store64(zone + 16, pio)
        store64(zones + COUNT, count + 1)
    unlock(zones)
    return 0 if same < NR_IOBUS_DEVS else -ENOSPC


@group.add
def remove_zones(zones, address, size, pio):
    """Unregister the zones that hold all of [address, address + size)."""
    lock(zones)
    kept = 0
    for index in range(load64(zones + COUNT)):
        zone = zones + FIRST + ZONE * index
        if load64(zone + 16) != pio or not within(zone, address, size):
            memcpy(zones + FIRST + ZONE * kept, zone, ZONE)
            kept += 1
    store64(zones + COUNT, kept)
    unlock(zones)
    return 0
