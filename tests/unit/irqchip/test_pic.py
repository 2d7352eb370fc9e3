"""The two i8259s, by LINT0 to the boot processor."""

from __future__ import annotations

import pytest

from kvmfs.abi import apic as A
from tests.unit.irqchip.machine import WAIT, Guest

INIT = "".join(
    f"mov al, {value}\nout {port}, al\n"
    for port, value in (
        (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1),
        (0x21, 0), (0xA1, 0),
    )
)  # fmt: skip
EOI = "mov al, 0x20\nout 0xa0, al\nout 0x20, al\n"


def pic_guest(text: str = WAIT) -> Guest:
    """Vectors 0x20 to 0x2f; the PIC's line gets to the processor by LINT0."""
    guest = Guest(INIT + text)
    guest.cpus[0].set_register(A.APIC_LVT0, A.APIC_DM_EXTINT)
    return guest


@pytest.mark.parametrize(("gsi", "vector"), [(1, 0x21), (7, 0x27), (8, 0x28), (15, 0x2F)])
def test_vectors(gsi: int, vector: int) -> None:
    guest = pic_guest("out 0x77, al\n" + WAIT)
    guest.next_vector()
    guest.line(gsi, 1)
    assert guest.next_vector() == vector
    assert guest.pic(0).isr == (4 if gsi > 7 else 1 << gsi)
    assert guest.pic(1).isr == (1 << gsi - 8 if gsi > 7 else 0)


def test_priorities_and_eoi() -> None:
    guest = pic_guest("out 0x77, al\nsti\nnop\n" + EOI + EOI + "hlt")
    guest.next_vector()
    for gsi in (5, 3, 9):
        guest.line(gsi, 1)
    # 9 comes by input 2, before 3; each further one after the EOI of the one before
    assert [guest.next_vector() for _ in range(3)] == [0x29, 0x23, 0x25]


def test_a_masked_input_waits() -> None:
    guest = pic_guest("mov al, 0xff\nout 0x21, al\nout 0x77, al\nsti\nnop\nout 0x77, al\nmov al, 0\nout 0x21, al\nhlt")
    guest.next_vector()
    assert guest.line(4, 1) == -1
    assert guest.next_vector() == 0xFF
    assert guest.next_vector() == 0x24


def test_levels() -> None:
    guest = pic_guest("mov dx, 0x4d0\nmov al, 0xff\nout dx, al\nin al, dx\nout 0x77, al\nsti\nnop\n" + EOI + "nop\nhlt")
    assert guest.next_vector() == 0xF8  # 0, 1 and 2 are edges on any EISA board
    guest.line(5, 1)
    assert [guest.next_vector() for _ in range(2)] == [0x25, 0x25]


def test_automatic_eoi() -> None:
    guest = Guest(INIT.replace("mov al, 1\nout 33", "mov al, 3\nout 33", 1) + "out 0x77, al\n" + WAIT)
    guest.cpus[0].set_register(A.APIC_LVT0, A.APIC_DM_EXTINT)
    guest.next_vector()
    for gsi in (5, 3):
        guest.line(gsi, 1)
    assert [guest.next_vector() for _ in range(2)] == [0x23, 0x25]
    assert guest.pic(0).isr == 0


def test_registers() -> None:
    guest = pic_guest("mov al, 0xf0\nout 0x21, al\nin al, 0x21\nout 0x77, al\nin al, 0x20\nout 0x77, al\n")
    guest.line(6, 1)
    # IRR shows what came before the initialisation cleared edges: nothing
    assert [guest.next_vector() for _ in range(2)] == [0xF0, 0]


def test_lint0_decides() -> None:
    guest = Guest(INIT + "sti\nnop\nout 0x77, al\nhlt")
    guest.cpus[0].set_register(A.APIC_LVT0, A.APIC_LVT_MASKED | A.APIC_DM_EXTINT)
    guest.line(3, 1)
    guest.set_regs(rax=0)
    assert guest.next_vector() == 0
