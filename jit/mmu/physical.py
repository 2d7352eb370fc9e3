"""Guest-physical accesses on KVM's own behalf, as kvm_vcpu_read_guest and kvm_vcpu_write_guest make them.

They see a memslot's shared side, whatever the attributes say, and no MMIO: userspace_addr is what KVM has. The vCPU's
own thread calls them, in or out of the guest, but never within an instruction: host addresses and TLB entries from
before are gone afterwards. EXIT, EXC_* and LEAVE stay as they are (but for prefault, which is the guest's own access).
"""

from errno import EAGAIN, EFAULT

from ..build import compiled
from ..raw import call4, load8, load16, load32, load64, lshr, memcpy, store8, store16, store32, store64
from ..state import LEAVE, LEAVE_NEXT, MODE, NOT_LINEAR, VM, XLAT_KIND, XLAT_LINEAR
from .layout import (
    REMOTE_READ,
    REMOTE_WRITE,
    SLOT_BASE_GFN,
    SLOT_CLIENT,
    SLOT_FLAGS,
    SLOT_HOST,
    SLOT_READONLY,
    TO_RETRY,
)
from .members import member
from .resolve import find_slot, mark_dirty, resolve, touch
from .tlb import acknowledge_flush, enter_guest, leave_guest


@compiled
def copy(dst, src, size):
    """Copy; operands of machine words as one load and one store, so that they are seen whole."""
    if size == 8:
        store64(dst, load64(src))
    elif size == 4:
        store32(dst, load32(src))
    elif size == 2:
        store16(dst, load16(src))
    elif size == 1:
        store8(dst, load8(src))
    else:
        memcpy(dst, src, size)


@compiled
def _copy_in_page(s, gpa, size, buffer, write):
    """Copy within one page: 0, -errno, or 1 when translations changed before anything was copied."""
    vm, gfn = load64(s + VM), lshr(gpa, 12)
    slot = find_slot(s, vm, gfn)
    if slot == 0 or (write and load64(slot + SLOT_FLAGS) & SLOT_READONLY):
        return -EFAULT
    index = gfn - load64(slot + SLOT_BASE_GFN)
    offset = (index << 12) | (gpa & 4095)
    memory = load64(slot + SLOT_HOST)
    if memory == 0:
        if write and mark_dirty(s, slot, index) == 0:
            return -EAGAIN
        client = load64(slot + SLOT_CLIENT) + offset
        function = load64(vm + (REMOTE_WRITE if write else REMOTE_READ))
        leave_guest(s)
        result = call4(function, vm, client, buffer, size)
        enter_guest(s)
        return result
    result = touch(s, slot, index, write)
    if result != 0:
        return result
    if write:
        if mark_dirty(s, slot, index) == 0:
            return -EAGAIN
        copy(memory + offset, buffer, size)
    else:
        copy(buffer, memory + offset, size)
    return 0


@compiled
def _copy_pages(s, gpa, size, buffer, write):
    outside = load64(s + MODE) == 0
    if outside:
        enter_guest(s)
    store64(s + XLAT_LINEAR, NOT_LINEAR)
    result, done = 0, 0
    while done < size and result >= 0:
        left = 4096 - ((gpa + done) & 4095)
        now = size - done if size - done < left else left
        result = _copy_in_page(s, gpa + done, now, buffer + done, write)
        if result > 0 or result == -EAGAIN:
            acknowledge_flush(s)
            result = 0
        elif result == 0:
            done += now
    if outside:
        leave_guest(s)
    return result


@member
def read_phys(s, gpa, size, buffer):
    """Copy shared guest memory at `gpa` to `buffer`: 0 or -errno (EFAULT: no memslot, or no client page)."""
    return _copy_pages(s, gpa, size, buffer, 0)


@member
def prefault(s, gpa):
    """KVM_PRE_FAULT_MEMORY of a page, out of the guest: resolve() for reading -> XLAT_KIND, never TO_RETRY.

    TO_FAULT: EXIT tells whether it is a memory fault, FAULT_* what.
    """
    enter_guest(s)
    store64(s + XLAT_LINEAR, NOT_LINEAR)
    resolve(s, gpa, 0)
    while load64(s + XLAT_KIND) == TO_RETRY:
        acknowledge_flush(s)
        resolve(s, gpa, 0)
    leave_guest(s)
    store64(s + LEAVE, LEAVE_NEXT)
    return load64(s + XLAT_KIND)


@member
def write_phys(s, gpa, size, buffer):
    """Copy `buffer` to shared guest memory at `gpa`, dirty-logged: 0 or -errno (EFAULT also: a read-only slot)."""
    return _copy_pages(s, gpa, size, buffer, 1)
