"""General, segment, control and debug registers: what is shown, what is refused, what round-trips."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi import msr_bits as B
from kvmfs.abi.debug import Debugregs
from kvmfs.abi.layout import u64
from kvmfs.abi.vcpu import Regs, Segment, Sregs, Sregs2
from kvmfs.kvm.vcpu import Vcpu
from tests.unit.kvm.fakes import FakeClient

GET_SREGS, SET_SREGS = ioctls.KVM_GET_SREGS, ioctls.KVM_SET_SREGS


def get(client: FakeClient, vcpu: Vcpu, row: ioctls.Ioctl, kind: Any) -> Any:
    struct = kind()
    client.call(vcpu, row, struct)
    return struct


def long_mode(sregs: Sregs) -> None:
    sregs.cr0 = S.CR0_PE | S.CR0_PG | S.CR0_ET
    sregs.cr4 = S.CR4_PAE
    sregs.efer = B.EFER_LME | B.EFER_LMA
    sregs.cs.l, sregs.cs.db = 1, 0


def test_reset_state(client: FakeClient, vcpu: Vcpu) -> None:
    regs, sregs = get(client, vcpu, ioctls.KVM_GET_REGS, Regs), get(client, vcpu, GET_SREGS, Sregs)
    assert (regs.rip, regs.rflags, regs.rdx, regs.rax) == (0xFFF0, 2, 0x600, 0)
    assert (sregs.cs.base, sregs.cs.selector, sregs.cs.limit, sregs.cs.type) == (0xFFFF0000, 0xF000, 0xFFFF, 11)
    assert (sregs.ds.base, sregs.ds.limit, sregs.ds.type, sregs.tr.type, sregs.ldt.type) == (0, 0xFFFF, 3, 11, 2)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (S.CR0_ET, 0, 0)
    assert sregs.apic_base == 0xFEE00900  # enabled, boot processor
    assert (sregs.gdt.limit, sregs.idt.limit) == (0xFFFF, 0xFFFF)


def test_regs_round_trip(client: FakeClient, vcpu: Vcpu) -> None:
    names = [field[0] for field in Regs._fields_]
    regs = Regs(**{name: 0x1111 * place for place, name in enumerate(names, 1)})
    regs.rflags = 0x246 | 1 << 21
    client.call(vcpu, ioctls.KVM_SET_REGS, regs)
    assert bytes(get(client, vcpu, ioctls.KVM_GET_REGS, Regs)) == bytes(regs)


@pytest.mark.parametrize("flags", [0, 1, 4, 0x10, 0x40, 0x80, 0x800, 0x8D5, 0x881, 0x3F7FD5])
def test_flags_round_trip(client: FakeClient, vcpu: Vcpu, flags: int) -> None:
    client.call(vcpu, ioctls.KVM_SET_REGS, Regs(rflags=flags))
    assert get(client, vcpu, ioctls.KVM_GET_REGS, Regs).rflags == flags | 2


def test_setting_regs_drops_a_pending_exception(client: FakeClient, vcpu: Vcpu) -> None:
    vcpu.queue_exception(13, 0)
    client.call(vcpu, ioctls.KVM_SET_REGS, Regs())
    assert not vcpu.state[S.EXC_PENDING]


def test_sregs_round_trip(client: FakeClient, vcpu: Vcpu) -> None:
    sregs = get(client, vcpu, GET_SREGS, Sregs)
    long_mode(sregs)
    sregs.cr4 |= S.CR4_OSFXSR | S.CR4_PGE
    client.call(vcpu, ioctls.KVM_SET_CPUID2, _cpuid(client))
    sregs.efer |= B.EFER_SCE
    sregs.cr2, sregs.cr3, sregs.cr8 = 0x1234, 0x5000, 7
    sregs.gdt.base, sregs.gdt.limit, sregs.idt.base, sregs.idt.limit = 0x6000, 0x7F, 0x7000, 0xFFF
    sregs.fs = Segment(base=1 << 40, limit=0xFFFFFFFF, selector=0x23, type=3, present=1, dpl=3, s=1, db=1, g=1, avl=1)
    sregs.es = Segment(unusable=1)
    sregs.interrupt_bitmap[1] = 1 << 3
    client.call(vcpu, SET_SREGS, sregs)
    assert bytes(get(client, vcpu, GET_SREGS, Sregs)) == bytes(sregs)


def _cpuid(client: FakeClient) -> int:
    """The supported CPUID, in the client's memory at the address returned."""
    from kvmfs.abi.cpuid import Cpuid2
    from kvmfs.kvm.cpuid import supported_cpuid
    from tests.unit.kvm.fakes import BASE

    entries = supported_cpuid().entries
    at = BASE + 8192
    client.write(at, bytes(Cpuid2(nent=len(entries))) + b"".join(map(bytes, entries)))
    return at


REFUSED: dict[str, Callable[[Sregs], None]] = {
    "CR0 bit above 32": lambda s: setattr(s, "cr0", s.cr0 | 1 << 40),
    "NW without CD": lambda s: setattr(s, "cr0", s.cr0 | S.CR0_NW),
    "paging without protection": lambda s: setattr(s, "cr0", S.CR0_PG),
    "unknown CR4 bit": lambda s: setattr(s, "cr4", s.cr4 | 1 << 30),
    "VMXE": lambda s: setattr(s, "cr4", s.cr4 | S.CR4_VMXE),
    "unknown EFER bit": lambda s: setattr(s, "efer", s.efer | 1 << 2),
    "SVME": lambda s: setattr(s, "efer", s.efer | B.EFER_SVME),
    "long mode without PAE": lambda s: (long_mode(s), setattr(s, "cr4", 0)),  # type: ignore[dict-item]
    "LME and paging without LMA": lambda s: (long_mode(s), setattr(s, "efer", B.EFER_LME)),  # type: ignore[dict-item]
    "LMA without paging": lambda s: setattr(s, "efer", B.EFER_LMA),
    "64-bit code outside of long mode": lambda s: setattr(s.cs, "l", 1),
    "CR3 beyond the guest's addresses": lambda s: (long_mode(s), setattr(s, "cr3", 1 << 60)),  # type: ignore[dict-item]
    "reserved bit of the APIC base": lambda s: setattr(s, "apic_base", 1 << 9),
    "x2APIC without xAPIC": lambda s: setattr(s, "apic_base", 1 << 10),
    "APIC base beyond the guest's addresses": lambda s: setattr(s, "apic_base", 1 << 60 | 1 << 11),
}


@pytest.mark.parametrize("what", REFUSED)
def test_sregs_refused(client: FakeClient, vcpu: Vcpu, what: str) -> None:
    client.call(vcpu, ioctls.KVM_SET_CPUID2, _cpuid(client))
    before = get(client, vcpu, GET_SREGS, Sregs)
    changed = Sregs.from_buffer_copy(before)
    REFUSED[what](changed)
    assert client.fails(vcpu, SET_SREGS, changed) == errno.EINVAL
    assert bytes(get(client, vcpu, GET_SREGS, Sregs)) == bytes(before)


def test_what_a_guest_has_not_been_given_is_refused(client: FakeClient, vcpu: Vcpu) -> None:
    sregs = get(client, vcpu, GET_SREGS, Sregs)
    long_mode(sregs)
    assert client.fails(vcpu, SET_SREGS, sregs) == errno.EINVAL  # no CPUID: no long mode
    client.call(vcpu, ioctls.KVM_SET_CPUID2, _cpuid(client))
    assert client.fails(vcpu, SET_SREGS, sregs) == 0


def test_sregs2(client: FakeClient, vcpu: Vcpu) -> None:
    sregs = get(client, vcpu, ioctls.KVM_GET_SREGS2, Sregs2)
    assert sregs.flags == 0
    assert client.fails(vcpu, ioctls.KVM_SET_SREGS2, sregs) == 0
    sregs.flags = 2
    assert client.fails(vcpu, ioctls.KVM_SET_SREGS2, sregs) == errno.EINVAL
    sregs.flags = 1  # PDPTRs of a guest without PAE paging
    assert client.fails(vcpu, ioctls.KVM_SET_SREGS2, sregs) == errno.EINVAL
    sregs.cr0, sregs.cr4, sregs.flags = S.CR0_PE | S.CR0_PG | S.CR0_ET, S.CR4_PAE, 0
    assert client.fails(vcpu, ioctls.KVM_SET_SREGS2, sregs) == 0
    assert get(client, vcpu, ioctls.KVM_GET_SREGS2, Sregs2).flags == 1


def test_the_boot_processor_wakes_when_it_is_reset(client: FakeClient, vcpu: Vcpu) -> None:
    from kvmfs.kvm.words import Cpu

    vcpu.state[Cpu.MP_STATE] = 3
    client.call(vcpu, SET_SREGS, get(client, vcpu, GET_SREGS, Sregs))
    assert vcpu.state[Cpu.MP_STATE] == 0


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("dr6", 0xFFFF0FF0, 0),
        ("dr7", 0x455, 0),
        ("dr6", 1 << 32, errno.EINVAL),
        ("dr7", 1 << 63, errno.EINVAL),
        ("flags", 1, errno.EINVAL),
    ],
)
def test_debug_registers(client: FakeClient, vcpu: Vcpu, field: str, value: int, error: int) -> None:
    debug = get(client, vcpu, ioctls.KVM_GET_DEBUGREGS, Debugregs)
    assert (debug.dr6, debug.dr7) == (0xFFFF0FF0, 0x400)
    debug.db = (1, 2, 3, 1 << 63)
    setattr(debug, field, value)
    assert client.fails(vcpu, ioctls.KVM_SET_DEBUGREGS, debug) == error
    if not error:
        assert bytes(get(client, vcpu, ioctls.KVM_GET_DEBUGREGS, Debugregs)) == bytes(debug)


def test_bad_pointer_and_other_process(client: FakeClient, vcpu: Vcpu) -> None:
    assert client.fails(vcpu, SET_SREGS, 0xDEAD) == errno.EFAULT
    assert client.fails(vcpu, GET_SREGS, 0xDEAD) == errno.EFAULT
    with pytest.raises(OSError, match="Invalid argument"):
        vcpu.ioctl(client, 0x5401, 0)  # not an ioctl of KVM at all
    client.tgid = 1
    assert client.fails(vcpu, GET_SREGS, u64(0)) == errno.EIO
