"""The architectural state in a vCPU block (kvmfs.jit.state), for everything that KVM lets a client see or set.

Segments are kept as the jit keeps them (descriptor attributes in one word) and shown as struct kvm_segment does. The
conversion is VMX's (vmx_get_segment, vmx_segment_access_rights): a segment is unusable when it is marked so or not
present, and present when it is usable.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmfs.abi.vcpu import Segment
from kvmfs.jit import state as S
from kvmfs.kvm import inspection
from kvmfs.kvm.block import Block
from kvmfs.kvm.mapping import Mapping

RFLAGS_FIXED = 2
UNUSABLE = 1 << 16

# struct kvm_regs' order; the jit's is ModRM's
GENERAL = (
    ("rax", S.RAX), ("rbx", S.RBX), ("rcx", S.RCX), ("rdx", S.RDX),
    ("rsi", S.RSI), ("rdi", S.RDI), ("rsp", S.RSP), ("rbp", S.RBP),
    *((f"r{number}", S.GPR + 8 * number) for number in range(8, 16)),
)  # fmt: skip
SEGMENTS = (
    ("cs", S.CS), ("ds", S.DS), ("es", S.ES), ("fs", S.FS), ("gs", S.GS), ("ss", S.SS), ("tr", S.TR), ("ldt", S.LDTR),
)  # fmt: skip


class CpuState(Block):
    """A vCPU block. `derive` recomputes what the jit derives from mode, segments and control registers."""

    def __init__(self, derive: Callable[[int], int], memory: Mapping | None = None, at: int = 0) -> None:
        super().__init__(inspection.VCPU, memory, at)
        self._derive = derive

    def derive(self) -> None:
        """To be called after any change of CR0, CR4, EFER, RFLAGS or segments."""
        self._derive(self.address)

    # RFLAGS: the arithmetic bits are kept lazily (jit/cpu/flags.py)

    @property
    def rflags(self) -> int:
        result, aux = self[S.FLAG_RESULT], self[S.FLAG_AUX]
        carry, into_sign = aux >> 63 & 1, aux >> 62 & 1
        parity = 1 - ((result ^ aux >> 8) & 0xFF).bit_count() % 2
        zero = int(result == 0)
        sign = (result >> 63 ^ aux) & 1
        lazy = carry | parity << 2 | (aux >> 3 & 1) << 4 | zero << 6 | sign << 7 | (carry ^ into_sign) << 11
        return self[S.RFLAGS] | lazy

    @rflags.setter
    def rflags(self, value: int) -> None:
        carry, overflow = value & 1, value >> 11 & 1
        no_parity = 0 if value & S.PF else 1
        self[S.FLAG_RESULT] = 0 if value & S.ZF else 0x100
        self[S.FLAG_AUX] = (
            carry << 63 | (carry ^ overflow) << 62 | (value >> 4 & 1) << 3 | no_parity << 8 | value >> 7 & 1
        )
        self[S.RFLAGS] = (value & ~S.ARITHMETIC) | RFLAGS_FIXED

    # Segments

    def get_segment(self, at: int) -> Segment:
        attributes = self[at + S.ATTR]
        unusable = attributes >> 16 & 1
        return Segment(
            base=self[at + S.BASE],
            limit=self[at + S.LIMIT],
            selector=self[at + S.SEL],
            type=attributes & 15,
            s=attributes >> 4 & 1,
            dpl=attributes >> 5 & 3,
            present=1 - unusable,
            avl=attributes >> 12 & 1,
            l=attributes >> 13 & 1,
            db=attributes >> 14 & 1,
            g=attributes >> 15 & 1,
            unusable=unusable,
        )

    def set_segment(self, at: int, segment: Segment) -> None:
        self[at + S.SEL] = segment.selector
        self[at + S.BASE] = segment.base
        self[at + S.LIMIT] = segment.limit
        self[at + S.ATTR] = (
            segment.type & 15
            | (segment.s & 1) << 4
            | (segment.dpl & 3) << 5
            | (segment.present & 1) << 7
            | (segment.avl & 1) << 12
            | (segment.l & 1) << 13
            | (segment.db & 1) << 14
            | (segment.g & 1) << 15
            | (UNUSABLE if segment.unusable or not segment.present else 0)
        )

    # Modes

    @property
    def is_paging(self) -> bool:
        return bool(self[S.CR0] & S.CR0_PG)

    @property
    def is_long_mode(self) -> bool:
        return bool(self[S.EFER] & S.EFER_LMA)

    @property
    def is_pae_paging(self) -> bool:
        return not self.is_long_mode and bool(self[S.CR4] & S.CR4_PAE) and self.is_paging

    @property
    def is_64_bit(self) -> bool:
        return self.is_long_mode and bool(self[S.CS + S.ATTR] >> 13 & 1)

    @property
    def linear_rip(self) -> int:
        if self.is_64_bit:
            return self[S.RIP]
        return (self[S.CS + S.BASE] + self[S.RIP]) & 0xFFFF_FFFF
