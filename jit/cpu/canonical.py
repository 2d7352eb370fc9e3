"""Addresses that registers keep: MSRs, bases of segments and descriptor tables, what TLB entries are dropped for.

A processor that has 5-level paging lets them have 57 bits whatever CR4.LA57 says (KVM: is_noncanonical_msr_address,
is_noncanonical_base_address, is_noncanonical_invlpg_address); only accesses go by CR4.
"""

from ..build import compiled
from ..raw import shl

KEPT_BITS = 57


@compiled
def keepable(value):
    """Whether a register may keep the address."""
    return 1 if shl(value, 64 - KEPT_BITS) >> (64 - KEPT_BITS) == value else 0
