"""The XSAVE area: components, their places in the standard format, and what XCR0 may hold.

Sizes and offsets are those of every processor that has the component (SDM vol. 1, 13.4; the offsets of AVX and AVX-512
as CPUID 0xD reports them on Intel and AMD).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from kvmfs.abi.cpuid_basic import Leaf1Ecx, Leaf7Ebx, Leaf7Ecx

LEGACY_SIZE: Final = 512
HEADER_SIZE: Final = 64

FP, SSE, YMM, OPMASK, ZMM_HI256, HI16_ZMM, PKRU = (1 << bit for bit in (0, 1, 2, 5, 6, 7, 9))
AVX512: Final = OPMASK | ZMM_HI256 | HI16_ZMM


@dataclass(frozen=True, slots=True)
class Component:
    size: int
    offset: int


COMPONENTS: Final = {
    2: Component(256, 576),
    5: Component(64, 832),
    6: Component(512, 896),
    7: Component(1024, 1408),
    9: Component(8, 2432),
}
"""By bit of XCR0; 0 and 1 are the legacy area."""


def supported_xcr0(has: Callable[[Any], bool]) -> int:
    """KVM's supported_xcr0 for a processor whose features `has` tells; 0 without XSAVE."""
    if not has(Leaf1Ecx.XSAVE):
        return 0
    xcr0 = FP | SSE
    if has(Leaf1Ecx.AVX):
        xcr0 |= YMM
    if has(Leaf7Ebx.AVX512F):
        xcr0 |= AVX512
    if has(Leaf7Ecx.PKU):
        xcr0 |= PKRU
    return xcr0


def required_size(xcr0: int, compacted: bool = False) -> int:
    """Bytes of an area for these components (xstate_required_size)."""
    size = LEGACY_SIZE + HEADER_SIZE
    for number, component in COMPONENTS.items():
        if xcr0 >> number & 1:
            size = max(size, (size if compacted else component.offset) + component.size)
    return size


def is_valid_xcr0(xcr0: int, supported: int) -> bool:
    """Whether a guest with these supported components may load XCR0 (__kvm_set_xcr)."""
    if not xcr0 & FP or (xcr0 & YMM and not xcr0 & SSE) or xcr0 & ~(supported | FP):
        return False
    return not xcr0 & AVX512 or (bool(xcr0 & YMM) and xcr0 & AVX512 == AVX512)
