"""Blocks shared by the vCPUs of one virtual machine: the VM block, memslot records, attribute ranges.

Tables are immutable snapshots. The embedder builds a new table, stores its address (one atomic word), asks every vCPU
for REQ_TLB_FLUSH, waits until none runs on old translations, and only then frees the old one.
"""

from ..layout import Layout

_v = Layout()
SLOTS = _v.u64()  # address of a slot table: {count, pad[7]} then memslot records sorted by BASE_GFN
ATTRIBUTES = _v.u64()  # address of an attribute table: {count, pad[7]} then ranges {first gfn, end gfn, attributes, 0}
PRIVATE_MEMORY = _v.u64()  # 1: the VM type has private memory (attributes decide), 0: all is shared
FAULT_IN = _v.u64()  # int64 f(vm, slot record, gfn, write): make the client's page present; 0 or -errno
REMOTE_READ = _v.u64()  # int64 f(vm, client address, host buffer, size): memory reachable only page by page; 0 or -errno
REMOTE_WRITE = _v.u64()
CLIENT = _v.u64()  # the client's pid, for the functions above
GENERATION = _v.u64()  # bumped with each published change
LOG_FAULT = _v.u64()  # int64 f(vcpu, ...) or 0: embedder's fault log
EMBEDDER = _v.bytes(256)
VM_SIZE = _v.size

TABLE_HEADER = 64

_s = Layout()
SLOT_BASE_GFN = _s.u64()
SLOT_NPAGES = _s.u64()
SLOT_HOST = _s.u64()  # our mapping of the shared side's first page; 0: remote
SLOT_CLIENT = _s.u64()  # the same in the client's address space
SLOT_PRIVATE = _s.u64()  # our mapping of the slot's first guest_memfd page; 0: no guest_memfd bound
SLOT_FLAGS = _s.u64()  # SLOT_* flags below
SLOT_ID = _s.u64()
SLOT_TOUCHED = _s.u64()  # address of a bitmap, 2 bits a page: 1 faulted in for reading, 2 for writing
SLOT_DIRTY = _s.u64()  # address of the dirty bitmap (a bit a page), 0: not logged
SLOT_EMBEDDER = _s.u64(3)
SLOT_RECORD = 128
assert _s.size <= SLOT_RECORD

SLOT_READONLY = 1
SLOT_HAS_GMEM = 2  # created with KVM_MEM_GUEST_MEMFD, whether or not its file still lives
SLOT_LOG_DIRTY = 4

RANGE_FIRST, RANGE_END, RANGE_ATTRIBUTES = 0, 8, 16
RANGE_RECORD = 32
ATTRIBUTE_PRIVATE = 8

# TLB entry, 32 bytes: page address per access kind (a value with a low bit set never matches), and what to add to a
# linear address to get the host address.
TLB_READ, TLB_WRITE, TLB_FETCH, TLB_ADDEND = 0, 8, 16, 24
TLB_ENTRY = 32
TLB_ENTRIES = 1024
TLB_INVALID = 1
# Three TLBs a vCPU: what user mode, the supervisor under SMAP, and the supervisor with AC set may touch.
TLB_USER, TLB_SUPERVISOR, TLB_SUPERVISOR_AC = 0, 1, 2
TLB_SIZE = TLB_ENTRIES * TLB_ENTRY

# translate(): what kind of access
READ, WRITE, FETCH, IMPLICIT_SUPERVISOR = 0, 1, 2, 4

# XLAT_KIND: where a guest-physical address leads
TO_HOST = 0  # directly reachable
TO_MMIO = 1
TO_REMOTE = 2  # the client's memory, through REMOTE_READ/REMOTE_WRITE; XLAT_CLIENT
TO_FAULT = 3  # memory fault, FAULT_*
TO_EXCEPTION = 4  # guest page fault, EXC_*
