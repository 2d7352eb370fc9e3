"""The guest's XSAVE and KVM_GET_XSAVE2, KVM_SET_XSAVE see one state, and agree on where it lies."""

from __future__ import annotations

import ctypes

from kvmfs.jit import state as S
from kvmfs.jit.cpu import fpu_image

from kvmfs.abi import ioctls
from kvmfs.abi.fpu import Xcr, Xcrs
from kvmfs.abi.vcpu import Sregs
from kvmfs.kvm import fpu, xstate
from kvmfs.kvm.cpuid import supported_cpuid
from tests.unit.kvm.inprocess import CODE, DATA, Machine

FLD1, FLDPI, PCMPEQD, HLT = "d9e8", "d9eb", "660f76db", "f4"  # into xmm3
LDMXCSR = "0fae5780"  # [rdi - 128]
XSAVE, XRSTOR = "480fae27", "480fae2f"  # [rdi]
POINTERS = slice(6, 24)  # FOP, FIP, FDP: AMD's processors save them of a pending exception only
SOFTWARE = slice(fpu.SOFTWARE_AT, fpu.HEADER_AT)


def machine(code: str) -> Machine:
    """With CR4.OSXSAVE and all components that KVM supports in XCR0."""
    machine = Machine("dbe3" + code)
    sregs = machine.get(ioctls.KVM_GET_SREGS, Sregs)
    sregs.cr4 |= S.CR4_OSXSAVE | S.CR4_OSFXSR
    machine.call(machine.vcpu, ioctls.KVM_SET_SREGS, sregs)
    xcr0 = supported_cpuid().xcr0
    xcrs = Xcrs(nr_xcrs=1)
    xcrs.xcrs[0] = Xcr(xcr=0, value=xcr0)
    machine.call(machine.vcpu, ioctls.KVM_SET_XCRS, xcrs)
    machine.set_regs(rdi=DATA, rax=xcr0, rdx=0)
    machine.put(DATA - 128, (0x1FA1).to_bytes(4, "little"))
    return machine


def get_area(machine: Machine) -> bytearray:
    buffer = (ctypes.c_char * fpu.uabi_size())()
    machine.call(machine.vcpu, ioctls.KVM_GET_XSAVE2, buffer)
    return bytearray(buffer)


def comparable(area: bytes) -> bytes:
    area = bytearray(area)
    for part in (POINTERS, SOFTWARE):
        area[part] = bytes(part.stop - part.start)
    return bytes(area)


def test_the_guests_image_is_the_clients() -> None:
    guest = machine(FLD1 + FLDPI + PCMPEQD + LDMXCSR + XSAVE + HLT)
    if supported_cpuid().xcr0 & xstate.PKRU:
        guest.vcpu.state[S.PKRU] = 0x55555540
    if supported_cpuid().xcr0 & xstate.YMM:
        guest.vcpu.state.write(S.VEC + 64 * 5 + 16, bytes(range(16)))
    assert guest.run() == 0
    size = xstate.required_size(supported_cpuid().xcr0)
    assert comparable(get_area(guest)[:size]) == comparable(guest.at(DATA, size))


def test_the_guest_restores_what_the_client_saved() -> None:
    """And the client what it had before."""
    guest = machine(FLD1 + FLDPI + PCMPEQD + LDMXCSR + HLT + XRSTOR + HLT)
    assert guest.run() == 0
    saved = get_area(guest)
    guest.put(DATA, bytes(saved))
    empty = (ctypes.c_char * len(saved))()
    guest.call(guest.vcpu, ioctls.KVM_SET_XSAVE, empty)
    assert comparable(get_area(guest)) != comparable(saved)
    guest.run()
    assert guest.regs.rip == CODE + len(bytes.fromhex("dbe3" + FLD1 + FLDPI + PCMPEQD + LDMXCSR + HLT + XRSTOR + HLT))
    assert comparable(get_area(guest)) == comparable(saved)


def test_offsets_agree() -> None:
    """The processor's and the ioctls' tables of components."""
    for number, size, offset, _ in fpu_image.COMPONENTS:
        assert xstate.COMPONENTS[number] == xstate.Component(size, offset)
