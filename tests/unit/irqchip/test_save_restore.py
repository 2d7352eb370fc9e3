"""A VM that is saved at any moment and restored into a new one goes on as if nothing had been."""

from __future__ import annotations

import struct
import time

import pytest

from kvmfs.abi import apic as A
from kvmfs.abi import ioctls
from kvmfs.abi.caps import Cap
from kvmfs.abi.cpuid_basic import Leaf1Ecx
from kvmfs.abi.vm import EnableCap
from tests.unit.irqchip.machine import APIC, IDT, Guest
from tests.unit.irqchip.snapshot import restore, save
from tests.unit.irqchip.test_timers import program, write

TICKS, PIT_TICKS, RESULT, DONE = 0x9000, 0x9008, 0x9010, 0x9018
ON_TICK, ON_PIT_TICK = 0x30000, 0x30400
ROUNDS = 500_000
MOVES = 5
CR4_OSFXSR = 1 << 9
TSC_DEADLINE = 0x6E0
PUSH = "push rax\npush rbx\npush rcx\npush rdx\n"
POP = "pop rdx\npop rcx\npop rbx\npop rax\n"
EOI = f"mov eax, {APIC + A.APIC_EOI:#x}\nmov dword ptr [rax], 0\n"
ARM = f"""
rdtsc
shl rdx, 32
or rax, rdx
add rax, 3000000
mov rdx, rax
shr rdx, 32
mov ecx, {TSC_DEADLINE}
wrmsr
"""
TIMERS = {
    "periodic": (write(A.APIC_TDCR, 0xB) + write(A.APIC_LVTT, 0x41 | A.APIC_LVT_TIMER_PERIODIC), "", 1_000_000),
    "one-shot": (write(A.APIC_TDCR, 0xB) + write(A.APIC_LVTT, 0x41), write(A.APIC_TMICT, 1_000_000), 1_000_000),
    "TSC deadline": (write(A.APIC_LVTT, 0x41 | A.APIC_LVT_TIMER_TSCDEADLINE) + ARM, ARM, 0),
}
"""How it is set up, what sets it again in its handler, the first count."""

# An integer, an SSE and an x87 sum over the rounds; in every 64th an exception, in every 1024th a HLT.
WORK = f"""
mov rax, cr4
or rax, {CR4_OSFXSR:#x}
mov cr4, rax
sti
mov rsi, {ROUNDS}
mov rdi, 1
fninit
fldz
pxor xmm1, xmm1
1:
imul rdi, rdi, 1664525
add rdi, rsi
movq xmm0, rdi
paddq xmm1, xmm0
fld1
faddp
test rsi, 63
jnz 2f
ud2
2:
test rsi, 1023
jnz 3f
hlt
3:
dec rsi
jnz 1b
cli
fistp qword ptr [{RESULT}]
movq rax, xmm1
add rdi, rax
add [{RESULT}], rdi
mov qword ptr [{DONE}], 1
out 0x77, al
"""


def expected() -> int:
    total, value = 0, 1
    for round_ in range(ROUNDS, 0, -1):
        value = (value * 1664525 + round_) % (1 << 64)
        total += value
    return (total + value + ROUNDS) % (1 << 64)


def machine(text: str) -> Guest:
    guest = Guest(text, pit=0)
    # Without it an exception that is pending is said to be injected, and comes back so.
    guest.call(guest.vm, ioctls.KVM_ENABLE_CAP, EnableCap(cap=Cap.EXCEPTION_PAYLOAD, args=(1,)))
    cpu = guest.cpus[0].vcpu
    cpu.cpuid.change(Leaf1Ecx.TSC_DEADLINE_TIMER, True)
    cpu.set_cpuid(cpu.cpuid)
    return guest


def gate(guest: Guest, vector: int, at: int, text: str) -> None:
    guest.place(at, text)
    guest.put(IDT + 16 * vector, struct.pack("<HHBBHQ", at & 0xFFFF, 8, 0, 0x8E, at >> 16, 0))


def word(guest: Guest, at: int) -> int:
    return int.from_bytes(guest.at(at, 8), "little")


def run_until_ticks(guest: Guest) -> None:
    """Run, and stop in the middle of whatever it is at, after some more interrupts of both timers; or at its end."""
    cpu, before, pit_before = guest.cpus[0], word(guest, TICKS), word(guest, PIT_TICKS)
    runs = cpu.in_thread(cpu.run)
    while runs.is_alive() and (word(guest, TICKS) < before + 3 or word(guest, PIT_TICKS) == pit_before):
        time.sleep(0)
    cpu.stop()
    runs.join()


@pytest.mark.parametrize("timer", TIMERS)
def test_it_goes_on(timer: str) -> None:
    setup, again, count = TIMERS[timer]
    first = write(A.APIC_TMICT, count) if count else ""
    guest = machine(setup + first + program(2, 1193) + WORK)
    gate(guest, 0x41, ON_TICK, f"{PUSH}inc qword ptr [{TICKS}]\n{again}{EOI}{POP}iretq\n")
    gate(guest, 0x50, ON_PIT_TICK, f"{PUSH}inc qword ptr [{PIT_TICKS}]\n{EOI}{POP}iretq\n")
    gate(guest, 6, 0x30800, "add qword ptr [rsp], 2\niretq\n")  # over ud2
    guest.redirect(0, 0x50)
    moves = 0
    while moves < MOVES:
        run_until_ticks(guest)
        if word(guest, DONE):
            break
        saved = save(guest)
        guest = machine("hlt")
        restore(guest, saved)
        assert save(guest).without_time() == saved.without_time()
        moves += 1
    if not word(guest, DONE):
        assert guest.cpus[0].run() == 0
    assert moves
    assert word(guest, DONE)
    assert word(guest, RESULT) == expected()
