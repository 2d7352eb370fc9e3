"""What a guest and its APIC share in guest memory: the task priority, and EOIs without an exit. In enter.py's group.

Both are put there before the guest is entered and fetched when it has left (kvm_lapic_sync_to_vapic and
kvm_lapic_sync_from_vapic). With PV EOI the guest gives an EOI by clearing a bit, where nobody has to know of it but the
APIC, and nothing else is requested.
"""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from kvmfs.abi import apic as A
from kvmfs.abi.para import KVM_MSR_ENABLED, KVM_PV_EOI_ENABLED
from kvmfs.irqchip.delivery import highest_vector
from kvmfs.irqchip.lapic import group as lapic
from kvmfs.irqchip.words import Apic
from kvmfs.jit import state as S
from kvmfs.jit.build import compiled
from kvmfs.jit.mmu.group import READ_PHYS, WRITE_PHYS
from kvmfs.jit.raw import call2, call4, load8, load32, load64, store8, store32, store64
from kvmfs.kvm.platform import call
from kvmfs.kvm.words import Cpu

APIC_SET_TPR, APIC_EOI, APIC_SCAN = lapic.slot("apic_set_tpr"), lapic.slot("apic_eoi"), lapic.slot("apic_scan")
APIC, VAPIC, PV_EOI, PV_EOI_PENDING = Cpu.APIC, Apic.VAPIC, Apic.PV_EOI, Apic.PV_EOI_PENDING
ENABLED, PENDING = KVM_MSR_ENABLED, KVM_PV_EOI_ENABLED


@compiled
def copy(s, slot, gpa, size):
    """Between guest memory and T0: 0 or -errno."""
    return call4(load64(load64(s + S.FUNCTIONS) + 8 * slot), s, gpa, size, s + S.T0)


@compiled
def offer_eoi(s, apic):
    """apic_sync_pv_eoi_to_guest: with one interrupt in service that no I/O APIC waits for, and none requested."""
    if highest_vector(apic + A.APIC_IRR) != -1 or call(s, APIC_SCAN) != 0:
        return
    store8(s + S.T0, PENDING)
    if copy(s, WRITE_PHYS, load64(apic + PV_EOI) & ~ENABLED, 1) == 0:
        store64(apic + PV_EOI_PENDING, 1)


@compiled
def take_eoi(s, apic):
    """apic_sync_pv_eoi_from_guest: the bit is gone, so the guest gave the EOI; or it goes now."""
    store64(apic + PV_EOI_PENDING, 0)
    gpa = load64(apic + PV_EOI) & ~ENABLED
    if load64(apic + PV_EOI) & ENABLED == 0 or copy(s, READ_PHYS, gpa, 1) != 0:
        return
    if load8(s + S.T0) & PENDING:
        store8(s + S.T0, 0)
        copy(s, WRITE_PHYS, gpa, 1)
    else:
        call(s, APIC_EOI)


@compiled
def share_apic(s):
    """Before the guest is entered."""
    apic = load64(s + APIC)
    if apic == 0:
        return
    if load64(apic + PV_EOI) & ENABLED:
        offer_eoi(s, apic)
    if load64(apic + VAPIC) != 0:
        requested = max(highest_vector(apic + A.APIC_IRR), 0)
        serviced = max(highest_vector(apic + A.APIC_ISR), 0)
        store32(s + S.T0, load32(apic + A.APIC_TASKPRI) & 0xFF | (serviced & 0xF0) << 8 | requested << 24)
        copy(s, WRITE_PHYS, load64(apic + VAPIC), 4)


@compiled
def unshare_apic(s):
    """When it has left."""
    apic = load64(s + APIC)
    if apic == 0:
        return
    if load64(apic + PV_EOI_PENDING) != 0:
        take_eoi(s, apic)
    if load64(apic + VAPIC) != 0 and copy(s, READ_PHYS, load64(apic + VAPIC), 4) == 0:
        call2(load64(load64(s + S.FUNCTIONS) + 8 * APIC_SET_TPR), s, load32(s + S.T0) & 0xFF)
