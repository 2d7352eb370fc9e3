"""Guest-physical to host addresses: what kvm_mmu_faultin_pfn does, in its order (arch/x86/kvm/mmu/mmu.c, 6.12).

Is the access private; does the attribute agree (else a memory fault); which memslot (none: MMIO, or a memory fault if
private); then the guest_memfd page, or the client's page. Memory faults carry the page's gpa, 4096, and the PRIVATE
flag. A client page that cannot be had is EFAULT without fault information, as kvm_handle_error_pfn has it.
"""

from errno import EAGAIN, EFAULT, EINTR

from ..build import compiled
from ..raw import atomic_or, call3, call4, load32, load64, lshr, shl, store64, ule, ult
from ..state import (
    ATTRIBUTE_HINT,
    EXIT,
    EXIT_EFAULT,
    EXIT_INTERRUPTED,
    EXIT_MEMORY_FAULT,
    FAULT_ERRNO,
    FAULT_FLAGS,
    FAULT_GPA,
    FAULT_SIZE,
    FAULTS,
    LEAVE,
    LEAVE_EXIT,
    LEAVE_RETRY,
    MMIO_WRITES,
    SLOT_HINT,
    VM,
    XLAT_CLIENT,
    XLAT_GPA,
    XLAT_KIND,
)
from .layout import (
    ATTRIBUTE_PRIVATE,
    ATTRIBUTES,
    FAULT_DISAGREES,
    FAULT_IN,
    FAULT_NO_GMEM,
    FAULT_NO_PAGE,
    FAULT_NO_SLOT,
    LOG_FAULT,
    MARK_DIRTY,
    PRIVATE_BIT,
    PRIVATE_BY_ATTRIBUTE,
    PRIVATE_BY_BIT,
    PRIVATE_MEMORY,
    PRIVATE_NEVER,
    REMOTE_READ,
    REMOTE_WRITE,
    SLOT_ANONYMOUS,
    SLOT_BASE_GFN,
    SLOT_CLIENT,
    SLOT_DIRTY,
    SLOT_FIRST,
    SLOT_FLAGS,
    SLOT_HOST,
    SLOT_NPAGES,
    SLOT_PRIVATE,
    SLOT_READONLY,
    SLOT_TOUCHED,
    SLOTS,
    TABLE_BUCKETS,
    TABLE_CAPACITY,
    TABLE_COUNT,
    TABLE_HEADER,
    TABLE_SHIFT,
    TO_FAULT,
    TO_HOST,
    TO_MMIO,
    TO_REMOTE,
    TO_RETRY,
)
from .members import member
from .tlb import enter_guest, leave_guest


@compiled
def search(table, gfn):
    """Index of the last entry of a non-empty table whose first gfn is not above `gfn`, or 0 when all are."""
    keys, count = table + TABLE_HEADER, load64(table + TABLE_COUNT)
    if ult(gfn, load64(keys)):
        return 0
    bucket, buckets = lshr(gfn - load64(keys), load64(table + TABLE_SHIFT)), load64(table + TABLE_BUCKETS)
    bounds = keys + (load64(table + TABLE_CAPACITY) << 4)
    if ult(bucket, buckets):
        bounds += 4 * bucket
        index = load32(bounds)
        count = load32(bounds + 4) - index + 1
    else:
        index = load32(bounds + 4 * buckets)
        count -= index
    # Without branches on the keys: random addresses would have half of them mispredicted.
    while count > 1:
        half = count >> 1
        index += half & -ule(load64(keys + 8 * (index + half)), gfn)
        count -= half
    return index


@compiled
def values(table):
    """Address of a table's values."""
    return table + TABLE_HEADER + 8 * load64(table + TABLE_CAPACITY)


@compiled
def _slot_holds(record, gfn):
    return record != 0 and ult(gfn - load64(record + SLOT_BASE_GFN), load64(record + SLOT_NPAGES))


@compiled
def find_slot(s, vm, gfn):
    """The memslot record that holds `gfn`, or 0."""
    table, hint = load64(vm + SLOTS), load64(s + SLOT_HINT)
    if table == 0 or load64(table + TABLE_COUNT) == 0:
        return 0
    if ult(hint, load64(table + TABLE_COUNT)):
        record = load64(values(table) + 8 * hint)
        if _slot_holds(record, gfn):
            return record
    index = search(table, gfn)
    record = load64(values(table) + 8 * index)
    if _slot_holds(record, gfn):
        store64(s + SLOT_HINT, index)
        return record
    return 0


@compiled
def find_attributes(s, vm, gfn):
    """The memory attributes of `gfn`."""
    table, hint = load64(vm + ATTRIBUTES), load64(s + ATTRIBUTE_HINT)
    if table == 0 or load64(table + TABLE_COUNT) == 0:
        return 0
    key = table + TABLE_HEADER + 8 * hint
    if ult(hint, load64(table + TABLE_COUNT) - 1) and ule(load64(key), gfn) and ult(gfn, load64(key + 8)):
        return load64(values(table) + 8 * hint)
    index = search(table, gfn)
    store64(s + ATTRIBUTE_HINT, index)
    return load64(values(table) + 8 * index) if ule(load64(table + TABLE_HEADER + 8 * index), gfn) else 0


# Exits ----------


@compiled
def retry(s):
    """Translations changed under the instruction: execute it again."""
    store64(s + XLAT_KIND, TO_RETRY)
    store64(s + MMIO_WRITES, 0)
    store64(s + LEAVE, LEAVE_RETRY)
    return 0


@member
def fault_exit(s, gpa, private, write_reason):
    """Leave for KVM_EXIT_MEMORY_FAULT, or for EFAULT when it is the client's page that is missing."""
    write, reason = write_reason & 1, write_reason >> 1
    store64(s + XLAT_KIND, TO_FAULT)
    store64(s + FAULT_GPA, gpa & ~4095)
    store64(s + FAULT_SIZE, 4096)
    store64(s + FAULT_FLAGS, ATTRIBUTE_PRIVATE if private else 0)
    store64(s + FAULTS, load64(s + FAULTS) + 1)
    store64(s + LEAVE, LEAVE_EXIT)
    store64(s + MMIO_WRITES, 0)  # the instruction will be executed again
    if reason == FAULT_NO_PAGE:
        store64(s + EXIT, EXIT_EFAULT)
    else:
        store64(s + EXIT, EXIT_MEMORY_FAULT)
        store64(s + FAULT_ERRNO, EFAULT)
    log = load64(load64(s + VM) + LOG_FAULT)
    if log != 0:
        leave_guest(s)
        call4(log, s, gpa, write, reason)
        enter_guest(s)
    return 0


@compiled
def _memory_fault(s, gpa, private, write, reason):
    return fault_exit(s, gpa, private, write | reason << 1)


@compiled
def client_error(s, gpa, error, write):
    """Leave because the client's memory answered `-error`; EINTR is a signal to the vCPU's thread, EAGAIN a retry."""
    if error == EAGAIN:
        return retry(s)
    store64(s + FAULT_ERRNO, error)
    if error == EINTR:
        store64(s + XLAT_KIND, TO_FAULT)
        store64(s + EXIT, EXIT_INTERRUPTED)
        store64(s + MMIO_WRITES, 0)
        store64(s + LEAVE, LEAVE_EXIT)
        return 0
    return _memory_fault(s, gpa, 0, write, FAULT_NO_PAGE)


# The client's memory ----------

CLUSTER = 16  # pages, aligned; a power of two, at most as many as a word of the touched bitmap has


@member
def mark_new_dirty(s, slot, page):
    """Page `page` of the memslot is not in its dirty log yet: 1 when it is now, 0 when the vCPU has to leave first."""
    function = load64(load64(s + VM) + MARK_DIRTY)
    if function != 0:
        return call3(function, s, slot, page)
    atomic_or(load64(slot + SLOT_DIRTY) + ((page >> 6) << 3), shl(1, page & 63))
    return 1


@compiled
def mark_dirty(s, slot, index):
    """Note in the dirty log, if there is one, that page `index` of the record is about to be written: 1; 0 to retry."""
    bitmap = load64(slot + SLOT_DIRTY)
    if bitmap == 0:
        return 1
    page = index + load64(slot + SLOT_FIRST)
    if lshr(load64(bitmap + ((page >> 6) << 3)), page & 63) & 1:
        return 1
    return mark_new_dirty(s, slot, page)


@compiled
def pages_ahead(slot, index, write):
    """How many pages to have at once, the one at `index` included: a guest that goes through memory gets a cluster."""
    if load64(slot + SLOT_FLAGS) & SLOT_ANONYMOUS == 0 or index == 0:
        return 1
    before = index - 1
    have = lshr(load64(load64(slot + SLOT_TOUCHED) + ((before >> 5) << 3)), (before & 31) << 1)
    if have & (2 if write else 1) == 0:
        return 1
    pages, left = CLUSTER - (index & (CLUSTER - 1)), load64(slot + SLOT_NPAGES) - index
    return pages if pages < left else left


@member
def fault_in(s, slot, index, write):
    """Have the client's page present: 0, -errno, or 1 when translations changed while it was being faulted in.

    Like an mmu_notifier user: the slot may be gone after the call, and then nothing of it may be used.
    """
    vm = load64(s + VM)
    function, bitmap = load64(vm + FAULT_IN), load64(slot + SLOT_TOUCHED)
    word, shift = bitmap + ((index >> 5) << 3), (index & 31) << 1
    client, host = load64(slot + SLOT_CLIENT) + (index << 12), load64(slot + SLOT_HOST) + (index << 12)
    pages = pages_ahead(slot, index, write)
    if function != 0:
        leave_guest(s)
        pages = call4(function, vm, client, host, pages << 1 | write)
        changed = enter_guest(s)
        if pages < 0:
            return pages
        if changed:
            return 1
    mask = (shl(1, 2 * pages) - 1) & (-1 if write else 0x5555_5555)
    atomic_or(word, shl(mask, shift))  # a cluster does not cross a word
    return 0


@compiled
def touch(s, slot, index, write):
    """fault_in, once for each page and kind of access."""
    bitmap = load64(slot + SLOT_TOUCHED)
    if bitmap == 0:
        return 0
    have = lshr(load64(bitmap + ((index >> 5) << 3)), (index & 31) << 1)
    if have & (2 if write else 1):
        return 0
    return fault_in(s, slot, index, write)


@member
def remote_copy(s, buffer, size, write):
    """Copy `size` bytes of the client's memory at XLAT_CLIENT to or from `buffer`: 1, or 0 to leave.

    A read during which translations changed is repeated; a write is done, and the TLBs are already flushed.
    """
    vm, gpa = load64(s + VM), load64(s + XLAT_GPA)
    leave_guest(s)
    result = call4(load64(vm + (REMOTE_WRITE if write else REMOTE_READ)), vm, load64(s + XLAT_CLIENT), buffer, size)
    changed = enter_guest(s)
    if result < 0:
        return client_error(s, gpa, -result, write)
    if changed and not write:
        return retry(s)
    return 1


# The resolution ----------


@member
def resolve(s, gpa, write):
    """The host address of guest-physical `gpa`, dirty-logged when `write`, or 0: XLAT_KIND says why.

    XLAT_GPA is the gpa. TO_MMIO and TO_REMOTE (XLAT_CLIENT) leave LEAVE alone; TO_FAULT and TO_RETRY set it.
    """
    vm = load64(s + VM)
    rule = load64(vm + PRIVATE_MEMORY)
    bit = gpa & load64(vm + PRIVATE_BIT)
    gpa -= bit
    gfn = lshr(gpa, 12)
    private = 0
    if rule != PRIVATE_NEVER:
        attribute = find_attributes(s, vm, gfn) & ATTRIBUTE_PRIVATE
        if rule == PRIVATE_BY_ATTRIBUTE:
            private = attribute
        else:
            private = ATTRIBUTE_PRIVATE if (bit != 0) == (rule == PRIVATE_BY_BIT) else 0
            if private != attribute:
                return _memory_fault(s, gpa, private, write, FAULT_DISAGREES)
    store64(s + XLAT_GPA, gpa)
    store64(s + XLAT_KIND, TO_HOST)
    slot = find_slot(s, vm, gfn)
    if slot == 0:
        if private:
            return _memory_fault(s, gpa, private, write, FAULT_NO_SLOT)
        store64(s + XLAT_KIND, TO_MMIO)
        return 0
    index = gfn - load64(slot + SLOT_BASE_GFN)
    offset = (index << 12) | (gpa & 4095)
    if private:
        memory = load64(slot + SLOT_PRIVATE)
        if memory == 0:
            return _memory_fault(s, gpa, private, write, FAULT_NO_GMEM)
    else:
        if write and load64(slot + SLOT_FLAGS) & SLOT_READONLY:
            store64(s + XLAT_KIND, TO_MMIO)
            return 0
        memory = load64(slot + SLOT_HOST)
        if memory != 0:
            result = touch(s, slot, index, write)
            if result != 0:
                return retry(s) if result > 0 else client_error(s, gpa, -result, write)
    if write and mark_dirty(s, slot, index) == 0:
        return retry(s)
    if memory == 0:
        store64(s + XLAT_CLIENT, load64(slot + SLOT_CLIENT) + offset)
        store64(s + XLAT_KIND, TO_REMOTE)
        return 0
    return memory + offset
