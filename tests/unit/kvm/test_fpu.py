"""FPU and extended state."""

from __future__ import annotations

import errno
import struct

import pytest
from kvmfs.jit import state as S

from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.fpu import Fpu, Xcr, Xcrs
from kvmfs.kvm import fpu
from kvmfs.kvm.vcpu import Vcpu
from tests.unit.kvm.calls import cpuid_of_all, get
from tests.unit.kvm.fakes import BASE, FakeClient


def test_fpu_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    value = get(client, vcpu, ioctls.KVM_GET_FPU, Fpu)
    assert value.fcw == 0x37F
    value.fsw, value.ftwx, value.last_opcode, value.last_ip, value.last_dp = 3 << 11, 0x55, 0x123, 1 << 40, 1 << 41
    for register in range(8):
        value.fpr[register][:10] = bytes(range(register, register + 10))
    for register in range(16):
        value.xmm[register][:] = bytes([register + 1] * 16)
    client.call(vcpu, ioctls.KVM_SET_FPU, value)
    assert bytes(get(client, vcpu, ioctls.KVM_GET_FPU, Fpu)) == bytes(value)
    assert vcpu.state.read(S.ST, 10) == bytes(range(10))


def test_xsave_round_trip(vcpu: Vcpu, client: FakeClient) -> None:
    size = fpu.uabi_size()
    client.call(vcpu, ioctls.KVM_GET_XSAVE2, BASE)
    area = bytearray(client.read(BASE, size))
    assert struct.unpack_from("<Q", area, 512)[0] & 3 == 0  # nothing is in use yet
    assert struct.unpack_from("<I", area, 24)[0] == 0x1F80
    struct.pack_into("<Q", area, 512, 3)
    area[0:5], area[32:42] = struct.pack("<HHB", 0x37F, 7 << 11, 0x80), bytes(range(10))
    area[160:416] = bytes(range(256))
    struct.pack_into("<I", area, 24, 0x1FA0)
    client.write(BASE, bytes(area))
    client.call(vcpu, ioctls.KVM_SET_XSAVE, BASE)
    client.call(vcpu, ioctls.KVM_GET_XSAVE2, BASE)
    assert client.read(BASE, size) == bytes(area)


def test_xsave_of_components_not_in_use_are_initial(vcpu: Vcpu, client: FakeClient) -> None:
    client.call(vcpu, ioctls.KVM_SET_FPU, Fpu(fcw=0x123))
    client.write(BASE, bytes(fpu.uabi_size()))
    client.call(vcpu, ioctls.KVM_SET_XSAVE, BASE)
    assert get(client, vcpu, ioctls.KVM_GET_FPU, Fpu).fcw == 0x37F
    assert vcpu.state[S.MXCSR] == 0x1F80


@pytest.mark.parametrize(
    ("at", "word"), [(512, 1 << 63), (520, 1 << 63), (528, 1), (568, 1)], ids=["component", "compacted", "pad", "pad"]
)
def test_xsave_refused(vcpu: Vcpu, client: FakeClient, at: int, word: int) -> None:
    area = bytearray(fpu.uabi_size())
    struct.pack_into("<Q", area, at, word)
    client.write(BASE, bytes(area))
    assert client.fails(vcpu, ioctls.KVM_SET_XSAVE, BASE) == errno.EINVAL


def test_mxcsr_has_reserved_bits(vcpu: Vcpu, client: FakeClient) -> None:
    area = bytearray(fpu.uabi_size())
    struct.pack_into("<I", area, 24, 1 << 16)
    struct.pack_into("<Q", area, 512, 2)
    client.write(BASE, bytes(area))
    assert client.fails(vcpu, ioctls.KVM_SET_XSAVE, BASE) == errno.EINVAL


def test_xcrs(vcpu: Vcpu, client: FakeClient) -> None:
    if not client.call(vcpu.vm, ioctls.KVM_CHECK_EXTENSION, Cap.XCRS):
        assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs()) == errno.EINVAL
        return
    cpuid_of_all(client, vcpu)
    xcrs = get(client, vcpu, ioctls.KVM_GET_XCRS, Xcrs)
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) == (1, 0, 1)
    for value, error in ((3, 0), (0, errno.EINVAL), (1 << 62 | 1, errno.EINVAL)):
        xcrs.xcrs[0] = Xcr(xcr=0, value=value)
        assert client.fails(vcpu, ioctls.KVM_SET_XCRS, xcrs) == error
    assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs(nr_xcrs=17)) == errno.EINVAL
    assert client.fails(vcpu, ioctls.KVM_SET_XCRS, Xcrs(flags=1)) == errno.EINVAL
