"""The compiled functions that this package calls, as Python callables. Addresses of blocks are plain integers.

The real ones are compiled.Compiled, which only workers import; tests have others.
"""

from __future__ import annotations

from typing import Protocol


class Native(Protocol):
    host_khz: int
    """Frequency of the host's time stamp counter."""

    table: int
    """Address of the function table."""

    def address(self, name: str) -> int:
        """Of a compiled function, for compiled code to call."""

    def call(self, name: str, *arguments: int) -> int:
        """Call a compiled function by its name, without the GIL."""

    def prepare(self, cpu: int, vm: int) -> None:
        """Make a zeroed vCPU block ready to run in this VM: function table, TLBs, code cache."""

    def prepare_vm(self, vm: int) -> None:
        """Fill in what a VM block has for fault resolution: functions that reach the client."""

    def derive(self, cpu: int) -> int:
        """Recompute what the processor derives from its architectural state."""

    def arm_breakpoints(self, cpu: int) -> int:
        """The same after a change of debug registers or of what the debugger wants."""

    def retire(self, cpu: int) -> int:
        """Step over the instruction at RIP, which has been carried out; it may trap, or a debug exit become due."""

    def flush_translations(self, vm: int) -> int:
        """Have every vCPU of the VM drop its translations; on return none runs on old ones."""

    def flush(self, cpu: int) -> int:
        """Have one vCPU drop its translations before it goes on."""

    def request(self, cpu: int, bits: int) -> int:
        """Set bits of state.REQUEST, and wake a vCPU that waits."""

    def prefault(self, cpu: int, gpa: int) -> int:
        """Make a guest-physical page present, from outside the guest: where it leads (jit.mmu.layout, TO_*)."""

    def reload_pdptes(self, cpu: int) -> int:
        """Load the PDPTE registers of PAE paging from memory: 1, or 0 with the registers as they were."""

    def translate_debug(self, cpu: int, linear: int) -> int:
        """A linear address's gpa as the supervisor would read it, or -1."""

    def read_phys(self, cpu: int, gpa: int, size: int, buffer: int) -> int:
        """Copy guest memory: 0 or -errno."""

    def write_phys(self, cpu: int, gpa: int, size: int, buffer: int) -> int:
        """Copy to guest memory, dirty-logged: 0 or -errno."""

    def take_dirty(self, bitmap: int, words: int, into: int) -> int:
        """Move the words of a dirty bitmap elsewhere, leaving zeros: 1 if a bit was set."""

    def clear_dirty(self, bitmap: int, words: int, mask: int) -> int:
        """Clear the bits of a dirty bitmap that are set in a mask: 1 if one of them was set."""

    def reset_ring(self, cpu: int, bitmaps: int, slots: int) -> int:
        """Take back the entries of a vCPU's dirty ring that the client has harvested: how many."""

    def add_zone(self, zones: int, address: int, size: int, pio: int) -> int:
        """Register a zone of coalesced MMIO: 0 or -ENOSPC."""

    def remove_zones(self, zones: int, address: int, size: int, pio: int) -> int:
        """Unregister the zones of coalesced MMIO that hold a range."""

    def ring_reserve(self, ring: int, slots: int) -> int:
        """Take slots of a ring (kvmfs.kvm.ring): the first one's number."""

    def ring_commit(self, ring: int, slot: int) -> int:
        """Let the reader see the record that begins in a slot."""

    def log_reserve(self, vm: int) -> int:
        """Take a record of the fault log (kvmfs.kvm.fault_log): its number, counted from 0."""

    def rdtsc(self) -> int:
        """The host's time stamp counter."""
