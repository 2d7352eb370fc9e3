"""Which CPUID features guests are offered, by the host's."""

from __future__ import annotations

import pytest
from kvmfs.jit.cpu import features

from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf7Ebx, Leaf7Ecx
from kvmfs.abi.cpuid_extended import Leaf80000008Ebx
from kvmfs.kvm import hostcpu
from kvmfs.kvm.cpuid import SupportedCpuid
from kvmfs.kvm.cpuid_policy import PLACED_BY_HOST, implemented

BARE = """vendor_id : {vendor}
cpu family : 6
flags : fpu sse2 {flags}
"""


def offered(vendor: str = "GenuineIntel", flags: str = "") -> SupportedCpuid:
    return SupportedCpuid(hostcpu.parse(BARE.format(vendor=vendor, flags=flags)))


def test_what_software_does_is_offered_everywhere() -> None:
    for feature in (Leaf7Ebx.BMI1, Leaf7Ebx.BMI2, Leaf7Ebx.ADX, Leaf1Ecx.MOVBE):
        assert offered().has(feature)


@pytest.mark.parametrize(
    ("feature", "flag"),
    [
        (Leaf1Ecx.AVX, "avx"),
        (Leaf1Ecx.AES, "aes"),
        (Leaf1Ecx.RDRAND, "rdrand"),
        (Leaf7Ecx.GFNI, "gfni"),
        (Leaf7Ecx.PKU, "pku"),
    ],
)
def test_what_the_host_does_is_offered_where_it_can(feature: Leaf1Ecx, flag: str) -> None:
    assert not offered().has(feature)
    assert offered(flags=flag).has(feature)


def test_avx_brings_its_state() -> None:
    assert offered().xcr0 & 7 == 3
    assert offered(flags="avx").xcr0 & 7 == 7


def test_vendors() -> None:
    assert offered("AuthenticAMD").has(Leaf80000008Ebx.CLZERO)
    assert not offered().has(Leaf80000008Ebx.CLZERO)


def test_names_are_known() -> None:
    """What needs the host is among what is implemented."""
    assert (features.HOSTED | PLACED_BY_HOST).keys() <= set(features.NAMES)


def test_features_that_the_hosts_instructions_make() -> None:
    """A guest is not offered what the host could not execute for it."""
    everything = frozenset(features.NAMES)
    assert implemented(frozenset((features.HOSTED | PLACED_BY_HOST).values())) == everything
    assert implemented(frozenset()) == everything - set(features.HOSTED) - set(PLACED_BY_HOST)
