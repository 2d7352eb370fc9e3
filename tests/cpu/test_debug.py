"""Debug exceptions: breakpoints, single step, general detect, and the embedder as debugger (SDM vol. 3, ch. 18)."""

from __future__ import annotations

import pytest
from kvmfs.jit import state as S

from .assemble import assemble
from .test_system import CODE, STACK, System

DATA = 0x150000
DR6_RESET, DR7_RESET = 0xFFFF0FF0, 0x400
BS, BD = 1 << 14, 1 << 13
EXECUTE, WRITE, PORT, ACCESS = 0, 1, 2, 3
LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}


class Debugged(System):
    def __init__(self) -> None:
        super().__init__()
        self[S.DR6], self[S.DR7] = DR6_RESET, DR7_RESET
        self.arm()

    def arm(self) -> None:
        self.function("arm_breakpoints")

    def breakpoint(self, number: int, address: int, kind: int, length: int = 1) -> None:
        """Enable breakpoint `number` of the guest's own."""
        self[S.DR + 8 * number] = address
        self[S.DR7] |= 2 << 2 * number | (kind | LENGTH[length] << 2) << (16 + 4 * number)
        self.arm()

    def debug(self, hardware: bool = False, software: bool = False, step: bool = False, block: bool = False) -> None:
        """Be the debugger."""
        self[S.DEBUGGER] = hardware * S.DEBUG_HARDWARE | software * S.DEBUG_SOFTWARE | block * S.DEBUG_BLOCK_IRQS
        self[S.SINGLE_STEP] = step
        self.arm()

    def trapped(self, text: str) -> tuple[int, int]:
        """Execute until #DB's handler stops: (RIP in its frame less CODE, what is new in DR6)."""
        assert self.execute(text) == S.EXIT_HLT
        frame = self.frame()
        assert frame["vector"] == S.DB
        return frame["rip"] - CODE, self[S.DR6] ^ DR6_RESET

    def exit(self) -> tuple[int, int, int]:
        """(RIP less CODE, vector, DR6 bits) of an EXIT_DEBUG."""
        return self[S.RIP] - CODE, self[S.EXIT_ARGS], self[S.EXIT_ARGS + 8] ^ DR6_RESET

    def step_on(self) -> int:
        reason = self.run()
        assert reason == S.EXIT_DEBUG
        return self[S.RIP] - CODE


@pytest.fixture
def guest() -> Debugged:
    return Debugged()


# Single step


def test_tf_traps_after_each_instruction(guest: Debugged) -> None:
    """Not after the instruction that sets it; the handler runs without it, and finds it in its frame."""
    rip, dr6 = guest.trapped("pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop; hlt")
    assert (rip, dr6) == (11, BS)
    assert guest.frame()["rflags"] & S.TF
    assert not guest.rflags & S.TF


def test_tf_traps_after_the_instruction_that_clears_it(guest: Debugged) -> None:
    guest.rflags = S.TF | 2
    assert guest.trapped("popfq; hlt") == (1, BS)


def test_tf_traps_after_each_iteration(guest: Debugged) -> None:
    guest.rflags, guest[S.RCX], guest[S.RDI] = S.TF | 2, 5, DATA
    assert guest.trapped("rep stosb; hlt") == (0, BS)
    assert (guest[S.RCX], guest[S.RDI]) == (4, DATA + 1)


def test_tf_and_a_fault(guest: Debugged) -> None:
    """The instruction has not been completed."""
    guest.rflags = S.TF | 2
    assert guest.execute("ud2") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.DR6]) == (S.UD, DR6_RESET)


@pytest.mark.parametrize("text", ["int 0x40", "int3"])
def test_software_interrupts_do_not_trap(guest: Debugged, text: str) -> None:
    guest.rflags = S.TF | 2
    assert guest.execute(text) == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.DR6]) == (0x40 if text != "int3" else S.BP, DR6_RESET)


@pytest.mark.parametrize(("mask", "traps"), [(S.TF, False), (0, True)])
def test_syscall_traps_unless_it_masks_tf(guest: Debugged, mask: int, traps: bool) -> None:
    entry = 0x160000
    guest.write(entry, assemble("nop; hlt", entry))
    guest[S.LSTAR], guest[S.SFMASK], guest[S.STAR] = entry, mask, 0x10 << 48 | 0x08 << 32
    guest.rflags = S.TF | 2
    assert guest.execute("syscall") == S.EXIT_HLT
    assert (guest[S.DR6] == DR6_RESET | BS) == traps
    if traps:
        assert guest.frame()["rip"] == entry
    else:
        assert guest[S.RIP] == entry + 2


def test_nothing_traps_behind_mov_ss(guest: Debugged) -> None:
    """Its trap is lost, a breakpoint that it met waits for the next instruction."""
    guest.write(DATA, b"\x10\x00")
    guest.rflags = S.TF | 2
    guest.breakpoint(1, DATA, ACCESS, 2)
    assert guest.trapped(f"mov ss, word ptr [{DATA:#x}]; nop; nop; hlt") == (8, BS | 2)


def test_tf_traps_behind_sti(guest: Debugged) -> None:
    guest.rflags = S.TF | 2
    assert guest.trapped("sti; nop; hlt") == (1, BS)


def test_trap_comes_before_an_interrupt(guest: Debugged) -> None:
    """POPF allows an interrupt that waits, and traps."""
    guest.rflags, guest[S.RSP] = S.TF | 2, STACK - 8
    guest.write(STACK - 8, (S.TF | S.IF | 2).to_bytes(8, "little"))
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x51, S.REQ_EVENT
    assert guest.trapped("popfq; hlt") == (1, BS)
    assert guest[S.INTR_REQUEST] == 0x51


def test_interrupt_does_not_overtake_a_fault(guest: Debugged) -> None:
    """An exception that its instruction has raised is delivered first, with that instruction's RIP."""
    guest.rflags = S.IF | 2
    guest[S.EXC_PENDING], guest[S.EXC_VECTOR], guest[S.EXC_HAS_ERROR] = 1, S.UD, 0
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x51, S.REQ_EVENT
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (S.UD, CODE)
    assert guest[S.INTR_REQUEST] == 0x51


# Breakpoints on code


def test_code_breakpoint_is_a_fault(guest: Debugged) -> None:
    guest.breakpoint(2, CODE + 1, EXECUTE)
    assert guest.trapped("nop; inc eax; hlt") == (1, 1 << 2)
    assert not guest.frame()["rflags"] & S.RF  # the handler's to set
    assert guest[S.RAX] == 0


def test_rf_passes_a_breakpoint_once(guest: Debugged) -> None:
    handler = 0x161000
    guest.write(handler, assemble("or dword ptr [rsp + 18], 1; inc ebx; iretq", handler))
    guest.gate(S.DB, handler)
    guest.breakpoint(0, CODE + 2, EXECUTE)
    assert guest.execute("mov cl, 3; dec cl; jnz . - 2; hlt") == S.EXIT_HLT
    assert guest[S.RBX] == 3  # each time round
    assert not guest[S.RFLAGS] & S.RF


def test_code_elsewhere_on_the_page_and_on_others(guest: Debugged) -> None:
    guest.breakpoint(0, CODE + 0x800, EXECUTE)
    assert guest.execute("mov ecx, 100; loop .; hlt") == S.EXIT_HLT
    assert guest[S.RCX] == 0
    guest.write(CODE + 0x1000, assemble(f"jmp {CODE + 0x800:#x}", CODE + 0x1000))
    guest[S.RIP] = CODE + 0x1000
    assert guest.run() == S.EXIT_HLT
    assert guest.frame()["rip"] == CODE + 0x800


@pytest.mark.parametrize("amd", [False, True])
def test_code_breakpoint_behind_mov_ss(guest: Debugged, amd: bool) -> None:
    """Intel's processors do not see it, AMD's do."""
    guest[S.RAX], guest[S.IS_AMD] = 0x10, amd
    guest.breakpoint(0, CODE + 2, EXECUTE)
    assert guest.execute("mov ss, eax; nop; hlt") == S.EXIT_HLT
    assert (guest[S.DR6] != DR6_RESET) == amd


def test_disabled_breakpoints(guest: Debugged) -> None:
    guest[S.DR] = CODE
    guest[S.DR7] |= 0xD << 20  # R/W and LEN of another
    guest.arm()
    assert guest.execute("hlt") == S.EXIT_HLT
    assert guest[S.DR6] == DR6_RESET


def test_mov_to_dr_arms(guest: Debugged) -> None:
    text = f"mov eax, {CODE + 0x20:#x}; mov dr3, rax; mov eax, 0x480; mov dr7, rax; .org 0x20; nop; hlt"
    assert guest.trapped(text) == (0x20, 8)


# Breakpoints on data


@pytest.mark.parametrize(
    ("access", "kind", "length", "met"),
    [
        ("mov byte ptr [rbx], 1", WRITE, 1, True),
        ("mov byte ptr [rbx + 1], 1", WRITE, 1, False),
        ("mov byte ptr [rbx + 3], 1", WRITE, 4, True),
        ("mov byte ptr [rbx + 4], 1", WRITE, 4, False),
        ("mov qword ptr [rbx - 7], rax", WRITE, 1, True),
        ("mov qword ptr [rbx - 8], rax", WRITE, 1, False),
        ("mov al, [rbx]", WRITE, 1, False),
        ("mov al, [rbx + 7]", ACCESS, 8, True),
        ("inc dword ptr [rbx]", WRITE, 4, True),
        ("lock xadd [rbx], eax", WRITE, 4, True),
        ("xchg [rbx], eax", ACCESS, 2, True),
        ("movaps [rbx], xmm0", WRITE, 8, True),
        ("push qword ptr [rbx]", ACCESS, 1, True),
        ("lea rax, [rbx]", ACCESS, 1, False),
        ("prefetcht0 [rbx]", ACCESS, 1, False),
        ("cmpxchg [rbx], ecx", ACCESS, 1, True),
    ],
)
def test_data_breakpoint(guest: Debugged, access: str, kind: int, length: int, met: bool) -> None:
    """A trap, whichever way the operand is reached; the page's other accesses go on as ever."""
    guest[S.RBX] = DATA
    guest.breakpoint(1, DATA, kind, length)
    size = len(assemble(access, CODE + 1))
    assert guest.execute(f"nop; {access}; nop; hlt") == S.EXIT_HLT
    if met:
        assert guest.frame()["vector"] == S.DB
        assert (guest.frame()["rip"], guest[S.DR6]) == (CODE + 1 + size, DR6_RESET | 2)
    else:
        assert (guest[S.RIP], guest[S.DR6]) == (CODE + size + 3, DR6_RESET)


def test_data_breakpoint_where_the_page_was_in_use(guest: Debugged) -> None:
    guest[S.RBX] = DATA
    assert guest.execute("mov [rbx], rbx; hlt") == S.EXIT_HLT
    guest.breakpoint(0, DATA + 4, WRITE, 4)
    assert guest.trapped("mov [rbx], rbx; hlt") == (3, 1)


def test_repeated_string_stops_at_the_breakpoint(guest: Debugged) -> None:
    guest[S.RCX], guest[S.RDI] = 0x20, DATA
    guest.breakpoint(0, DATA + 5, WRITE)
    assert guest.trapped("rep stosb; hlt") == (0, 1)
    assert (guest[S.RCX], guest[S.RDI]) == (0x20 - 6, DATA + 6)


def test_faulting_instruction_meets_nothing(guest: Debugged) -> None:
    """MOVS reads the watched byte, then its store faults."""
    guest[S.RSI], guest[S.RDI] = DATA, 1 << 40
    guest.breakpoint(0, DATA, ACCESS)
    assert guest.execute("movsb; hlt") == S.EXIT_HLT
    assert (guest.frame(error=True)["vector"], guest[S.DR6]) == (S.PF_FAULT, DR6_RESET)


def test_the_processors_own_accesses(guest: Debugged) -> None:
    """The frame of an interrupt is written onto a watched stack: a trap at the handler's first instruction."""
    guest.breakpoint(0, STACK - 8, WRITE, 8)
    assert guest.execute("int 0x40") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.DR6]) == (S.DB, DR6_RESET | 1)
    assert guest.frame()["rip"] == 0x110000 + 16 * 0x40


@pytest.mark.parametrize(("text", "words", "vector"), [("ud2", {}, S.UD), ("nop", {"INTR_REQUEST": 0x41}, 0x40)])
def test_frames_of_exceptions_and_interrupts(guest: Debugged, text: str, words: dict[str, int], vector: int) -> None:
    """The trap comes at the handler's first instruction, not after some of it."""
    guest.rflags = S.IF | 2
    for name, value in words.items():
        guest[getattr(S, name)], guest[S.REQUEST] = value, S.REQ_EVENT
    guest.breakpoint(2, STACK - 8, WRITE, 8)
    assert guest.execute(text + "; hlt") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest[S.DR6]) == (S.DB, DR6_RESET | 4)
    assert guest.frame()["rip"] == 0x110000 + 16 * vector


def test_several_conditions_in_one(guest: Debugged) -> None:
    guest[S.RBX], guest.rflags = DATA, S.TF | 2
    guest.breakpoint(0, DATA, WRITE)
    guest.breakpoint(3, DATA + 1, ACCESS)
    assert guest.trapped("mov [rbx], rbx; hlt") == (3, BS | 9)


# Ports


@pytest.mark.parametrize("enabled", [False, True])
def test_port_breakpoint(guest: Debugged, enabled: bool) -> None:
    """With CR4.DE, after the instruction is complete."""
    guest[S.CR4] |= S.CR4_DE if enabled else 0
    guest.breakpoint(0, 0x80, PORT, 2)
    assert guest.execute("out 0x81, al; hlt") == S.EXIT_PIO
    assert guest[S.RIP] == CODE
    guest.function("complete_pio")
    assert guest.run() == S.EXIT_HLT
    assert (guest[S.DR6] == DR6_RESET | 1) == enabled
    if enabled:
        assert guest.frame()["rip"] == CODE + 2


def test_tf_across_a_port(guest: Debugged) -> None:
    guest.rflags = S.TF | 2
    assert guest.execute("in al, 0x80; hlt") == S.EXIT_PIO
    guest.function("complete_pio")
    assert guest.run() == S.EXIT_HLT
    assert (guest.frame()["rip"], guest[S.DR6]) == (CODE + 2, DR6_RESET | BS)


def test_outs_is_handed_over_before_its_trap(guest: Debugged) -> None:
    guest[S.CR4] |= S.CR4_DE
    guest[S.RSI], guest[S.RDX], guest[S.RCX] = DATA, 0x80, 2
    guest.breakpoint(0, 0x80, PORT)
    assert guest.execute("rep outsb; hlt") == S.EXIT_PIO
    assert guest.run() == S.EXIT_HLT
    assert (guest.frame()["rip"], guest[S.RCX], guest[S.DR6]) == (CODE, 1, DR6_RESET | 1)


# General detect, ICEBP


def test_general_detect(guest: Debugged) -> None:
    guest[S.DR7] |= BD
    guest.arm()
    assert guest.trapped("mov rax, dr0; hlt") == (0, BD)
    assert not guest[S.DR7] & BD  # the handler may


def test_icebp(guest: Debugged) -> None:
    """A trap that DR6 says nothing about, whatever the gate's DPL."""
    guest.user()
    assert guest.trapped(".byte 0xf1; hlt") == (1, 0)


# The debugger


def test_debugger_steps(guest: Debugged) -> None:
    guest.debug(step=True)
    assert guest.execute("nop; mov eax, 5; hlt") == S.EXIT_DEBUG
    assert guest.exit() == (1, S.DB, BS)
    assert guest.step_on() == 6
    guest.debug()
    assert guest.run() == S.EXIT_HLT


def test_debugger_steps_over_a_port(guest: Debugged) -> None:
    guest.debug(step=True)
    assert guest.execute("out 0x80, al; hlt") == S.EXIT_PIO
    guest.function("complete_pio")
    assert guest.run() == S.EXIT_DEBUG
    assert guest.exit() == (2, S.DB, BS)


def test_mmio_write_comes_before_the_debugger(guest: Debugged) -> None:
    mmio = 1 << 30
    guest.map(mmio)
    guest[S.RBX] = mmio
    guest.debug(step=True)
    assert guest.execute("mov [rbx], eax; hlt") == S.EXIT_MMIO_WRITE
    guest[S.MMIO_WRITES] = 0
    assert guest.run() == S.EXIT_DEBUG
    assert guest.exit() == (2, S.DB, BS)


def test_debuggers_breakpoints_are_not_the_guests(guest: Debugged) -> None:
    """While the debugger uses them the guest's own do not fire, and its DR registers read as it wrote them."""
    guest.breakpoint(0, CODE, EXECUTE)
    guest[S.BREAK_ADDRESS + 8], guest[S.BREAK_CONTROL] = CODE + 3, 0x408
    guest.debug(hardware=True)
    assert guest.execute("mov rax, dr0; nop; hlt") == S.EXIT_DEBUG
    assert guest.exit() == (3, S.DB, 2)
    assert (guest[S.RAX], guest[S.DR6]) == (CODE, DR6_RESET)
    assert guest.run() == S.EXIT_DEBUG  # still there


def test_debugger_takes_every_debug_exception(guest: Debugged) -> None:
    guest.debug(hardware=True)
    guest[S.BREAK_CONTROL] = DR7_RESET | BD
    assert guest.execute(".byte 0xf1") == S.EXIT_DEBUG
    assert guest.exit() == (0, S.DB, 0)
    assert guest.execute("mov dr1, rax") == S.EXIT_DEBUG
    assert guest.exit() == (0, S.DB, BD)


def test_debuggers_software_breakpoints(guest: Debugged) -> None:
    guest.debug(software=True)
    assert guest.execute("nop; int3") == S.EXIT_DEBUG
    assert guest.exit()[:2] == (1, S.BP)
    guest.rflags = S.TF | 2  # the guest's own traps stay its own
    assert guest.trapped("nop; hlt") == (1, BS)


def test_injected_breakpoint_points_behind_it(guest: Debugged) -> None:
    """As if the guest had executed the INT3 at RIP."""
    guest[S.EXC_PENDING], guest[S.EXC_VECTOR], guest[S.EXC_PAYLOAD_USE] = 1, S.BP, S.PAYLOAD_DONE
    assert guest.execute("int3") == S.EXIT_HLT
    assert (guest.frame()["vector"], guest.frame()["rip"]) == (S.BP, CODE + 1)


def test_blocked_interrupts(guest: Debugged) -> None:
    guest.rflags = S.IF | 2
    guest.debug(block=True)
    guest[S.INTR_REQUEST], guest[S.REQUEST] = 0x51, S.REQ_EVENT
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert guest[S.RIP] == CODE + 2
    guest.debug()
    assert guest.execute("nop; hlt") == S.EXIT_HLT
    assert guest.frame()["vector"] == 0x50


def test_blocked_interrupts_leave_the_window_open(guest: Debugged) -> None:
    """What is blocked is injection: the embedder is still told when the guest would take an interrupt."""
    guest.debug(block=True)
    guest[S.IRQ_WINDOW], guest[S.REQUEST] = 1, S.REQ_EVENT
    assert guest.execute("sti; nop; nop; hlt") == S.EXIT_IRQ_WINDOW
    assert guest[S.RIP] == CODE + 2


# Payloads


@pytest.mark.parametrize(("use", "cr2"), [(S.PAYLOAD_BY_VECTOR, 7), (S.PAYLOAD_APPLIES, 7), (S.PAYLOAD_DONE, 5)])
def test_payload_of_an_exception_from_the_embedder(guest: Debugged, use: int, cr2: int) -> None:
    guest[S.CR2], guest[S.EXC_PAYLOAD], guest[S.EXC_PAYLOAD_USE] = 5, 7, use
    guest[S.EXC_PENDING], guest[S.EXC_VECTOR], guest[S.EXC_HAS_ERROR] = 1, S.PF_FAULT, 1
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame(error=True)["vector"], guest[S.CR2]) == (S.PF_FAULT, cr2)


def test_injected_page_fault_leaves_cr2(guest: Debugged) -> None:
    """KVM_SET_VCPU_EVENTS: what is injected has brought its payload already."""
    guest[S.CR2], guest[S.EXC_PAYLOAD] = 5, 7
    guest[S.EXC_INJECTED], guest[S.EXC_VECTOR], guest[S.EXC_HAS_ERROR] = 1, S.PF_FAULT, 1
    assert guest.execute("hlt") == S.EXIT_HLT
    assert (guest.frame(error=True)["vector"], guest[S.CR2]) == (S.PF_FAULT, 5)


def test_unarmed_breakpoints_cost_nothing(guest: Debugged) -> None:
    """Nothing is stepped, no page is kept out of the TLB; the same again after they were armed."""
    guest[S.RBX] = DATA
    text = "mov ecx, 50; mov [rbx], ecx; dec ecx; jnz . - 4; hlt"
    for _ in range(2):
        assert not guest[S.HFLAGS] & S.MODE_SLOW
        guest[S.TLB_MISSES] = 0
        assert guest.execute(text) == S.EXIT_HLT
        assert guest[S.TLB_MISSES] < 8
        guest.breakpoint(0, DATA + 8, WRITE)
        guest[S.TLB_MISSES] = 0
        assert guest.execute(text) == S.EXIT_HLT
        assert guest[S.TLB_MISSES] >= 50
        guest[S.DR7] = DR7_RESET
        guest.arm()
