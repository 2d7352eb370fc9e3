"""Guest-physical to host addresses: what kvm_mmu_faultin_pfn does, in its order (arch/x86/kvm/mmu/mmu.c, 6.12).

Is the access private; does the attribute agree (else a memory fault); which memslot (none: MMIO, or a memory fault if
private); then the guest_memfd page, or the client's page. Memory faults carry the page's gpa, 4096, and the PRIVATE
flag. A client page that cannot be had is EFAULT without fault information, as kvm_handle_error_pfn has it.

Before all that the embedder may want something else to befall the access (INJECT).
"""

from errno import EAGAIN, EFAULT, EINTR

from ..build import compiled
from ..raw import atomic_or, call3, call4, load32, load64, lshr, rdtsc, shl, store64, ule, ult
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
    LOG_SINCE,
    LOG_SLOT,
    MMIO_WRITES,
    SLOT_HINT,
    VM,
    XLAT_CLIENT,
    XLAT_GPA,
    XLAT_KIND,
    XLAT_WATCHED,
)
from .layout import (
    ATTRIBUTE_PRIVATE,
    ATTRIBUTES,
    EHWPOISON,
    FAULT_DISAGREES,
    FAULT_IN,
    FAULT_INJECTED,
    FAULT_NO_GMEM,
    FAULT_NO_PAGE,
    FAULT_NO_SLOT,
    FAULT_POISONED,
    GAVE_UP,
    HAD_PAGE,
    INJECT,
    INJECT_EFAULT,
    INJECT_GIVE_UP,
    INJECT_NOTHING,
    INJECT_OTHER_KIND,
    INJECT_POISON,
    INJECT_RETRY,
    INJECT_WATCH,
    LOG,
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
    SLOT_ID,
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
    TO_DO_AGAIN,
    TO_FAULT,
    TO_HOST,
    TO_MMIO,
    TO_REMOTE,
    TO_RETRY,
    WENT_REMOTE,
    WRITE,
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


@compiled
def note(s, gpa, access, outcome):
    """Log what became of an access that left the fast path."""
    log = load64(load64(s + VM) + LOG)
    if log != 0:
        call4(log, s, gpa, access, outcome)


@compiled
def note_now(s, gpa, access, outcome):
    """The same of what has just begun."""
    slot = find_slot(s, load64(s + VM), lshr(gpa, 12))
    store64(s + LOG_SLOT, load64(slot + SLOT_ID) + 1 if slot != 0 else 0)
    store64(s + LOG_SINCE, rdtsc())
    note(s, gpa, access, outcome)


@compiled
def leave_without_page(s, reason, error):
    """The instruction cannot go on, and will be executed again: leave for `reason`."""
    store64(s + XLAT_KIND, TO_FAULT)
    store64(s + FAULT_ERRNO, error)
    store64(s + EXIT, reason)
    store64(s + LEAVE, LEAVE_EXIT)
    store64(s + MMIO_WRITES, 0)
    return 0


@member
def fault_exit(s, gpa, access, outcome):
    """Leave for KVM_EXIT_MEMORY_FAULT; `access` as LOG has it."""
    store64(s + FAULT_GPA, gpa & ~4095)
    store64(s + FAULT_SIZE, 4096)
    store64(s + FAULT_FLAGS, access & ATTRIBUTE_PRIVATE)
    store64(s + FAULTS, load64(s + FAULTS) + 1)
    note_now(s, gpa, access, outcome)
    return leave_without_page(s, EXIT_MEMORY_FAULT, EHWPOISON if outcome == FAULT_POISONED else EFAULT)


@compiled
def client_error(s, error):
    """Leave because the client's memory answered `-error`; EINTR is a signal to the vCPU's thread, EAGAIN a retry."""
    if error == EAGAIN:
        return retry(s)
    if error == EINTR:
        return leave_without_page(s, EXIT_INTERRUPTED, error)
    store64(s + FAULTS, load64(s + FAULTS) + 1)
    return leave_without_page(s, EXIT_EFAULT, error)


@compiled
def outcome_of(result):
    """What the log says when the client's memory answered `result`."""
    if result >= 0:
        return HAD_PAGE
    return GAVE_UP if result == -EINTR else FAULT_NO_PAGE


@member
def injected(s, gpa, access):
    """Have befall an access what the embedder wants: 1, and LEAVE tells; or 0, and it goes on."""
    what = call3(load64(load64(s + VM) + INJECT), s, gpa, access)
    store64(s + XLAT_WATCHED, what)
    if what in (INJECT_NOTHING, INJECT_WATCH):
        return 0
    if what == INJECT_RETRY:
        retry(s)
    elif what == INJECT_GIVE_UP:
        client_error(s, EINTR)
    elif what == INJECT_EFAULT or (what == INJECT_POISON and access & ATTRIBUTE_PRIVATE == 0):
        store64(s + FAULT_GPA, gpa & ~4095)
        note_now(s, gpa, access, FAULT_NO_PAGE if what == INJECT_EFAULT else FAULT_POISONED)
        client_error(s, EFAULT if what == INJECT_EFAULT else EHWPOISON)
    elif what == INJECT_POISON:
        fault_exit(s, gpa, access, FAULT_POISONED)
    else:
        wanted = access ^ ATTRIBUTE_PRIVATE if what == INJECT_OTHER_KIND else access
        fault_exit(s, gpa, wanted, FAULT_INJECTED)
    return 1


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
        store64(s + LOG_SINCE, rdtsc())
        store64(s + LOG_SLOT, load64(slot + SLOT_ID) + 1)
        gpa = (load64(slot + SLOT_BASE_GFN) + index) << 12
        leave_guest(s)
        pages = call4(function, vm, client, host, pages << 1 | write)
        changed = enter_guest(s)
        note(s, gpa, write, TO_DO_AGAIN if changed and pages >= 0 else outcome_of(pages))
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
    store64(s + LOG_SINCE, rdtsc())
    store64(s + LOG_SLOT, 0)
    leave_guest(s)
    result = call4(load64(vm + (REMOTE_WRITE if write else REMOTE_READ)), vm, load64(s + XLAT_CLIENT), buffer, size)
    changed = enter_guest(s)
    note(s, gpa, write, WENT_REMOTE if result >= 0 else outcome_of(result))
    if result < 0:
        return client_error(s, -result)
    if changed and not write:
        return retry(s)
    return 1


# The resolution ----------


@member
def resolve(s, gpa, access):
    """The host address of guest-physical `gpa`, dirty-logged for a WRITE, or 0: XLAT_KIND says why.

    `access`: READ, WRITE or FETCH. XLAT_GPA is the gpa. TO_MMIO and TO_REMOTE (XLAT_CLIENT) leave LEAVE alone; TO_FAULT
    and TO_RETRY set it.
    """
    vm, write = load64(s + VM), access & WRITE
    rule = load64(vm + PRIVATE_MEMORY)
    bit = gpa & load64(vm + PRIVATE_BIT)
    gpa -= bit
    gfn = lshr(gpa, 12)
    private, agreed = 0, 0
    if rule != PRIVATE_NEVER:
        agreed = find_attributes(s, vm, gfn) & ATTRIBUTE_PRIVATE
        private = agreed
        if rule != PRIVATE_BY_ATTRIBUTE:
            private = ATTRIBUTE_PRIVATE if (bit != 0) == (rule == PRIVATE_BY_BIT) else 0
    if load64(vm + INJECT) != 0 and injected(s, gpa, access | private):
        return 0
    if private != agreed:
        return fault_exit(s, gpa, access | private, FAULT_DISAGREES)
    store64(s + XLAT_GPA, gpa)
    store64(s + XLAT_KIND, TO_HOST)
    slot = find_slot(s, vm, gfn)
    if slot == 0:
        if private:
            return fault_exit(s, gpa, access | private, FAULT_NO_SLOT)
        store64(s + XLAT_KIND, TO_MMIO)
        return 0
    index = gfn - load64(slot + SLOT_BASE_GFN)
    offset = (index << 12) | (gpa & 4095)
    if private:
        memory = load64(slot + SLOT_PRIVATE)
        if memory == 0:
            return fault_exit(s, gpa, access | private, FAULT_NO_GMEM)
    else:
        if write and load64(slot + SLOT_FLAGS) & SLOT_READONLY:
            store64(s + XLAT_KIND, TO_MMIO)
            return 0
        memory = load64(slot + SLOT_HOST)
        if memory != 0:
            result = touch(s, slot, index, write)
            if result != 0:
                return retry(s) if result > 0 else client_error(s, -result)
    if write and mark_dirty(s, slot, index) == 0:
        return retry(s)
    if memory == 0:
        store64(s + XLAT_CLIENT, load64(slot + SLOT_CLIENT) + offset)
        store64(s + XLAT_KIND, TO_REMOTE)
        return 0
    return memory + offset
