"""The guest's page tables: linear to guest-physical addresses (Intel SDM vol. 3, ch. 4).

All modes: none, 32-bit (with PSE-36), PAE, 4-level, 5-level. Paging structures are read through resolve(), so private
ones and missing client pages behave as they do under EPT; where a structure lies in no memslot, KVM's emulator finds
the entry not present (walk_addr_generic), and so does this. Accessed and dirty bits are set when the walk has
succeeded, by compare-and-swap, all over again when an entry changed; those in a read-only slot stay as they are.

1 GiB pages are always there: KVM cannot take them from a guest that walks in hardware.
"""

from ..build import compiled
from ..raw import cas32, cas64, load32, load64, lshr, shl, store64
from ..state import (
    AC,
    CPL,
    CR0,
    CR0_PG,
    CR0_WP,
    CR3,
    CR4,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER,
    EFER_LMA,
    EFER_NX,
    EXC_ERROR,
    EXC_HAS_ERROR,
    EXC_PAYLOAD,
    EXC_PENDING,
    EXC_VECTOR,
    GP,
    LEAVE,
    LEAVE_EXCEPTION,
    MAXPHYADDR,
    MMIO_WRITES,
    PDPTE,
    PF_FAULT,
    PKRU,
    RFLAGS,
    SS_FAULT,
    VM,
    WALK_GPA,
    WALK_LEAF,
    WALK_PTE,
    WALK_TOP,
    XLAT_GPA,
    XLAT_KIND,
)
from .layout import (
    FETCH,
    IMPLICIT_SUPERVISOR,
    PRIVATE_BIT,
    PRIVATE_BY_BIT,
    PRIVATE_MEMORY,
    STACK,
    SYSTEM,
    TO_EXCEPTION,
    TO_MMIO,
    TO_REMOTE,
    WRITE,
)
from .members import member
from .physical import read_phys
from .resolve import remote_copy, resolve
from .tlb import PAGE_GLOBAL, PAGE_LARGE

# Paging-structure entries
PTE_P, PTE_W, PTE_U, PTE_A, PTE_D, PTE_PS, PTE_G = 1, 2, 4, 32, 64, 128, 256
PTE_NX = -(1 << 63)
PTE_ADDRESS = 0x000F_FFFF_FFFF_F000

# Page-fault error codes
PFEC_P, PFEC_W, PFEC_U, PFEC_RSVD, PFEC_I, PFEC_PK = 1, 2, 4, 8, 16, 32

WALK_OK = 1


@member
def raise_fault(s, vector, error, payload):
    """Have the instruction end in an exception; for a page fault the payload is what CR2 becomes at delivery."""
    store64(s + EXC_VECTOR, vector)
    store64(s + EXC_ERROR, error)
    store64(s + EXC_HAS_ERROR, 1)
    store64(s + EXC_PAYLOAD, payload)
    store64(s + EXC_PENDING, 1)
    store64(s + MMIO_WRITES, 0)  # an instruction that faults has done nothing
    store64(s + XLAT_KIND, TO_EXCEPTION)
    store64(s + LEAVE, LEAVE_EXCEPTION)
    return 0


@compiled
def canonical(s, la):
    """Whether the linear address can be: always outside long mode."""
    if load64(s + EFER) & EFER_LMA:
        unused = 7 if load64(s + CR4) & CR4_LA57 else 16
        return 1 if shl(la, unused) >> unused == la else 0
    return 1


@compiled
def check_canonical(s, la, access):
    """1, or 0 with #GP (#SS for stack accesses) raised."""
    if canonical(s, la):
        return 1
    return raise_fault(s, SS_FAULT if access & STACK else GP, 0, 0)


# Rights ----------


@compiled
def _permission_fault(s, entries, nx, pkey, access):
    """The error code, with P, of an access that the page forbids, or 0 (SDM 4.6; KVM's permission_fault).

    entries: the AND of all entries' W and U bits; nx: whether any forbids execution; pkey: the page's key, -1: none.
    """
    cr4, user_page = load64(s + CR4), entries & PTE_U
    write, fetch = access & WRITE, access & FETCH
    user = load64(s + CPL) == 3 and not access & (IMPLICIT_SUPERVISOR | SYSTEM)
    write_protect = user or load64(s + CR0) & CR0_WP
    forbidden = bool(fetch and nx) or bool(write and write_protect and not entries & PTE_W)
    if user:
        forbidden = forbidden or not user_page
    elif user_page:
        if fetch:
            forbidden = forbidden or bool(cr4 & CR4_SMEP)
        elif cr4 & CR4_SMAP:
            lifted = load64(s + RFLAGS) & AC and not access & IMPLICIT_SUPERVISOR
            forbidden = forbidden or not lifted
    key_violation = False
    if pkey >= 0 and user_page and not fetch:
        rights = lshr(load64(s + PKRU), 2 * pkey)
        key_violation = bool(rights & 1) or bool(rights & 2 and write and write_protect)
    if key_violation:
        return PFEC_P | PFEC_PK
    return PFEC_P if forbidden else 0


@compiled
def _error_code(s, access):
    """The part of a page fault's error code that the access alone decides."""
    code = 0
    if access & WRITE:
        code |= PFEC_W
    if load64(s + CPL) == 3 and not access & (IMPLICIT_SUPERVISOR | SYSTEM):
        code |= PFEC_U
    no_execute = load64(s + CR4) & CR4_PAE and load64(s + EFER) & EFER_NX
    if access & FETCH and (no_execute or load64(s + CR4) & CR4_SMEP):
        code |= PFEC_I
    return code


# The descent ----------


@compiled
def _reserved(s, level, large):
    """Bits that must be 0 in an entry of this level; large: it maps a page above 4 KiB."""
    cr4, width = load64(s + CR4), load64(s + MAXPHYADDR)
    if not cr4 & CR4_PAE:
        if not large:
            return 0
        above = (width if width < 40 else 40) - 32  # PSE-36: bits 13.. are address bits 32..
        return ((1 << 22) - 1) & -(1 << (13 + above)) if above > 0 else 0x3FE000
    long = load64(s + EFER) & EFER_LMA
    bits = (1 << (52 if long else 63)) - 1
    bits &= -(1 << width)
    bits &= ~load64(load64(s + VM) + PRIVATE_BIT)
    if not load64(s + EFER) & EFER_NX:
        bits |= PTE_NX
    if level >= 4:
        bits |= PTE_PS
    if large:
        bits |= 0x3FFF_E000 if level == 3 else 0x1F_E000
    return bits


@compiled
def _encrypted(s):
    """The bit of an access that is private whatever the guest's mappings say: SEV's paging structures, fetches."""
    vm = load64(s + VM)
    return load64(vm + PRIVATE_BIT) if load64(vm + PRIVATE_MEMORY) == PRIVATE_BY_BIT else 0


@compiled
def _read_entry(s, gpa, level, narrow, access):
    """Bring an entry into WALK_PTE: 1, 0 to leave, -1 if there is no memory there."""
    place, size = s + WALK_PTE + 8 * level, 4 if narrow else 8
    if narrow:
        store64(place, 0)
    if access & SYSTEM:
        return 1 if read_phys(s, gpa, size, place) == 0 else -1
    host = resolve(s, gpa | _encrypted(s), 0)
    if host != 0:
        store64(place, load32(host) if narrow else load64(host))
        return 1
    kind = load64(s + XLAT_KIND)
    if kind == TO_MMIO:
        return -1
    if kind != TO_REMOTE:
        return 0
    return remote_copy(s, place, size, 0)


@member
def descend(s, la, access):
    """Follow `la` down to its page: XLAT_GPA and WALK_OK | PAGE_*; 0: left; negative: minus a page-fault error code
    with bit 16 set. WALK_GPA and WALK_PTE hold the entries of levels WALK_TOP down to WALK_LEAF. Nothing is changed.
    """
    cr4, base = load64(s + CR4), load64(s + CR3)
    narrow = 0 if cr4 & CR4_PAE else 1
    entry_bits, index_bits = (2, 10) if narrow else (3, 9)
    error = _error_code(s, access) | 1 << 16
    rights, nx = PTE_W | PTE_U, 0
    if narrow:
        level = 2
        base &= 0xFFFF_F000
    elif load64(s + EFER) & EFER_LMA:
        level = 5 if cr4 & CR4_LA57 else 4
        base &= PTE_ADDRESS
    else:
        base = load64(s + PDPTE + 8 * ((la >> 30) & 3))
        if not base & PTE_P:
            return -error
        level = 2
        base &= PTE_ADDRESS
    store64(s + WALK_TOP, level)
    while True:
        shift = 12 + index_bits * (level - 1)
        gpa = base + (((la >> shift) & ((1 << index_bits) - 1)) << entry_bits)
        store64(s + WALK_GPA + 8 * level, gpa)
        found = _read_entry(s, gpa, level, narrow, access)
        if found <= 0:
            return -error if found < 0 else 0
        pte = load64(s + WALK_PTE + 8 * level)
        if not pte & PTE_P:
            return -error
        # Bit 7 ends the walk at levels 2 and 3, except in 32-bit paging without CR4.PSE.
        large = 1 if pte & PTE_PS and (level == 2 or level == 3) and (not narrow or cr4 & CR4_PSE) else 0
        if pte & _reserved(s, level, large):
            return -(error | PFEC_P | PFEC_RSVD)
        rights &= pte
        nx |= pte & PTE_NX
        if large or level == 1:
            break
        base = pte & PTE_ADDRESS
        level -= 1
    store64(s + WALK_LEAF, level)
    long = load64(s + EFER) & EFER_LMA
    pkey = lshr(pte, 59) & 15 if long and cr4 & CR4_PKE else -1
    forbidden = _permission_fault(s, rights, nx, pkey, access)
    if forbidden:
        return -(error | forbidden)
    inside = (1 << shift) - 1
    page = pte & PTE_ADDRESS
    if large and narrow:
        page |= ((pte >> 13) & 0xFF) << 32
    # 32-bit entries have no room for the bit: all is private then.
    private = _encrypted(s) if narrow or access & FETCH else 0
    store64(s + XLAT_GPA, (page & ~inside) | (la & inside) | private)
    result = WALK_OK
    if large:
        result |= PAGE_LARGE
    if pte & PTE_G and cr4 & CR4_PGE:
        result |= PAGE_GLOBAL
    return result


@member
def mark(s, write):
    """Set the A bits, for a write the leaf's D bit, of the entries a descent used: 1, 0 to leave, -1 to walk again."""
    narrow = 0 if load64(s + CR4) & CR4_PAE else 1
    level, leaf = load64(s + WALK_TOP), load64(s + WALK_LEAF)
    while level >= leaf:
        old = load64(s + WALK_PTE + 8 * level)
        new = old | PTE_A
        if write and level == leaf:
            new |= PTE_D
        if new != old:
            host = resolve(s, load64(s + WALK_GPA + 8 * level) | _encrypted(s), 1)
            kind = load64(s + XLAT_KIND)
            if host != 0:
                if (cas32(host, old, new) if narrow else cas64(host, old, new)) != old:
                    return -1
            elif kind == TO_REMOTE:
                store64(s + WALK_PTE + 8 * level, new)
                if not remote_copy(s, s + WALK_PTE + 8 * level, 4 if narrow else 8, 1):
                    return 0
            elif kind != TO_MMIO:
                return 0
        level -= 1
    return 1


@compiled
def _unmarked(s, write):
    """Whether mark has anything to do."""
    level, leaf = load64(s + WALK_TOP), load64(s + WALK_LEAF)
    wanted = load64(s + WALK_PTE + 8 * leaf)
    if write and not wanted & PTE_D:
        return 1
    while level >= leaf:
        if not load64(s + WALK_PTE + 8 * level) & PTE_A:
            return 1
        level -= 1
    return 0


@member
def walk(s, la, access):
    """Translate linear `la` for `access`, marking entries: XLAT_GPA and WALK_OK | PAGE_*, or 0 with LEAVE set."""
    if not load64(s + CR0) & CR0_PG:
        store64(s + XLAT_GPA, la | _encrypted(s))
        return WALK_OK
    while True:
        result = descend(s, la, access)
        if result < 0:
            return raise_fault(s, PF_FAULT, -result & 0xFFFF, la)
        if result == 0 or not _unmarked(s, access & WRITE):
            return result
        gpa = load64(s + XLAT_GPA)
        marked = mark(s, access & WRITE)
        if marked == 0:
            return 0
        if marked > 0:
            store64(s + XLAT_GPA, gpa)
            return result


@compiled
def _load_pdptes(s, access):
    """1; 0 to leave; -1 if they are wrong. PDPTE changes only when all four are good."""
    reserved = (-(1 << load64(s + MAXPHYADDR)) & ~load64(load64(s + VM) + PRIVATE_BIT)) | 0x1E6
    for i in range(4):
        found = _read_entry(s, (load64(s + CR3) & 0xFFFF_FFE0) + 8 * i, i, 0, access)
        if found <= 0:
            return found
        entry = load64(s + WALK_PTE + 8 * i)
        if entry & PTE_P and entry & reserved:
            return -1
    for i in range(4):
        store64(s + PDPTE + 8 * i, load64(s + WALK_PTE + 8 * i))
    return 1


@member
def load_pdptes(s):
    """MOV CR in PAE paging: load the PDPTE registers from where CR3 points: 1; 0 to leave, #GP(0) if they are wrong."""
    found = _load_pdptes(s, 0)
    return raise_fault(s, GP, 0, 0) if found < 0 else found


@member
def reload_pdptes(s):
    """KVM_SET_SREGS: the same from the shared side, out of the guest; 1, or 0 with the registers as they were."""
    return 1 if _load_pdptes(s, SYSTEM) > 0 else 0


@member
def translate_debug(s, la):
    """KVM_TRANSLATE: the gpa of `la` for a supervisor's read, or -1. Sets no A bits and no vCPU state.

    Paging structures are read as KVM's walker reads them, from the shared side.
    """
    if not load64(s + CR0) & CR0_PG:
        return la
    return load64(s + XLAT_GPA) if descend(s, la, SYSTEM) > 0 else -1
