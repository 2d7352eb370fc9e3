"""Events between instructions: NMIs and their blocking, interrupts, windows, what the embedder injects."""

from __future__ import annotations

import pytest
from kvmfs.jit import state as S

from .assemble import assemble
from .test_system import CODE, KERNEL_CS, STACK, System

HANDLER, LOG = 0x165000, 0x166000


@pytest.fixture
def guest() -> System:
    return System()


def handler(guest: System, vector: int, text: str, at: int = HANDLER) -> None:
    guest.write(at, assemble(text, at))
    guest.gate(vector, at)


def ask(guest: System, **words: int) -> None:
    """Pending events, by their names in state.py."""
    for name, value in words.items():
        guest[getattr(S, name)] = value
    guest[S.REQUEST] = S.REQ_EVENT


def test_nmi_whatever_if_is(guest: System) -> None:
    ask(guest, NMI_PENDING=1)
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (S.NMI, CODE)
    assert (guest[S.NMI_PENDING], guest[S.NMI_MASKED]) == (0, 1)


def test_second_nmi_waits_for_iret(guest: System) -> None:
    """Not for STI, not for the end of the handler's code: for IRET, and then it comes at once."""
    handler(guest, S.NMI, f"inc dword ptr [{LOG:#x}]; sti; nop; mov eax, [{LOG:#x}]; iretq")
    ask(guest, NMI_PENDING=2)
    assert guest.execute(f"mov ebx, [{LOG:#x}]; hlt") == S.EXIT_HLT
    assert (guest[S.RAX], guest[S.RBX]) == (2, 2)  # both before the first instruction, one after the other
    assert (guest[S.NMI_PENDING], guest[S.NMI_MASKED], guest[S.RSP]) == (0, 0, STACK)


def test_nmi_waits_while_masked(guest: System) -> None:
    ask(guest, NMI_PENDING=1, NMI_MASKED=1)
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert (guest[S.RIP], guest[S.NMI_PENDING]) == (CODE + 2, 1)


@pytest.mark.parametrize("shadow", [1, 2], ids=["sti", "mov ss"])
@pytest.mark.parametrize(("event", "value", "vector"), [("NMI_PENDING", 1, S.NMI), ("INTR_REQUEST", 0x41, 0x40)])
def test_shadows_hold_events_for_one_instruction(
    guest: System, shadow: int, event: str, value: int, vector: int
) -> None:
    guest.rflags, guest[S.INTR_SHADOW] = S.IF | 2, shadow
    ask(guest, **{event: value})
    assert guest.execute("nop; nop; hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (vector, CODE + 1)


def test_sti_lets_one_instruction_pass(guest: System) -> None:
    ask(guest, INTR_REQUEST=0x41)
    assert guest.execute("nop; sti; nop; nop; hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (0x40, CODE + 3)


def test_nmi_comes_before_an_interrupt(guest: System) -> None:
    """The handler runs with IF clear, so the interrupt follows its IRET."""
    handler(guest, S.NMI, "mov rbx, [rsp]; iretq")
    guest.rflags = S.IF | 2
    ask(guest, NMI_PENDING=1, INTR_REQUEST=0x41)
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert guest[S.RBX] == CODE
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (0x40, CODE)


def test_window_opens_with_if(guest: System) -> None:
    """After STI's shadow; not while an interrupt of ours is to be delivered."""
    ask(guest, IRQ_WINDOW=1)
    assert guest.execute("nop; sti; nop; nop; hlt") == S.EXIT_IRQ_WINDOW
    assert guest[S.RIP] == CODE + 3


# What the embedder injects


def test_injected_interrupt_ignores_if(guest: System) -> None:
    """It has been accepted already."""
    guest[S.INTR_INJECTED], guest[S.INTR_VECTOR] = 1, 0x44
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.INTR_INJECTED]) == (0x44, 0)


def test_injected_nmi_masks(guest: System) -> None:
    guest[S.NMI_INJECTED] = 1
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.NMI_INJECTED], guest[S.NMI_MASKED]) == (S.NMI, 0, 1)


def test_one_of_several_comes_first(guest: System) -> None:
    """Exception, NMI, interrupt (kvm_check_and_inject_events); the others stay for the next entry."""
    guest[S.EXC_INJECTED], guest[S.EXC_VECTOR] = 1, S.UD
    guest[S.INTR_INJECTED], guest[S.INTR_VECTOR] = 1, 0x44
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.INTR_INJECTED]) == (S.UD, 1)


@pytest.mark.parametrize("how", ["INTR_INJECTED", "INTR_REQUEST"])
def test_interrupt_whose_delivery_faults_is_gone(guest: System, how: str) -> None:
    """The fault's handler returns to the interrupted code, and the interrupt does not come again."""
    guest.gate(0x44, HANDLER, kind=5)  # no gate of 64-bit mode
    handler(guest, S.GP, "mov rbx, [rsp]; add rsp, 8; iretq", HANDLER + 0x100)
    guest.rflags = S.IF | 2
    if how == "INTR_INJECTED":
        guest[S.INTR_INJECTED], guest[S.INTR_VECTOR] = 1, 0x44
    else:
        ask(guest, INTR_REQUEST=0x45)
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert guest[S.RBX] == 0x44 * 8 + 3  # IDT, EXT
    assert (guest[S.RIP], guest[S.RSP], guest[S.CS + S.SEL]) == (CODE + 2, STACK, KERNEL_CS)
    assert guest[S.INTR_INJECTED] == guest[S.INTR_REQUEST] == 0


def test_rf_between_iterations(guest: System) -> None:
    """SDM vol. 3, 17.3.1.1: set in the image of what comes between iterations of a string instruction, then gone."""
    handler(guest, S.NMI, f"mov rax, [rsp + 16]; mov [{LOG:#x}], rax; pushf; pop rbx; iretq")
    guest[S.RDI], guest[S.RCX] = 0x150000, 0x3000
    guest.write(CODE, assemble("rep stosb; hlt", CODE))
    guest[S.RIP] = CODE
    assert guest.step() == S.EXIT_DEBUG
    assert (guest[S.RIP], guest[S.RCX]) == (CODE, 0x2FFF)
    ask(guest, NMI_PENDING=1)
    assert guest.run() == S.EXIT_HLT
    assert guest.words(LOG, 1)[0] & S.RF
    assert (guest[S.RCX], guest[S.RIP], guest.rflags & S.RF) == (0, CODE + 3, 0)
