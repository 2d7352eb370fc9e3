"""The group of compiled functions "mmu", and their slots in the function table.

Compiled code of other groups may as well import the functions from their modules: each is a call through the table.
"""

from . import access  # noqa: F401  (the last of the line: imports all others, each of which adds its functions)
from .members import group

SELECT_TLB = group.slot("select_tlb")
TLB_INIT = group.slot("tlb_init")
TLB_FLUSH = group.slot("tlb_flush")
TLB_FLUSH_PAGE = group.slot("tlb_flush_page")
ENTER_GUEST = group.slot("enter_guest")
LEAVE_GUEST = group.slot("leave_guest")
ACKNOWLEDGE_FLUSH = group.slot("acknowledge_flush")
RESOLVE = group.slot("resolve")
WALK = group.slot("walk")
LOAD_PDPTES = group.slot("load_pdptes")
TRANSLATE = group.slot("translate")
READ_SLOW = group.slot("read_slow")
WRITE_SLOW = group.slot("write_slow")
PROBE_WRITE = group.slot("probe_write")
RMW_READ_SLOW = group.slot("rmw_read_slow")
RMW_WRITE_SLOW = group.slot("rmw_write_slow")
READ_PHYS = group.slot("read_phys")
WRITE_PHYS = group.slot("write_phys")
RELOAD_PDPTES = group.slot("reload_pdptes")
PREFAULT = group.slot("prefault")
REMOTE_COPY = group.slot("remote_copy")
TRANSLATE_DEBUG = group.slot("translate_debug")
