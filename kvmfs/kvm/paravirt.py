"""Hypercalls that send interrupts, compiled (kvm_pv_send_ipi, kvm_pv_kick_cpu_op); others are in hypercalls.py."""
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Final

from kvmfs.abi import apic as A
from kvmfs.abi import para
from kvmfs.irqchip.delivery import BY_ID_SIZE, accept, deliver, hardware_enabled
from kvmfs.irqchip.words import Board
from kvmfs.jit import state as S
from kvmfs.jit.build import Group, compiled
from kvmfs.jit.cpu.debug import group as debug_group
from kvmfs.jit.raw import call1, load64, lshr, store64, ult, zext32
from kvmfs.kvm.words import Cpu, Vm

group = Group("paravirt", __name__)

RETIRE = debug_group.slot("retire")
BOARD, APIC, PV_FEATURES, BY_ID, IDS_CHANGED = Vm.BOARD, Cpu.APIC, Cpu.PV_FEATURES, Board.BY_ID, Board.IDS_CHANGED
X2APIC_FORMAT = Board.X2APIC_FORMAT
KICK_CPU, SEND_IPI = para.KVM_HC_KICK_CPU, para.KVM_HC_SEND_IPI
UNHALT_BIT: Final = 1 << para.KVM_FEATURE_PV_UNHALT
SEND_IPI_BIT: Final = 1 << para.KVM_FEATURE_PV_SEND_IPI
EINVAL, EOPNOTSUPP = para.KVM_EINVAL, para.KVM_EOPNOTSUPP


@compiled
def send_to(board, bitmap, first, icr):
    """To the APIC IDs of a bitmap whose bit 0 is `first`: how many took it."""
    count = 0
    for bit in range(64):
        dest = first + bit
        if lshr(bitmap, bit) & 1 == 0 or ult(dest, BY_ID_SIZE) == 0:
            continue
        s = load64(load64(board + BY_ID) + 8 * dest)
        apic = load64(s + APIC) if s != 0 else 0
        if apic != 0 and hardware_enabled(apic):
            level = 1 if icr & A.APIC_INT_ASSERT else 0
            count += accept(apic, icr & A.APIC_MODE_MASK, icr & 0xFF, level, icr & A.APIC_INT_LEVELTRIG, 0)
    return count


@compiled
def send_ipi(board, low, high, first, icr, is_long):
    """kvm_pv_send_ipi."""
    if icr & (A.APIC_DEST_LOGICAL | A.APIC_SHORT_MASK):
        return -EINVAL
    if load64(board + IDS_CHANGED) and load64(board + X2APIC_FORMAT) == 0:
        return -EOPNOTSUPP  # an ID may mean several
    return send_to(board, low, first, icr) + send_to(board, high, first + (64 if is_long else 32), icr)


@group.add
def pv_hypercall(s):
    """1 when the hypercall at RIP has been carried out, 0 when it is another's."""
    is_long, features = load64(s + S.HFLAGS) & S.MODE_CODE64, load64(s + PV_FEATURES)
    number, a0, a1 = load64(s + S.RAX), load64(s + S.RBX), load64(s + S.RCX)
    a2, a3 = load64(s + S.RDX), load64(s + S.RSI)
    if is_long == 0:
        number, a0, a1, a2, a3 = zext32(number), zext32(a0), zext32(a1), zext32(a2), zext32(a3)
    board, result = load64(load64(s + S.VM) + BOARD), 0
    if load64(s + S.CPL) != 0:
        return 0
    if number == KICK_CPU and features & UNHALT_BIT:
        deliver(board, 0, A.APIC_DM_REMRD, 0, a1, 0, 0, 0, A.APIC_DEST_NOSHORT, 0, 0)
    elif number == SEND_IPI and features & SEND_IPI_BIT:
        result = send_ipi(board, a0, a1, zext32(a2), a3, is_long)
    else:
        return 0
    store64(s + S.RAX, result if is_long else zext32(result))
    call1(load64(load64(s + S.FUNCTIONS) + 8 * RETIRE), s)
    return 1
