"""All that clients save of a VM (QEMU's kvm_arch_get_registers, kvm_arch_put_registers), in an order that works."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from kvmfs.abi import apic, debug, fpu, ioctls, irqchip, vcpu, vm
from kvmfs.abi.msrs import MsrEntry, Msrs
from kvmfs.kvm.msrs import index_list
from tests.unit.irqchip.machine import Cpu, Guest
from tests.unit.kvm.inprocess import MEMORY

CHIPS = (irqchip.KVM_IRQCHIP_PIC_MASTER, irqchip.KVM_IRQCHIP_PIC_SLAVE, irqchip.KVM_IRQCHIP_IOAPIC)
OF_A_VCPU: dict[str, tuple[ioctls.Ioctl, ioctls.Ioctl, Any]] = {
    "regs": (ioctls.KVM_GET_REGS, ioctls.KVM_SET_REGS, vcpu.Regs),
    "sregs": (ioctls.KVM_GET_SREGS2, ioctls.KVM_SET_SREGS2, vcpu.Sregs2),
    "xcrs": (ioctls.KVM_GET_XCRS, ioctls.KVM_SET_XCRS, fpu.Xcrs),
    "xsave": (ioctls.KVM_GET_XSAVE, ioctls.KVM_SET_XSAVE, fpu.Xsave),
    "debugregs": (ioctls.KVM_GET_DEBUGREGS, ioctls.KVM_SET_DEBUGREGS, debug.Debugregs),
    "lapic": (ioctls.KVM_GET_LAPIC, ioctls.KVM_SET_LAPIC, apic.LapicState),
    "events": (ioctls.KVM_GET_VCPU_EVENTS, ioctls.KVM_SET_VCPU_EVENTS, vcpu.VcpuEvents),
    "mp_state": (ioctls.KVM_GET_MP_STATE, ioctls.KVM_SET_MP_STATE, vcpu.MpState),
}
"""In the order of setting; MSRs come last, because a TSC deadline needs its timer mode."""


@dataclass
class Snapshot:
    memory: bytes
    vcpus: list[dict[str, bytes]]
    msrs: list[bytes]
    chips: dict[str, bytes]

    def without_time(self) -> dict[str, object]:
        """What must be the same again as soon as it has been set: all but what a timer changes at any time, its current
        count and the interrupt that it requests."""
        kept: dict[str, object] = {"memory": self.memory}
        for index, state in enumerate(self.vcpus):
            registers = bytearray(state["lapic"])
            for at, size in ((apic.APIC_TMCCT, 4), (apic.APIC_IRR, 0x80)):
                registers[at : at + size] = bytes(size)
            kept |= {f"vcpu{index} {name}": value for name, value in {**state, "lapic": bytes(registers)}.items()}
        return kept


def _get(guest: Guest, node: Any, row: ioctls.Ioctl, value: Any) -> bytes:
    guest.call(node, row, value)
    return bytes(value)


def _get_msrs(guest: Guest, cpu: Cpu) -> bytes:
    numbers = index_list()
    table = b"".join(bytes(MsrEntry(index=number)) for number in numbers)
    buffer = ctypes.create_string_buffer(bytes(Msrs(nmsrs=len(numbers))) + table)
    assert guest.call(cpu.vcpu, ioctls.KVM_GET_MSRS, buffer) == len(numbers)
    return buffer.raw[:-1]


def save(guest: Guest) -> Snapshot:
    chips = {
        str(number): _get(guest, guest.vm, ioctls.KVM_GET_IRQCHIP, irqchip.Irqchip(chip_id=number)) for number in CHIPS
    }
    chips["pit"] = _get(guest, guest.vm, ioctls.KVM_GET_PIT2, irqchip.PitState2())
    chips["clock"] = _get(guest, guest.vm, ioctls.KVM_GET_CLOCK, vm.ClockData())
    return Snapshot(
        guest.at(0, MEMORY),
        [
            {name: _get(guest, cpu.vcpu, get, kind()) for name, (get, _, kind) in OF_A_VCPU.items()}
            for cpu in guest.cpus
        ],
        [_get_msrs(guest, cpu) for cpu in guest.cpus],
        chips,
    )


def restore(guest: Guest, snapshot: Snapshot) -> None:
    """Into a VM that has never run."""
    guest.put(0, snapshot.memory)
    clock = vm.ClockData.from_buffer_copy(snapshot.chips["clock"])
    guest.call(guest.vm, ioctls.KVM_SET_CLOCK, vm.ClockData(clock=clock.clock))
    for number in CHIPS:
        guest.call(guest.vm, ioctls.KVM_SET_IRQCHIP, irqchip.Irqchip.from_buffer_copy(snapshot.chips[str(number)]))
    guest.call(guest.vm, ioctls.KVM_SET_PIT2, irqchip.PitState2.from_buffer_copy(snapshot.chips["pit"]))
    for cpu, state, msrs in zip(guest.cpus, snapshot.vcpus, snapshot.msrs, strict=True):
        for name, (_, put, kind) in OF_A_VCPU.items():
            guest.call(cpu.vcpu, put, kind.from_buffer_copy(state[name]))
        count = Msrs.from_buffer_copy(msrs).nmsrs
        assert guest.call(cpu.vcpu, ioctls.KVM_SET_MSRS, ctypes.create_string_buffer(msrs)) == count
