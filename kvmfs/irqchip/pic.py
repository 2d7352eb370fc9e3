"""The two i8259s (arch/x86/kvm/i8259.c, the 8259A's data sheet). All with the board's lock held."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi.irqchip import PicState
from kvmfs.abi.layout import offset_of
from kvmfs.irqchip.routing import change_source
from kvmfs.irqchip.words import Board
from kvmfs.jit.build import compiled
from kvmfs.jit.raw import load8, load64, shl, store8, store64

MASTER, SLAVE = Board.PICS, Board.PICS + 16
OUTPUT, WAKE, STATES = Board.PIC_OUTPUT, Board.PIC_WAKE, Board.PIC_STATES
LAST_IRR, IRR, IMR, ISR = (offset_of(PicState, f) for f in ("last_irr", "irr", "imr", "isr"))
PRIORITY_ADD, IRQ_BASE, READ_ISR = (offset_of(PicState, f) for f in ("priority_add", "irq_base", "read_reg_select"))
POLL, SPECIAL_MASK, INIT_STATE = (offset_of(PicState, f) for f in ("poll", "special_mask", "init_state"))
AUTO_EOI, ROTATE = offset_of(PicState, "auto_eoi"), offset_of(PicState, "rotate_on_auto_eoi")
NESTED, INIT4 = offset_of(PicState, "special_fully_nested_mode"), offset_of(PicState, "init4")
ELCR, ELCR_MASK = offset_of(PicState, "elcr"), offset_of(PicState, "elcr_mask")
NONE: Final = 8
UPDATE: Final = 1 << 16  # in what a write returns: the output is to be looked at


@compiled
def first(pic, board):
    return 1 if pic == board + MASTER else 0


@compiled
def set_input(pic, irq, level):
    """pic_set_irq1: 0 coalesced, -1 masked."""
    bit, result = 1 << irq, 1
    irr, last = load8(pic + IRR), load8(pic + LAST_IRR)
    if load8(pic + ELCR) & bit:
        if level:
            result = 0 if irr & bit else 1
            store8(pic + IRR, irr | bit)
            store8(pic + LAST_IRR, last | bit)
        else:
            store8(pic + IRR, irr & ~bit)
            store8(pic + LAST_IRR, last & ~bit)
    elif level:
        if last & bit == 0:
            result = 0 if irr & bit else 1
            store8(pic + IRR, irr | bit)
        store8(pic + LAST_IRR, last | bit)
    else:
        store8(pic + LAST_IRR, last & ~bit)
    return -1 if load8(pic + IMR) & bit else result


@compiled
def priority_of(pic, mask):
    """Of the most urgent request in `mask`: 0 is highest; NONE."""
    if mask == 0:
        return NONE
    priority = 0
    while mask & 1 << ((priority + load8(pic + PRIORITY_ADD)) & 7) == 0:
        priority += 1
    return priority


@compiled
def wanted(board, pic):
    """pic_get_irq: the input to serve now, or -1."""
    priority = priority_of(pic, load8(pic + IRR) & ~load8(pic + IMR))
    if priority == NONE:
        return -1
    serviced = load8(pic + ISR)
    if load8(pic + NESTED) and first(pic, board):
        serviced &= ~(1 << 2)
    if priority < priority_of(pic, serviced):
        return (priority + load8(pic + PRIORITY_ADD)) & 7
    return -1


@compiled
def update(board):
    """pic_update_irq: the output to the processor."""
    if wanted(board, board + SLAVE) >= 0:
        set_input(board + MASTER, 2, 1)
        set_input(board + MASTER, 2, 0)
    if load64(board + OUTPUT) == 0:
        store64(board + WAKE, 1)
    store64(board + OUTPUT, 1 if wanted(board, board + MASTER) >= 0 else 0)


@compiled
def set_pin(board, pin, source, level):
    """kvm_pic_set_irq; `pin` 8 to 15 are the slave's."""
    up = change_source(board + STATES + 8 * pin, source, level)
    result = set_input(board + MASTER + 16 * (pin >> 3), pin & 7, up)
    update(board)
    return result


# What the processor acknowledges. An input whose service ends is reported by its pin plus one, for notifiers.


@compiled
def clear_isr(board, pic, irq):
    """pic_clear_isr."""
    store8(pic + ISR, load8(pic + ISR) & ~(1 << irq))
    return irq + 1 if first(pic, board) else irq + 9


@compiled
def acknowledge(board, pic, irq):
    """pic_intack: what ended, by automatic EOI, or 0."""
    bit = 1 << irq
    store8(pic + ISR, load8(pic + ISR) | bit)
    if load8(pic + ELCR) & bit == 0:
        store8(pic + IRR, load8(pic + IRR) & ~bit)
    if load8(pic + AUTO_EOI) == 0:
        return 0
    if load8(pic + ROTATE):
        store8(pic + PRIORITY_ADD, (irq + 1) & 7)
    return clear_isr(board, pic, irq)


@compiled
def read_vector(board):
    """kvm_pic_read_irq: the vector, and above bit 8 what ended: a byte of the master, a byte of the slave."""
    store64(board + OUTPUT, 0)
    master, slave, ended = board + MASTER, board + SLAVE, 0
    irq = wanted(board, master)
    if irq < 0:
        vector = load8(master + IRQ_BASE) + 7  # spurious
    else:
        ended = acknowledge(board, master, irq) << 8
        vector = load8(master + IRQ_BASE) + irq
        if irq == 2:
            second = wanted(board, slave)
            if second >= 0:
                ended |= acknowledge(board, slave, second) << 16
            else:
                second = 7
            vector = load8(slave + IRQ_BASE) + second
    update(board)
    return vector & 0xFF | ended


# Registers: writes return a bitmap of the pins whose service ended, with UPDATE


@compiled
def reset(board, pic, heard):
    """kvm_pic_reset (ICW1). `heard`: some processor listens."""
    edges = load8(pic + IRR) & ~load8(pic + ELCR)
    store8(pic + LAST_IRR, 0)
    store8(pic + IRR, load8(pic + IRR) & load8(pic + ELCR))
    store8(pic + IMR, 0)
    store8(pic + PRIORITY_ADD, 0)
    store8(pic + SPECIAL_MASK, 0)
    store8(pic + READ_ISR, 0)
    if load8(pic + INIT4) == 0:
        store8(pic + NESTED, 0)
        store8(pic + AUTO_EOI, 0)
    store8(pic + INIT_STATE, 1)
    if heard == 0:
        return 0
    store8(pic + ISR, load8(pic + ISR) & ~edges)
    return edges if first(pic, board) else edges << 8


@compiled
def end_service(board, pic, irq):
    pin = clear_isr(board, pic, irq) - 1
    return shl(1, pin) | UPDATE


@compiled
def write_command(board, pic, value, heard):
    """OCW2, OCW3 or ICW1."""
    if value & 0x10:
        store8(pic + INIT4, value & 1)
        return reset(board, pic, heard)
    if value & 0x08:
        if value & 0x04:
            store8(pic + POLL, 1)
        if value & 0x02:
            store8(pic + READ_ISR, value & 1)
        if value & 0x40:
            store8(pic + SPECIAL_MASK, value >> 5 & 1)
        return 0
    command, irq = value >> 5, value & 7
    if command == 0 or command == 4:
        store8(pic + ROTATE, command >> 2)
        return 0
    if command == 6:
        store8(pic + PRIORITY_ADD, (value + 1) & 7)
        return UPDATE
    if command == 2:
        return 0
    if command == 1 or command == 5:
        priority = priority_of(pic, load8(pic + ISR))
        if priority == NONE:
            return 0
        irq = (priority + load8(pic + PRIORITY_ADD)) & 7
    if command == 5 or command == 7:
        store8(pic + PRIORITY_ADD, (irq + 1) & 7)
    return end_service(board, pic, irq)


@compiled
def write_data(pic, value):
    """OCW1, ICW2 to ICW4: the inputs that were unmasked."""
    state = load8(pic + INIT_STATE)
    if state == 0:
        unmasked = load8(pic + IMR) & ~value
        store8(pic + IMR, value)
        return unmasked
    if state == 1:
        store8(pic + IRQ_BASE, value & 0xF8)
        store8(pic + INIT_STATE, 2)
    elif state == 2:
        store8(pic + INIT_STATE, 3 if load8(pic + INIT4) else 0)
    else:
        store8(pic + NESTED, value >> 4 & 1)
        store8(pic + AUTO_EOI, value >> 1 & 1)
        store8(pic + INIT_STATE, 0)
    return 0


@compiled
def poll(board, pic):
    """pic_poll_read: the answer, and from bit 8 on the bitmap of ended pins."""
    irq = wanted(board, pic)
    if irq < 0:
        update(board)
        return 7
    if first(pic, board) == 0:
        master = board + MASTER
        store8(master + ISR, load8(master + ISR) & ~(1 << 2))
        store8(master + IRR, load8(master + IRR) & ~(1 << 2))
    store8(pic + IRR, load8(pic + IRR) & ~(1 << irq))
    ended = end_service(board, pic, irq)
    return irq | 0x80 | ended << 8


@compiled
def read_port(board, pic, odd):
    """pic_ioport_read: as poll()."""
    if load8(pic + POLL):
        store8(pic + POLL, 0)
        return poll(board, pic)
    if odd:
        return load8(pic + IMR)
    return load8(pic + ISR) if load8(pic + READ_ISR) else load8(pic + IRR)
