"""A VM whose guest tells of each interrupt: its handlers write their vector to a port, then EOI and return."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable
from typing import Any

from kvmfs.jit import state as S

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls
from kvmfs.abi.apic import LapicState
from kvmfs.abi.caps import Cap
from kvmfs.abi.exits import Exit
from kvmfs.abi.irqchip import KVM_IRQCHIP_IOAPIC, Irqchip, IrqLevel, PicState, PitConfig
from kvmfs.abi.msrs import MsrEntry, Msrs
from kvmfs.abi.routing import KVM_IRQ_ROUTING_MSI, IrqRouting, IrqRoutingEntry, Msi
from kvmfs.abi.vcpu import MpState, Regs
from kvmfs.abi.vm import EnableCap
from kvmfs.kvm.words import IRQCHIP_NONE, SERVICE
from kvmfs.kvm.words import Vm as VmWords
from tests.cpu.assemble import assemble
from tests.unit.kvm.inprocess import CODE, STACK, TABLES, Machine

GDT, IDT, STUBS = 0x21000, 0x20000, 0x22000
STUB = 32
PORT = 0x77
APIC, IOAPIC = 0xFEE00000, 0xFEC00000
CODE_SEGMENT = 0x00AF9B000000FFFF
WAIT = "sti\n1: hlt\njmp 1b"


class Cpu:
    """One vCPU of a Guest."""

    def __init__(self, guest: Guest, vcpu: Any) -> None:
        self.guest, self.vcpu, self.page = guest, vcpu, vcpu.run
        self._enter = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(vcpu.enter)

    def run(self) -> int:
        """KVM_RUN: 0 or -errno."""
        while (result := self._enter(self.vcpu.context)) == SERVICE:
            self.vcpu.service(self.guest.client)
        return int(result)

    def next_vector(self) -> int:
        """Run to the next interrupt: its vector."""
        assert self.run() == 0
        assert (self.page.exit_reason, self.page.io.port) == (Exit.IO, PORT), self.page.exit_reason
        return int((ctypes.c_uint8).from_address(self.vcpu.page + 4096).value)

    def start(self, text: str) -> None:
        """Set the vCPU to run `text` from CODE on, in 64-bit mode."""
        at = CODE + 0x400 * self.vcpu.id
        self.guest.put(at, assemble(text, at))
        regs = Regs(rip=at, rsp=STACK - 0x800 * self.vcpu.id, rflags=2)
        self.guest.call(self.vcpu, ioctls.KVM_SET_REGS, regs)

    def stop(self) -> None:
        self.guest.vm.native.request(self.vcpu.context, S.REQ_STOP)

    def in_thread(self, body: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=body)
        thread.start()
        return thread

    # The APIC

    def register(self, offset: int) -> int:
        state = LapicState()
        self.guest.call(self.vcpu, ioctls.KVM_GET_LAPIC, state)
        return int.from_bytes(bytes(state.regs[offset : offset + 4]), "little")

    def set_register(self, offset: int, value: int) -> None:
        state = LapicState()
        self.guest.call(self.vcpu, ioctls.KVM_GET_LAPIC, state)
        state.regs[offset : offset + 4] = value.to_bytes(4, "little")
        self.guest.call(self.vcpu, ioctls.KVM_SET_LAPIC, state)

    def requested(self) -> list[int]:
        """Vectors in IRR."""
        return [n for n in range(256) if self.register(A.APIC_IRR + (n >> 5 << 4)) >> (n & 31) & 1]

    def set_msr(self, index: int, value: int) -> int:
        data = bytes(Msrs(nmsrs=1)) + bytes(MsrEntry(index=index, data=value))
        return self.guest.call(self.vcpu, ioctls.KVM_SET_MSRS, ctypes.create_string_buffer(data))

    def get_msr(self, index: int) -> int:
        buffer = ctypes.create_string_buffer(bytes(Msrs(nmsrs=1)) + bytes(MsrEntry(index=index)))
        assert self.guest.call(self.vcpu, ioctls.KVM_GET_MSRS, buffer) == 1
        return MsrEntry.from_buffer_copy(buffer, ctypes.sizeof(Msrs)).data

    @property
    def mp_state(self) -> int:
        state = MpState()
        self.guest.call(self.vcpu, ioctls.KVM_GET_MP_STATE, state)
        return int(state.mp_state)


class Guest(Machine):
    """`cpus` vCPUs whose APICs are enabled by software. `pit`: KVM_CREATE_PIT2's flags, None: there is none."""

    def __init__(self, text: str = WAIT, *, cpus: int = 1, split: int | None = None, pit: int | None = None) -> None:
        self._split, self._pit, self._text = split, pit, text
        super().__init__("f4", irqchip=split is None)
        for vector in range(256):
            self._gate(vector)
        self.put(GDT, struct.pack("<3Q", 0, CODE_SEGMENT, 0x00CF93000000FFFF))
        self.put(TABLES + 0x1018, (TABLES + 0x4003).to_bytes(8, "little"))  # the fourth GiB: the chips' pages
        for page in (IOAPIC, APIC):
            self.put(TABLES + 0x4000 + (page >> 21 & 511) * 8, (page & ~0x1FFFFF | 0x83).to_bytes(8, "little"))
        boot = self.vcpu
        self.cpus = [Cpu(self, boot)]
        for number in range(1, cpus):
            created = self.call(self.vm, ioctls.KVM_CREATE_VCPU, number)
            self.cpus.append(Cpu(self, self.client.nodes[created]))
            self.set_cpuid(self.client.nodes[created])
        for cpu in self.cpus:
            self.vcpu = cpu.vcpu
            sregs = self._long_mode()
            sregs.idt.base, sregs.idt.limit, sregs.gdt.base, sregs.gdt.limit = IDT, 4095, GDT, 23
            self.call(cpu.vcpu, ioctls.KVM_SET_SREGS, sregs)
            self.call(cpu.vcpu, ioctls.KVM_SET_MP_STATE, MpState(mp_state=0))
            cpu.set_register(A.APIC_SPIV, 0x1FF)
            cpu.set_register(A.APIC_LVT0, A.APIC_LVT_MASKED)  # the PIC, which has most lines as well, is not heard
            cpu.start(text)
        self.vcpu = boot
        if pit is not None:
            self.call(self.vm, ioctls.KVM_CREATE_PIT2, PitConfig(flags=pit))

    def call(self, node: Any, row: ioctls.Ioctl, argument: Any = 0) -> int:
        if row is ioctls.KVM_CREATE_VCPU and self._split is not None and self.vm.block[VmWords.IRQCHIP] == IRQCHIP_NONE:
            super().call(self.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.SPLIT_IRQCHIP, args=(self._split,)))
        return super().call(node, row, argument)

    def _gate(self, vector: int) -> None:
        at = STUBS + STUB * vector
        self.put(IDT + 16 * vector, struct.pack("<HHBBHQ", at & 0xFFFF, 8, 0, 0x8E, at >> 16, 0))
        eoi = b"\xb8" + (APIC + A.APIC_EOI).to_bytes(4, "little") + b"\xc7\x00" + bytes(4)
        self.put(at, bytes((0x50, 0xB0, vector, 0xE6, PORT)) + eoi + b"\x58\x48\xcf")

    def place(self, at: int, text: str) -> None:
        """Put code into memory."""
        self.put(at, assemble(text, at))

    def finish(self) -> None:
        """Complete the exit without running on."""
        self.page.immediate_exit = 1
        self.run()
        self.page.immediate_exit = 0

    def line(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: its answer."""
        event = IrqLevel(irq=gsi, level=level)
        self.call(self.vm, ioctls.KVM_IRQ_LINE_STATUS, event)
        return int(event.status)

    def message(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI: how many took it."""
        return self.call(
            self.vm, ioctls.KVM_SIGNAL_MSI, Msi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
        )

    def route_message(self, gsi: int, address: int, data: int) -> None:
        """KVM_SET_GSI_ROUTING: this one route."""
        entry = IrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_MSI)
        entry.u.msi.address_lo, entry.u.msi.address_hi, entry.u.msi.data = address & 0xFFFFFFFF, address >> 32, data
        table = ctypes.create_string_buffer(bytes(IrqRouting(nr=1)) + bytes(entry))
        self.call(self.vm, ioctls.KVM_SET_GSI_ROUTING, table)

    def redirect(self, pin: int, entry: int) -> None:
        """Set a redirection entry of the I/O APIC."""
        chip = Irqchip(chip_id=KVM_IRQCHIP_IOAPIC)
        self.call(self.vm, ioctls.KVM_GET_IRQCHIP, chip)
        chip.chip.ioapic.redirtbl[pin].bits = entry
        self.call(self.vm, ioctls.KVM_SET_IRQCHIP, chip)

    def redirection(self, pin: int) -> int:
        chip = Irqchip(chip_id=KVM_IRQCHIP_IOAPIC)
        self.call(self.vm, ioctls.KVM_GET_IRQCHIP, chip)
        return int(chip.chip.ioapic.redirtbl[pin].bits)

    def pic(self, number: int) -> PicState:
        chip = Irqchip(chip_id=number)
        self.call(self.vm, ioctls.KVM_GET_IRQCHIP, chip)
        return PicState.from_buffer_copy(chip.chip.pic)

    def next_vector(self) -> int:
        return self.cpus[0].next_vector()

    def cpu_of(self, vcpu: Any) -> Cpu:
        return Cpu(self, vcpu)
