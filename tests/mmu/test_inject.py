"""What the embedder wants to befall an access (INJECT), and what it is told of accesses (LOG)."""

from __future__ import annotations

from errno import EFAULT, EINTR

import pytest
from kvmfs.jit import state as S
from kvmfs.jit.mmu import layout as M

from . import naive
from .machine import PAGE, Machine

PRIVATE = naive.PRIVATE


def machine(**changes) -> Machine:
    """Pages 0x10 to 0x1f with a guest_memfd."""
    return Machine(naive.Memory([naive.Slot(0x10, 16, bytearray(16 * PAGE), bytearray(16 * PAGE))], **changes))


def seen(made: Machine, answer: int = M.INJECT_NOTHING) -> list[tuple[int, int]]:
    """Decide all accesses alike, and note them."""
    asked: list[tuple[int, int]] = []

    def decide(gpa: int, access: int) -> int:
        asked.append((gpa, access))
        return answer

    made.inject(decide)
    return asked


def test_every_resolution_is_asked_about_with_what_it_is() -> None:
    made = machine(attributes={0x12: PRIVATE})
    asked = seen(made)
    made.resolve(0x10123)
    made.resolve(0x12345, True)
    made("resolve", 0x99000, M.FETCH)
    assert asked == [(0x10123, M.READ), (0x12345, M.WRITE | PRIVATE), (0x99000, M.FETCH)]


@pytest.mark.parametrize("private", [0, PRIVATE])
def test_memory_faults_true_and_inverted(private: int) -> None:
    made = machine(attributes={0x12: private})
    seen(made, M.INJECT_MEMORY_FAULT)
    assert made.resolve(0x12345) == ("memory_fault", 0x12000, private)
    seen(made, M.INJECT_OTHER_KIND)
    assert made.resolve(0x12345) == ("memory_fault", 0x12000, private ^ PRIVATE)
    assert made.faults == [(0x12345, private, M.FAULT_INJECTED), (0x12345, private ^ PRIVATE, M.FAULT_INJECTED)]
    assert [entry[3] for entry in made.log] == [0, 0]  # the slot
    assert made.calls == []  # nobody has been asked for a page
    made.inject(None)
    assert made.resolve(0x12345)[0] == "host"


def test_poison_of_shared_and_private_memory() -> None:
    made = machine(attributes={0x12: PRIVATE})
    seen(made, M.INJECT_POISON)
    assert made("resolve", 0x12345, 0) == 0
    assert made.vcpu[S.EXIT] == S.EXIT_MEMORY_FAULT
    assert (made.vcpu[S.FAULT_ERRNO], made.vcpu[S.FAULT_FLAGS]) == (M.EHWPOISON, PRIVATE)
    assert made.resolve(0x11345) == ("efault", M.EHWPOISON)
    assert made.vcpu[S.FAULT_GPA] == 0x11000


def test_efault_retry_and_a_signal() -> None:
    made = machine()
    seen(made, M.INJECT_EFAULT)
    assert made.resolve(0x11345) == ("efault", EFAULT)
    seen(made, M.INJECT_RETRY)
    assert made.resolve(0x11345) == ("retry",)
    seen(made, M.INJECT_GIVE_UP)
    made("resolve", 0x11345, 0)
    assert (made.vcpu[S.EXIT], made.vcpu[S.FAULT_ERRNO]) == (S.EXIT_INTERRUPTED, EINTR)
    assert made.faults == [(0x11345, 0, M.FAULT_NO_PAGE)]


def test_a_watched_page_stays_out_of_the_tlb_and_others_do_not() -> None:
    made = machine()
    made.inject(lambda gpa, access: M.INJECT_WATCH if gpa >> 12 == 0x11 else M.INJECT_NOTHING)
    for _ in range(2):
        assert made.translate(0x11008) == ("host", 0, "shared", 0x1008)
        assert made.translate(0x12008) == ("host", 0, "shared", 0x2008)
    pages = {made.tlb[page * M.TLB_ENTRY + kind * M.TLB_SIZE] for page in (0x11, 0x12) for kind in range(M.TLB_KINDS)}
    assert pages == {0x12000, M.TLB_INVALID}


def test_the_log_has_slot_and_linear_address_of_what_left_the_fast_path() -> None:
    made = machine()
    made.translate(0x11008)
    made.translate(0x11008, naive.Access(write=True))
    made.translate(0x11010)
    assert made.log == [(0x11000, 0, M.HAD_PAGE, 0, 0x11008), (0x11000, 1, M.HAD_PAGE, 0, 0x11008)]


def test_a_change_while_the_page_was_faulted_in_is_logged() -> None:
    made = machine()
    made.hook = lambda: made.vm.__setitem__(M.GENERATION, 7)
    assert made.resolve(0x11000) == ("retry",)
    assert made.faults == [(0x11000, 0, M.TO_DO_AGAIN)]


def test_an_access_of_kvms_own_has_no_linear_address_and_no_rules() -> None:
    made = machine()
    asked = seen(made, M.INJECT_EFAULT)
    assert made("read_phys", 0x11000, 8, made.vcpu.address + S.BOUNCE) == 0
    assert asked == []
    assert [entry[4] for entry in made.log] == [S.NOT_LINEAR]
