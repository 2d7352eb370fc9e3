"""The PDPTE registers of PAE paging: KVM_SET_SREGS loads them from memory, KVM_SET_SREGS2 may bring its own."""

from __future__ import annotations

import struct

from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.vcpu import KVM_SREGS2_FLAGS_PDPTRS_VALID, Sregs, Sregs2
from tests.unit.kvm.inprocess import Machine

TABLE = 0x20000
ENTRIES = [0x21001, 0x22001, 0, 0x24001]


def to_pae(machine: Machine) -> None:
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0 = TABLE, S.CR4_PAE, 0, S.CR0_PE | S.CR0_PG | S.CR0_ET
    sregs.cs.l, sregs.cs.db = 0, 1
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)


def pdptrs(machine: Machine) -> list[int]:
    sregs = machine.get(ioctls.KVM_GET_SREGS2, Sregs2)
    assert sregs.flags == KVM_SREGS2_FLAGS_PDPTRS_VALID
    return list(sregs.pdptrs)


def test_loaded_from_memory() -> None:
    machine = Machine("f4")
    assert machine.get(ioctls.KVM_GET_SREGS2, Sregs2).flags == 0  # long mode has none
    machine.put(TABLE, struct.pack("<4Q", *ENTRIES))
    to_pae(machine)
    assert pdptrs(machine) == ENTRIES
    machine.put(TABLE, bytes(32))
    assert pdptrs(machine) == ENTRIES  # registers


def test_reserved_bits_leave_them_as_they_are() -> None:
    machine = Machine("f4")
    machine.put(TABLE, struct.pack("<4Q", *ENTRIES))
    to_pae(machine)
    machine.put(TABLE, struct.pack("<4Q", 0x31003, 0, 0, 0))
    to_pae(machine)
    assert pdptrs(machine) == ENTRIES


def test_the_clients_own() -> None:
    machine = Machine("f4")
    to_pae(machine)
    sregs = machine.get(ioctls.KVM_GET_SREGS2, Sregs2)
    sregs.pdptrs[:] = ENTRIES
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS2, sregs)
    assert pdptrs(machine) == ENTRIES
    sregs.flags = 0
    machine.put(TABLE, struct.pack("<4Q", 0x41001, 0, 0, 0))
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS2, sregs)
    assert pdptrs(machine) == [0x41001, 0, 0, 0]
