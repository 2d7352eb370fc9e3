"""Blocks shared by the vCPUs of one virtual machine: the VM block, memslot records, lookup tables; and the TLB.

Records are immutable once published, and so are tables, but for single words that may be seen at any time (a slot's
record, or 0 in its place; an entry behind the last one). To change something the embedder

1. builds the new table (mmu/tables.py) and stores its address in the VM block, or changes words of the one that is
   there: one word at a time, seen whole or not at all;
2. adds 1 to GENERATION, sets REQ_TLB_FLUSH (atomic or) in every vCPU's REQUEST;
3. waits for each vCPU until the bit is clear again or MODE is 0 (both are seq_cst: a vCPU that enters the guest sets
   MODE first and looks at REQUEST then, so one of the two sides always sees the other);
4. and only then frees the old table, unmaps memory, and returns from its ioctl.
"""

from ..layout import Layout

_v = Layout()
SLOTS = _v.u64()  # address of the slot table: entries {first gfn, slot record's address}; 0: no slots
ATTRIBUTES = _v.u64()  # address of the attribute table: entries {first gfn, attributes}; 0: no attributes
PRIVATE_MEMORY = _v.u64()  # who says whether an access is private (PRIVATE_* below)
PRIVATE_BIT = _v.u64()  # mask of the gpa bit that says so, for PRIVATE_BY_BIT and SHARED_BY_BIT; else 0
FAULT_IN = _v.u64()  # int64 f(vm, client address, host address, pages * 2 + write): see below
REMOTE_READ = _v.u64()  # int64 f(vm, client address, host buffer, size): for memory that we cannot map; 0 or -errno
REMOTE_WRITE = _v.u64()
CLIENT = _v.u64()  # the client's pid, for the functions above
GENERATION = _v.u64()  # bumped with each published change
MARK_DIRTY = _v.u64()  # int64 f(vcpu, slot record, page of the memslot): see below; 0: only the bitmap is kept
LOG = _v.u64()  # int64 f(vcpu, gpa, access, outcome): the embedder's log of what left the fast path, or 0; see below
INJECT = _v.u64()  # int64 f(vcpu, gpa, access): INJECT_* below; 0: nothing befalls an access but what is its due
EMBEDDER = _v.bytes(256)
VM_SIZE = _v.size

# FAULT_IN makes the client's page present, and as many of the pages after it as can be had at once: how many that were
# (1 to `pages`), or -errno.

# MARK_DIRTY sets the page's bit in the dirty bitmap of the record, which it found clear, and whatever else is kept of
# dirty pages; called with MODE 1, and must not block. 1; or 0: the write has to wait, leave the guest first (the
# embedder has set what makes the vCPU leave before it tries again).

# The other functions may block: they are called with MODE 0, and what they were given may be gone when they look.

# PRIVATE_MEMORY
PRIVATE_NEVER = 0  # all memory is shared
PRIVATE_BY_ATTRIBUTE = 1  # KVM_X86_SW_PROTECTED_VM: the attribute decides, so nothing can disagree with it
PRIVATE_BY_BIT = 2  # the gpa's PRIVATE_BIT set means private (SEV-SNP's C-bit)
SHARED_BY_BIT = 3  # set means shared (TDX)

# LOG and INJECT are called with MODE 1, and must not block (INJECT may leave the guest for that, and say that it has).
# Their `access` is READ, WRITE or FETCH with ATTRIBUTE_PRIVATE when it is private. What else is known LOG finds in the
# vCPU block: LOG_SINCE, LOG_SLOT, XLAT_LINEAR. Its outcomes:
HAD_PAGE = 0  # the client's page was faulted in
FAULT_DISAGREES = 1  # the access is private and the attribute is not, or the other way round
FAULT_NO_SLOT = 2  # private, and no memslot
FAULT_NO_GMEM = 3  # private, and the slot has no guest_memfd
FAULT_NO_PAGE = 4  # shared, and the client's memory has no page there, or one that may not be written
FAULT_INJECTED = 5  # a memory fault that INJECT wants
FAULT_POISONED = 6  # memory that INJECT has poisoned
GAVE_UP = 7  # a signal came while the client's page was being faulted in
TO_DO_AGAIN = 8  # translations changed meanwhile
WENT_REMOTE = 9  # the client's memory was copied, through its page tables
OUTCOMES = 10  # from here on the embedder's own

# What INJECT wants: first whether the page may go into the TLB, then what becomes of the access.
INJECT_NOTHING = 0
INJECT_WATCH = 1  # nothing now, but it wants to see the next access to this page, too
INJECT_MEMORY_FAULT = 2  # with the truth about the access
INJECT_OTHER_KIND = 3  # a memory fault that says private of a shared access, and the other way round
INJECT_POISON = 4  # private: a memory fault with EHWPOISON; shared: EXIT_EFAULT with EHWPOISON
INJECT_EFAULT = 5  # as if the client had no page there
INJECT_RETRY = 6  # it has left the guest, and translations changed
INJECT_GIVE_UP = 7  # it has left the guest, and REQ_STOP came
EHWPOISON = 133  # not in the errno module

# A table (mmu/tables.py): a header; the gfns at which its entries begin, ascending; their values; an index that narrows
# the search down. The gfns from the first entry's on are cut into buckets of 1 << shift, and index[b] (u32) is the last
# entry at or before bucket b's beginning. One more index entry stands for the end of the last bucket; entries added
# behind it are searched without an index. Values begin 8 bytes times the capacity after the gfns, the index as much
# after the values. A slot table may have entries whose value is 0: no slot begins there.
TABLE_COUNT, TABLE_BUCKETS, TABLE_SHIFT, TABLE_CAPACITY = 0, 8, 16, 24
TABLE_HEADER = 64

_s = Layout()
SLOT_BASE_GFN = _s.u64()
SLOT_NPAGES = _s.u64()
SLOT_HOST = _s.u64()  # our mapping of the shared side's first page; 0: remote
SLOT_CLIENT = _s.u64()  # the same in the client's address space
SLOT_PRIVATE = _s.u64()  # our mapping of the slot's first guest_memfd page; 0: no guest_memfd bound
SLOT_FLAGS = _s.u64()  # SLOT_* flags below
SLOT_ID = _s.u64()
SLOT_TOUCHED = _s.u64()  # address of a bitmap, 2 bits a page: 1 faulted in for reading, 2 for writing; 0: all present
SLOT_DIRTY = _s.u64()  # address of the memslot's dirty bitmap (a bit a page), 0: not logged
SLOT_FIRST = _s.u64()  # the page of the memslot that this record begins with: a memslot may have several records
SLOT_EMBEDDER = _s.u64(2)
SLOT_RECORD = 128
assert _s.size <= SLOT_RECORD

SLOT_READONLY = 1
SLOT_HAS_GMEM = 2  # created with KVM_MEM_GUEST_MEMFD, whether or not its file still lives
SLOT_LOG_DIRTY = 4
SLOT_ANONYMOUS = (
    8  # stands for anonymous memory: pages may be had ahead of their use, as with the kernel's large folios
)

# KVM_MEMORY_ATTRIBUTE_PRIVATE and KVM_MEMORY_EXIT_FLAG_PRIVATE are the same bit
ATTRIBUTE_PRIVATE = 8

# TLB entry, 32 bytes: page address per access kind (a value with a low bit set never matches), and what to add to a
# linear address to get the host address.
TLB_READ, TLB_WRITE, TLB_FETCH, TLB_ADDEND = 0, 8, 16, 24
TLB_ENTRY = 32
TLB_ENTRIES = 1024
TLB_INVALID = 1
# Three TLBs a vCPU: what user mode, the supervisor under SMAP, and the supervisor with AC set may touch.
TLB_USER, TLB_SUPERVISOR, TLB_SUPERVISOR_AC = 0, 1, 2
TLB_KINDS = 3
TLB_SIZE = TLB_ENTRIES * TLB_ENTRY
# Behind them, a bit an entry and a bitmap a TLB: filled, filled from a global page, filled from a large page.
TLB_MAP = TLB_ENTRIES // 8
TLB_USED = TLB_KINDS * TLB_SIZE
TLB_GLOBAL = TLB_USED + TLB_KINDS * TLB_MAP
TLB_LARGE = TLB_GLOBAL + TLB_KINDS * TLB_MAP
# And one that stays empty, for user mode under alignment checks: every access takes the path that can check.
TLB_EMPTY = TLB_LARGE + TLB_KINDS * TLB_MAP
TLB_BYTES = TLB_EMPTY + TLB_SIZE

# translate(): what kind of access. The access functions take the flags with the size: size | flags << ACCESS_SHIFT.
READ, WRITE, FETCH = 0, 1, 2
IMPLICIT_SUPERVISOR = 4  # to a descriptor table, a TSS: supervisor at any CPL, and AC does not lift SMAP
STACK = 8  # a non-canonical address is #SS, not #GP
NO_MMIO = 32  # an operand that is not memory is EXIT_EMULATION_FAILURE
SYSTEM = 16  # supervisor at any CPL (KVM's own accesses)
ACCESS_SHIFT = 16

# XLAT_KIND: where a guest-physical address leads
TO_HOST = 0  # directly reachable
TO_MMIO = 1
TO_REMOTE = 2  # the client's memory, through REMOTE_READ/REMOTE_WRITE; XLAT_CLIENT
TO_FAULT = 3  # an exit: memory fault or EFAULT, FAULT_*
TO_EXCEPTION = 4  # guest page fault, EXC_*
TO_RETRY = 5  # translations changed meanwhile: execute the instruction again
